"""Rows become tokens: the loss mask of real conversations, token by token, against a computation of its own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Data
from hala_hpc.data import schema, unify
from hala_hpc.data.documents import Chat, PromptAnswer, Text
from hala_hpc.data.files import readers
from hala_hpc.data.spoken import Dropped
from hala_hpc.tasks.train.options import PrepareOptions
from hala_hpc.tasks.train.prepare.tokens import Tokenizing, overlapping
from tests.data.tokenizer_kinds import KINDS, Kind

Rows = list[dict[str, Any]]
LONG = 100_000
ROLES = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool"}


@pytest.fixture(scope="module")
def real(data: Path) -> dict[str, Rows]:
    """Real rows of three shapes; of Alpaca's the first 400 and those that hold more than Latin script."""
    multiturn = data / "multiturn"
    names = ("fastchat_dummy_conversation", "llamafactory_glaive_toolcall_en_demo")
    rows = {name: json.loads((multiturn / f"{name}.json").read_text()) for name in names}
    alpaca = json.loads((data / "instructions/alpaca_52k/alpaca_data-0-3252.json").read_text())
    strange = [row for row in alpaca if not json.dumps(row, ensure_ascii=False).isascii()]
    return rows | {"alpaca": alpaca[:400] + strange}


@pytest.fixture(scope="module")
def arabic(data: Path) -> list[str]:
    return (data / "parallel/flores200/arb_Arab.devtest").read_text().splitlines()


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request: pytest.FixtureRequest, real: dict[str, Rows], arabic: list[str]) -> Kind:
    texts = [text for row in real["alpaca"] for text in row.values()] + arabic[:100]
    return KINDS[request.param](texts)


def work_on(kind: Kind, seen: Rows, data: Data | None = None, **options: Any) -> Tokenizing:
    task = PrepareOptions(**{"sequence_length": LONG} | options)
    return Tokenizing(kind.tokenizer, task, data or Data(), unify.infer(seen))


def messages_of(row: dict[str, Any]) -> list[dict[str, str]]:
    """The conversation of a row, by a reading of its own."""
    if "conversations" in row:
        return [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]
    prompt = row["instruction"] + (f"\n\n{row['input']}" if row["input"].strip() else "")
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": row["output"]}]


def expected(kind: Kind, messages: list[dict[str, str]], ids: list[int]) -> list[bool]:
    """Which tokens hold a byte of what the assistant says, counted in bytes from the beginning of the text."""
    text, marks = b"", b""
    for part, is_answer in kind.turns(messages):
        text += part.encode()
        marks += bytes([is_answer]) * len(part.encode())
    special = {token.content: token.content.encode() for token in kind.tokenizer.added_tokens_decoder.values()}
    tokens = kind.tokenizer.convert_ids_to_tokens(ids)
    learned, position = [], 0
    for token in tokens:
        raw = special[token] if token in special and not token.startswith("<0x") else kind.raw(token)
        assert text[position : position + len(raw)] == raw  # the tokens are the text, byte by byte
        learned.append(any(marks[position : position + len(raw)]))
        position += len(raw)
    assert position == len(text)
    return learned


@pytest.mark.parametrize("name", ["alpaca", "fastchat_dummy_conversation", "llamafactory_glaive_toolcall_en_demo"])
def test_the_loss_is_on_what_the_assistant_says_and_on_nothing_else(
    kind: Kind, real: dict[str, Rows], name: str
) -> None:
    work = work_on(kind, real[name])
    checked = answers = 0
    for row in real[name]:
        messages = messages_of(row)
        if not all(message["content"].strip() for message in messages if message["role"] == "assistant"):
            with pytest.raises(Dropped, match="empty"):
                work(row)
            continue
        (piece,) = work(row)
        wanted = expected(kind, messages, piece.ids.tolist())
        assert piece.loss.tolist() == wanted
        checked += len(wanted)
        answers += sum(wanted)
    assert checked > 30_000
    assert 0.2 * checked < answers < 0.9 * checked


def test_transformers_marks_the_same_tokens(real: dict[str, Rows]) -> None:
    """Its own mask goes another way: by the token at the first and the last character of each span."""
    kind = KINDS["byte level"]([])
    for rows in real.values():
        work = work_on(kind, rows)
        for row in rows[:200]:
            chat = work.reader.read(row)
            assert isinstance(chat, Chat)
            theirs = kind.tokenizer.apply_chat_template(
                chat.messages, tools=chat.tools, return_dict=True, return_assistant_tokens_mask=True
            )
            (piece,) = work(row)
            assert piece.ids.tolist() == theirs["input_ids"]
            assert piece.loss.tolist() == [mark == 1 for mark in theirs["assistant_masks"]]


