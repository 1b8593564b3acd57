"""What a chat template leaves out of real rows is refused by name, or counted where somebody accepts it."""

import copy
import json
import re
from collections import Counter
from functools import cache
from typing import Any

import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Data
from hala_hpc.data import unify
from hala_hpc.data.documents import CONTROL_WORDS
from hala_hpc.data.spoken import Dropped
from hala_hpc.tasks.train.options import PrepareOptions
from hala_hpc.tasks.train.prepare.tokens import Tokenizing
from tests.conftest import ROOT
from tests.data.tokenizer_kinds import KINDS, Kind

LFM2 = (ROOT / "jobs/hala/templates/lfm2.jinja").read_text()
GEMMA2 = (ROOT / "jobs/hala/templates/gemma2.jinja").read_text()
ALL_OF_IT = """{%- for tool in tools or [] -%}{{- tool | tojson -}}{%- endfor -%}
{%- for m in messages -%}{{- '<start_of_turn>' + m.role + '\\n' -}}
{%- if m.role == 'assistant' -%}{%- generation -%}
{%- if m.reasoning_content -%}{{- '[' + m.reasoning_content + ']' -}}{%- endif -%}
{%- for call in m.tool_calls or [] -%}
{{- 'CALL ' + call.function.name + (call.function.arguments if call.function.arguments is string
    else call.function.arguments | tojson) -}}
{%- endfor -%}{{- m.content + '<end_of_turn>' -}}{%- endgeneration -%}
{%- else -%}{{- m.content + '<end_of_turn>' -}}{%- endif -%}{%- endfor -%}"""
WITHOUT_ARGUMENTS = re.sub(r"\+ \(call.*\n.*tojson\)", "", ALL_OF_IT)
OF_THE_LAST_TURN = ALL_OF_IT.replace("if m.reasoning_content", "if m.reasoning_content and loop.last")
WITHOUT_THOUGHTS = ALL_OF_IT.replace("{{- m.content", "{{- m.content.split('</think>')[-1]")
UNMARKED_CALLS = ALL_OF_IT.replace("{%- generation -%}", "").replace(
    "{{- m.content", "{%- generation -%}{{- m.content", 1
)


def user(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, **more}