def test_the_answer_and_the_token_that_ends_it_are_learned(kind: Kind, real: dict[str, Rows]) -> None:
    rows = real["llamafactory_glaive_toolcall_en_demo"]
    work = work_on(kind, rows)
    row = next(row for row in rows if [turn["from"] for turn in row["conversations"]][1] == "function_call")
    (piece,) = work(row)
    learned = kind.tokenizer.decode(piece.ids[piece.loss])
    assert learned == "".join(text for text, is_answer in kind.turns(messages_of(row)) if is_answer)
    assert '{"name": ' in learned  # calls of tools are the assistant's words, their results are not
    assert row["conversations"][2]["value"] not in learned


def test_the_system_and_its_tools_reach_the_template() -> None:
    kind = KINDS["byte level"]([])
    template = kind.tokenizer.chat_template
    kind.tokenizer.chat_template = "{%- for tool in tools or [] -%}{{- tool.name -}}{%- endfor -%}" + template
    row = {"system": "Be kind.", "tools": '[{"name": "calculate_tip"}]', "conversations": [
        {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]}  # fmt: skip
    work = work_on(kind, [row])
    (piece,) = work(row)
    text = kind.tokenizer.decode(piece.ids)
    assert text.startswith("calculate_tip<bos><start_of_turn>system\nBe kind.<end_of_turn>")
    assert kind.tokenizer.decode(piece.ids[piece.loss]) == "Yo<end_of_turn>"
    for tools in ("", "[]", None, []):
        (piece,) = work(row | {"tools": tools})
        assert kind.tokenizer.decode(piece.ids).startswith("<bos>")
    for tools in ("{", "3", ["x"]):
        with pytest.raises(HalaError, match="tools"):
            work(row | {"tools": tools})


def test_messages_with_parts_calls_and_keys_that_parquet_filled_in() -> None:
    kind = KINDS["byte level"]([])
    template = kind.tokenizer.chat_template.replace("{%- set text", "{{- message.tool_calls or '' -}}{%- set text")
    kind.tokenizer.chat_template = template
    turns = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "2"}, {"type": "text", "text": "+2?"}],
            "tool_calls": None,
        },
        {"role": "assistant", "content": None, "tool_calls": ["CALL"]},
        {"role": "tool", "content": "4", "tool_calls": None},
        {"role": "assistant", "content": "Four.", "tool_calls": None},
    ]
    (piece,) = work_on(kind, [{"messages": []}])({"messages": turns})
    text = kind.tokenizer.decode(piece.ids)
    assert "<start_of_turn>user\n2+2?<end_of_turn>" in text
    assert "<start_of_turn>assistant\n['CALL']<end_of_turn>" in text
    assert kind.tokenizer.decode(piece.ids[piece.loss]) == "<end_of_turn>Four.<end_of_turn>"


@pytest.mark.parametrize(
    ("row", "error", "said"),
    [
        ({"messages": []}, Dropped, "no answer"),
        ({"messages": None}, Dropped, "no answer"),
        ({"messages": [{"role": "user", "content": "x"}]}, Dropped, "no answer"),
        ({"messages": [{"role": "assistant", "content": " "}]}, Dropped, "empty"),
        ({"messages": "x"}, HalaError, "not a list of turns"),
        ({"messages": [{"role": "critic", "content": "x"}]}, HalaError, "turn 1 of 'messages' has the role 'critic'"),
        ({"messages": [{"content": "x"}]}, HalaError, "has the role None"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, HalaError, "only texts"),
    ],
)
def test_rows_without_an_answer_are_dropped_and_those_of_another_form_refused(
    row: dict[str, Any], error: type[Exception], said: str
) -> None:
    work = work_on(KINDS["byte level"]([]), [{"messages": []}])
    with pytest.raises(error, match=said):
        work(row)


def test_a_row_that_the_template_refuses(real: dict[str, Rows], arabic: list[str]) -> None:
    kind = KINDS["falling back"](arabic)
    row = {"messages": [{"role": "system", "content": "x"}, {"role": "assistant", "content": "y"}]}
    with pytest.raises(HalaError, match="refuses this conversation: System role not supported"):
        work_on(kind, [row])(row)


def test_a_completion_learns_the_answer_and_eos(kind: Kind, real: dict[str, Rows]) -> None:
    rows = [row for row in real["alpaca"] if row["output"]][:200]
    work = work_on(kind, rows, rows="completion")
    bos, eos = kind.tokenizer.bos_token_id, kind.tokenizer.eos_token_id
    for row in rows:
        (piece,) = work(row)
        ids = piece.ids.tolist()
        assert (ids[0], ids[-1], ids.count(bos), ids.count(eos)) == (bos, eos, 1, 1)
        first = int(np.argmax(piece.loss))
        assert piece.loss.tolist() == [False] * first + [True] * (len(ids) - first)
        prompt = row["instruction"] + (f"\n\n{row['input']}" if row["input"].strip() else "")
        prompt += "" if prompt[-1].isspace() or row["output"][0].isspace() else "\n\n"
        assert ids[1:first] == kind.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert ids[first:-1] == kind.tokenizer(row["output"], add_special_tokens=False)["input_ids"]


def test_columns_of_a_prompt_and_its_answer(kind: Kind) -> None:
    row = {"en": "Good morning", "ar": "صباح الخير", "note": None}
    for shape in ("auto", "pairs", "columns"):
        columns = Data(columns=["en", "ar"], shape=shape)  # type: ignore[arg-type]
        (piece,) = work_on(kind, [row], columns, rows="completion")(row)
        assert kind.tokenizer.decode(piece.ids[piece.loss]) == f"صباح الخير{kind.tokenizer.eos_token}"
        (chat,) = work_on(kind, [row], columns)(row)
        assert kind.tokenizer.decode(chat.ids[chat.loss]).startswith("صباح الخير<")


def test_a_text_is_cut_into_pieces_and_no_token_is_lost(kind: Kind, data: Path) -> None:
    rows = [json.loads(line) for line in (data / "raw_text/c4_demo.jsonl").read_text().splitlines()][:40]
    rows = [{"text": row["text"]} for row in rows]
    pieces_of = work_on(kind, rows, rows="text", sequence_length=64)
    several = 0
    for row in rows:
        pieces = pieces_of(row)
        several += len(pieces) > 1
        ids = [token for piece in pieces for token in piece.ids.tolist()]
        whole = kind.tokenizer(row["text"], add_special_tokens=False)["input_ids"]
        assert ids == [kind.tokenizer.bos_token_id, *whole, kind.tokenizer.eos_token_id]
        assert all(2 <= len(piece.ids) <= 64 for piece in pieces)
        assert all(len(piece.ids) >= 63 for piece in pieces[:-1])
        assert all(piece.loss.tolist() == [False] + [True] * (len(piece.ids) - 1) for piece in pieces)
    assert several > 20


@pytest.mark.parametrize("length", range(1, 12))
def test_the_last_piece_has_something_to_predict(length: int) -> None:
    kind = KINDS["byte level"]([])
    row = {"text": "§" * length}  # two tokens each, no merges
    pieces = work_on(kind, [row], rows="text", sequence_length=4)(row)
    assert sum(len(piece.ids) for piece in pieces) == 2 * length + 2
    assert all(2 <= len(piece.ids) <= 4 for piece in pieces)


def test_too_long_rows_are_refused_dropped_or_truncated() -> None:
    kind = KINDS["byte level"]([])
    row = {"instruction": "Count.", "output": "one two three four five six seven"}
    (whole,) = work_on(kind, [row])(row)
    length = len(whole.ids)
    assert work_on(kind, [row], sequence_length=length)(row)[0].truncated is False
    for too_long in ("refuse", "drop"):
        with pytest.raises(Dropped, match=f"too long: {length} tokens for sequences of {length - 1}"):
            work_on(kind, [row], sequence_length=length - 1, too_long=too_long)(row)
    (cut,) = work_on(kind, [row], sequence_length=length - 3, too_long="truncate")(row)
    assert cut.truncated
    assert cut.ids.tolist() == whole.ids[: length - 3].tolist()
    assert cut.loss.tolist() == whole.loss[: length - 3].tolist()
    with pytest.raises(Dropped, match="no answer"):
        work_on(kind, [row], sequence_length=5, too_long="truncate")(row)