def answer(text: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def call(arguments: Any) -> dict[str, Any]:
    return {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells it.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALLS = [
    user("How warm?"),
    answer(None, tool_calls=[call({"city": "Oslo"})]),
    {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "12 C"},
    answer("12 degrees."),
]


def work_on(template: str, seen: list[dict[str, Any]], **options: Any) -> Tokenizing:
    tokenizer = copy.copy(_tokenizer())
    tokenizer.chat_template = template
    return Tokenizing(tokenizer, PrepareOptions(sequence_length=4096, **options), Data(), unify.infer(seen))


@cache
def _tokenizer() -> Any:
    return KINDS["byte level"]([]).tokenizer


def notes_of(template: str, row: dict[str, Any], **options: Any) -> dict[str, int]:
    work = work_on(template, [row], **options)
    return dict(Counter(work.notes(work.reader.read(row))))


def learned(template: str, row: dict[str, Any], **options: Any) -> str:
    work = work_on(template, [row], **options)
    (piece,) = work(row)
    return str(work._tokenizer.decode(piece.ids[piece.loss], skip_special_tokens=False))


@pytest.mark.parametrize(
    ("template", "row", "said"),
    [
        (LFM2, {"messages": CALLS}, "leaves out tool_calls of turn 2"),
        (LFM2, {"messages": [user("x"), answer(None, tool_calls=[call('{"city": "Oslo"}')])]}, "tool_calls of turn 2"),
        (LFM2, {"messages": [user("x"), answer("y", reasoning_content="z")]}, "leaves out reasoning_content of turn 2"),
        (LFM2, {"messages": [user("x"), answer("y", reasoning="z")]}, "leaves out reasoning of turn 2"),
        (LFM2, {"messages": [user("x"), answer("y", thinking="z")]}, "leaves out thinking of turn 2"),
        (LFM2, {"messages": [user("x"), answer("y", function_call={"name": "f"})]}, "function_call of"),
        (GEMMA2, {"messages": [user("x"), answer("y")], "tools": [TOOL]}, "leaves out tools"),
        (GEMMA2, {"messages": [user("x"), answer("y")], "tools": json.dumps([TOOL])}, "leaves out tools"),
        (ALL_OF_IT.replace("m.role == 'assistant'", "m.role != 'system' and m.role == 'assistant'").replace(
            "{%- for m in messages -%}", "{%- for m in messages if m.role != 'system' -%}"),
         {"system": "Be kind.", "messages": [user("x"), answer("y")]}, "leaves out the content of turn 1"),
        (ALL_OF_IT.replace("in messages -%}", "in messages if m.role != 'tool' -%}"), {"messages": CALLS},
         "leaves out the content of turn 3"),
        (ALL_OF_IT.replace("call.function.name +", "'' +"), {"messages": CALLS}, "leaves out tool_calls of turn 2"),
        (WITHOUT_ARGUMENTS,
         {"messages": [user("x"), answer(None, tool_calls=[call({"x": 2})])]}, "leaves out tool_calls of turn 2"),
        (OF_THE_LAST_TURN, {"messages": [user("x"), answer("y", reasoning_content="z")] * 2},
         "leaves out reasoning_content of turn 2"),
        (WITHOUT_THOUGHTS, {"messages": [user("x"), answer("<think>hm</think>y")]}, "leaves out thinking of turn 2"),
        (UNMARKED_CALLS, {"messages": CALLS}, "does not mark tool_calls of turn 2 as the assistant's"),
        (LFM2, {"instruction": "x", "output": "y", "history": "before"}, "'history' holds a text, not a list of pairs"),
    ],
)  # fmt: skip
def test_what_a_template_leaves_out_is_refused_by_name(template: str, row: dict[str, Any], said: str) -> None:
    with pytest.raises(HalaError, match=said):
        notes_of(template, row)


@pytest.mark.parametrize(
    ("template", "row"),
    [
        (ALL_OF_IT, {"messages": CALLS, "tools": [TOOL]}),
        (ALL_OF_IT, {"messages": [user("x"), answer(None, tool_calls=[call('{"city": "Oslo"}')])]}),
        (ALL_OF_IT, {"messages": [user("x"), answer("y", reasoning_content="z")] * 2}),
        (ALL_OF_IT, {"messages": [user("x"), answer("<think>hm</think>y")]}),
        (LFM2, {"messages": [user("x"), answer("y")], "tools": [TOOL], "system": "Be kind."}),
        (GEMMA2, {"messages": [user("x"), answer("y")], "system": "Be kind."}),
        (LFM2, {"messages": [user("", name="me"), answer("y")]}),
    ],
)
def test_what_is_rendered_is_not_refused(template: str, row: dict[str, Any]) -> None:
    assert notes_of(template, row) == {}


def test_what_is_accepted_is_counted_and_turns_that_then_say_nothing_are_not_learned() -> None:
    row = {"messages": [*CALLS, user("x", mood="sad"), answer("y", reasoning_content="z")]}
    accepted = ["tool_calls", "reasoning_content"]
    assert notes_of(LFM2, row, leave_out=accepted) == {
        "rows whose mood the chat template leaves out": 1,
        "rows whose reasoning_content the chat template leaves out": 1,
        "rows whose tool_calls the chat template leaves out": 1,
    }
    assert learned(LFM2, row, leave_out=accepted) == "12 degrees.<|im_end|>\ny<|im_end|>\n"
    with pytest.raises(HalaError, match="reasoning_content"):
        notes_of(LFM2, row, leave_out=["tool_calls"])
    alone = {"messages": [user("x"), answer(None, tool_calls=[call({})])]}
    with pytest.raises(Dropped, match="empty"):
        learned(LFM2, alone, leave_out=accepted)


def test_builds_are_looked_at_once_and_told_apart() -> None:
    row: dict[str, Any] = {"messages": [user("x"), answer("y")]}
    work = work_on(ALL_OF_IT, [row])
    rendered = []
    work._marks._render = lambda chat: rendered.append(chat) or work._rendered(chat)  # type: ignore[func-returns-value]
    others = [
        {"messages": [user("other"), answer("texts")]},
        {"messages": [user("x"), answer("y"), user("x"), answer("y")]},
        {"messages": [user("x"), answer("y", reasoning_content="z")]},
        {"messages": [user("x"), answer("<think>z</think>y")]},
        {"messages": [user("x"), answer("y")], "tools": [TOOL]},
    ]
    for document_row in [row, *others]:
        work.notes(work.reader.read(document_row))
    assert len(rendered) == 5


# --- turns that are not to be learned ---------------------------------------------------------------------------------


@pytest.mark.parametrize("no", [{"weight": 0}, {"loss": False}, {"train": False}, {"weight": 0.0}, {"loss": 0}])
@pytest.mark.parametrize("form", ["messages", "conversations"])
def test_turns_that_are_marked_so_are_not_learned(no: dict[str, Any], form: str) -> None:
    keys = ("role", "content") if form == "messages" else ("from", "value")
    turns = [("user", "2+2?", {}), ("assistant", "5", no), ("user", "Sure?", {}), ("assistant", "4", {"weight": 1})]
    row = {form: [dict(zip(keys, (role, text), strict=True)) | more for role, text, more in turns]}
    assert learned(ALL_OF_IT, row) == "4<end_of_turn>"
    assert learned(LFM2, row) == "4<|im_end|>\n"
    assert notes_of(LFM2, row) == {"turns of the assistant that are not to be learned": 1}
    plain = {form: [{key: turn[key] for key in keys} for turn in row[form]]}
    assert work_on(LFM2, [row])(row)[0].ids.tolist() == work_on(LFM2, [plain])(plain)[0].ids.tolist()


def test_weights_that_are_no_yes_or_no_are_refused_and_those_of_others_counted() -> None:
    for weight in (0.5, 2, "0", [1]):
        with pytest.raises(HalaError, match=r"turn 2 of 'messages' has the weight"):
            work_on(LFM2, [{"messages": []}])({"messages": [user("x"), answer("y", weight=weight)]})
    row = {"messages": [user("x", loss=None, train=True), answer("y")]}
    assert list(notes_of(LFM2, row)) == [
        "turns that are marked to be learned and are not, for only the assistant's are"
    ]
    with pytest.raises(Dropped, match="no turn of the assistant is to be learned"):
        learned(LFM2, {"messages": [user("x"), answer("y", weight=0)]})


def test_a_template_that_marks_all_turns_at_once_cannot_leave_one_out() -> None:
    template = "{% generation %}{% for m in messages %}{{ m.content }}<end_of_turn>{% endfor %}{% endgeneration %}"
    row = {"messages": [answer("x"), answer("y", weight=0)]}
    with pytest.raises(HalaError, match="together with others that are not"):
        learned(template, row)


# --- control tokens, dates, what comes before -------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(KINDS))
def test_control_tokens_in_rows_are_text_and_the_turns_end_is_learned(name: str) -> None:
    kind: Kind = KINDS[name](["what does it mean? it ends."])
    tokenizer = kind.tokenizer
    end = "<|end|>" if name == "trimming" else "<end_of_turn>"
    text = f"{end} ends a turn, {tokenizer.eos_token} a text."
    row = {"messages": [user(f"What does {end} mean?"), answer(text)]}
    work = Tokenizing(tokenizer, PrepareOptions(sequence_length=4096), Data(), unify.infer([row]))
    (piece,) = work(row)
    ids = piece.ids.tolist()
    id = tokenizer.convert_tokens_to_ids(end)
    assert ids.count(id) == 2  # of two turns
    assert tokenizer.eos_token_id not in ids
    said = tokenizer.decode(piece.ids[piece.loss], skip_special_tokens=False).strip()
    assert said == f"{text}{end}"
    assert tokenizer.decode(ids, skip_special_tokens=False).count(end) == 4
    assert Counter(work.notes(work.reader.read(row))) == {CONTROL_WORDS: 1}
    assert len(ids) <= work.most(work.reader.read(row))


def test_completions_and_texts_too_but_for_words_that_are_allowed() -> None:
    end, eos = (_tokenizer().convert_tokens_to_ids(word) for word in ("<end_of_turn>", "<eos>"))
    row = {"text": "a<end_of_turn>b<eos>"}
    for rows, given in (("text", row), ("completion", {"instruction": "a<eos>", "output": row["text"]})):
        work = work_on(LFM2, [given], rows=rows, control_tokens=["<end_of_turn>"])
        ids = [id for piece in work(given) for id in piece.ids.tolist()]
        assert (ids.count(eos), ids.count(end)) == (1, 1)


def test_a_template_that_prints_the_date_is_refused() -> None:
    template = "{{- strftime_now('%d %b %Y') -}}" + ALL_OF_IT
    with pytest.raises(HalaError, match=r"prints the date of today \(%d %b %Y\)"):
        learned(template, {"messages": [user("x"), answer("y")]})
    assert learned("{% if false %}{{ strftime_now('x') }}{% endif %}" + ALL_OF_IT, {"messages": [answer("y")]})


def test_what_comes_before_an_alpaca_row_comes_before_it() -> None:
    row = {
        "instruction": "And in winter?",
        "input": "",
        "output": "Cold.",
        "system": "You are a guide.",
        "history": [["How is Oslo in summer?", "Mild."], ["Really?", "Yes."]],
    }
    work = work_on(LFM2, [row])
    (piece,) = work(row)
    turns = "".join(
        f"<|im_start|>{role}\n{text}<|im_end|>\n"
        for role, text in [
            ("system", "You are a guide."),
            ("user", "How is Oslo in summer?"),
            ("assistant", "Mild."),
            ("user", "Really?"),
            ("assistant", "Yes."),
            ("user", "And in winter?"),
            ("assistant", "Cold."),
        ]
    )
    assert work._tokenizer.decode(piece.ids) == f"<bos>{turns}"
    plain = row | {"system": None, "history": []}
    assert work._tokenizer.decode(work(plain)[0].ids).count("<|im_start|>") == 2
    with pytest.raises(HalaError, match="'system' has no place in a completion"):
        work_on(LFM2, [row], rows="completion")(row)
    for history in ([["one"]], [[1, 2]], {"a": 1}):
        with pytest.raises(HalaError, match="'history' holds"):
            work(row | {"history": history})


@pytest.mark.parametrize(
    "part", [{"type": "thinking", "thinking": "x"}, {"type": "tool_use", "text": "x"}, {"type": "text"}, "x"]
)
def test_parts_of_a_turn_are_known_by_their_type(part: Any) -> None:
    good = {"messages": [user("a"), {"role": "assistant", "content": [{"type": "text", "text": "b"}, {"text": "c"}]}]}
    assert learned(LFM2, good) == "bc<|im_end|>\n"
    with pytest.raises(HalaError, match=r"turn 1 of 'messages' has a part that is not text"):
        work_on(LFM2, [good])({"messages": [user([part])]})  # type: ignore[arg-type]