def test_the_bound_holds_for_real_texts(kind: Kind, real: dict[str, Rows], arabic: list[str]) -> None:
    for rows in real.values():
        work = work_on(kind, rows)
        for row in rows[::7]:
            try:
                document = work.reader.read(row)
            except Dropped:
                continue
            assert work.length(document) <= work.most(document)
    for text in arabic[:200]:
        assert work.length(Text(text)) <= work.most(Text(text))


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60), st.text(max_size=60))
def test_the_bound_holds_for_any_text(text: str, other: str) -> None:
    for name in KINDS:
        work = _cached(name)
        for document in (Text(text), PromptAnswer(text, other), Chat([{"role": "assistant", "content": text + other}])):
            assert work.length(document) <= work.most(document)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(alphabet=" \n\tab.é🙂م<>", max_size=12), min_size=2, max_size=6))
def test_the_mask_holds_for_any_text(contents: list[str]) -> None:
    """Spaces and newlines at the borders of a turn are where offsets go wrong."""
    messages = [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(contents)]
    for name, make in KINDS.items():
        work = _cached(name)
        tokens = work._encoded(Chat(messages))
        assert tokens.loss.tolist() == expected(_kinds[name], messages, tokens.ids.tolist()), make


_kinds: dict[str, Kind] = {}


def _cached(name: str) -> Tokenizing:
    """Hypothesis runs a test many times; tokenizers are made once."""
    if name not in _kinds:
        _kinds[name] = KINDS[name](["the quick brown fox  jumps\n\nover a lazy dog. " * 3, "سلام على من"])
    return work_on(_kinds[name], [{"messages": []}])


def test_tokens_of_spaces_belong_to_where_they_are() -> None:
    """(5, 5) is a token of spaces that its offsets leave out: it stands between 4 and 5."""
    offsets = [(0, 0), (0, 4), (5, 5), (5, 9)]
    assert overlapping(offsets, [(4, 5)]) == pytest.approx([False, False, True, False])
    assert overlapping(offsets, [(5, 9)]) == pytest.approx([False, False, False, True])
    assert overlapping([], [(0, 3)]).tolist() == []


def test_shapes_that_do_not_fit_the_kind() -> None:
    kind = KINDS["byte level"]([])
    text, chat = [{"text": "x"}], [{"messages": [{"role": "user", "content": "x"}]}]
    with pytest.raises(HalaError, match="is only one column"):
        work_on(kind, text)
    with pytest.raises(HalaError, match="not of kind 'text'"):
        work_on(kind, chat, rows="text")
    with pytest.raises(HalaError, match="no column 'b'"):
        work_on(kind, text, Data(columns=["text", "b"]), rows="completion")


CALLS = """{%- for turn in messages -%}{{- turn['role'] + ':' -}}{%- if turn['role'] == 'assistant' -%}
{%- generation -%}
{%- for call in turn['tool_calls'] or [] -%}{{- call['function'] | tojson -}}{%- endfor -%}
{{- turn['content'] + '.' -}}{%- endgeneration -%}{%- else -%}{{- turn['content'] -}}{%- endif -%}{%- endfor -%}"""


def test_tool_calls_are_learned_with_their_own_arguments_whatever_file_holds_them(tmp_path: Path) -> None:
    """JSON lines; what a run makes of them; and the struct of all keys that others make of them."""
    calls = [{"name": "weather", "arguments": {"city": "Oslo"}}, {"name": "add", "arguments": {"x": 2, "y": 3}}]
    turns = [{"role": "assistant", "content": None, "tool_calls": [{"function": call}]} for call in calls]
    rows: Rows = [{"messages": [{"role": "user", "content": "go"}, turn]} for turn in turns]
    kind = KINDS["byte level"]([json.dumps(rows)])
    kind.tokenizer.chat_template = CALLS
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(schema.to_table(rows, unify.infer(rows)), tmp_path / "ours.parquet")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "theirs.parquet")
    texts = []
    for name in ("a.jsonl", "ours.parquet", "theirs.parquet"):
        (chunk,) = readers.chunks(tmp_path / name)
        pieces = [piece for row in chunk.rows for piece in work_on(kind, chunk.rows)(row)]
        texts.append([kind.tokenizer.decode(piece.ids) for piece in pieces])
    assert texts[0] == [f"user:goassistant:{json.dumps(call)}." for call in calls]
    assert texts[1] == texts[2] == texts[0]
