"""From a source through a translation, a mix and the tokens of a training: nothing is lost or added.

The echo engine answers «text», so each step's output can be written down here once more, without the steps.
"""

import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hala_hpc.config.errors import HalaError
from hala_hpc.data import schema, unify
from hala_hpc.data.outputs.collect import collect
from hala_hpc.pipeline import lookup, planning
from hala_hpc.run import manifest
from hala_hpc.run.verify import verify
from hala_hpc.tasks.train.prepare import tokens as token_file
from hala_hpc.worker import registry
from hala_hpc.worker.job import work_until
from tests.data.tokenizer_kinds import KINDS, save
from tests.test_cases import cases as cases

Row = dict[str, Any]
TEMPLATE = """{{- bos_token -}}{%- for tool in tools or [] -%}{{- tool | tojson -}}{%- endfor -%}
{%- for m in messages -%}{{- '<start_of_turn>' + m.role + '\\n' -}}
{%- if m.role == 'assistant' -%}{%- generation -%}
{%- for call in m.tool_calls or [] -%}{{- 'CALL ' + call | tojson -}}{%- endfor -%}
{%- if m.function_call -%}{{- 'CALL ' + m.function_call | tojson -}}{%- endif -%}
{{- m.content + '<end_of_turn>' -}}{%- endgeneration -%}
{%- else -%}{{- m.content + '<end_of_turn>' -}}{%- endif -%}{%- endfor -%}"""
ALL = {"exact": False, "near": None}
"""No row of a mix is a duplicate."""
HEARD = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool", "function": "tool"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind = KINDS["byte level"]([])
    kind.tokenizer.chat_template = TEMPLATE
    folder = save(kind, tmp_path_factory.mktemp("model") / "tiny")
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = {"model_type": "llama", "vocab_size": 2000, "intermediate_size": 128, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config | sizes))
    return folder


class Chain:
    """Runs in one folder, each planned and done in this process, and proven."""

    def __init__(self, folder: Path, model: Path) -> None:
        self._folder, self._model = folder, model

    def run(self, name: str, task: Mapping[str, Any], **sections: Any) -> Path:
        recipe = {"name": name, "task": task, "run": {"root": self._folder / "runs", "shard_rows": 40}} | sections
        file = self._folder / f"{name}.json"
        file.write_text(json.dumps(recipe, default=str))
        composed = lookup.load(file, "local", ())
        run = planning.plan_run(composed, planning.check(composed), Path(composed.run.root) / name)
        work_until(run.path, lambda: False, "one")
        facts = manifest.read(run.manifest).facts  # no recipe is read again: there are many runs in this file
        assert verify(run.path, registry.create(composed).checker(facts)).proven
        return run.path

    def translated(self, source: Path | list[Path], **data: Any) -> Path:
        """The folder of a translation that was collected."""
        task = {"kind": "translate", "prompt": "{text}", "segments": {"tokens": 0}}
        run = self.run("ar", task, engine={"kind": "echo"}, data={"path": source, **data})
        collect(run, run / "final")
        assert not (run / "final" / "quarantine.parquet").exists()
        return run / "final"

    def mixed(self, **source: Any) -> list[Row]:
        """The rows of a mix of the translation, by their number in it."""
        run = self.run("mix", {"kind": "mix", "sources": {"ar": {"path": "run:ar", **source}}, "duplicates": ALL})
        return sorted(rows_in(run / "final"), key=lambda row: int(row["hala_source_row"]))

    def prepared(self, source: str = "run:mix", rows: str = "chat", name: str = "tokens", **data: Any) -> list[Any]:
        """The tokens of each row, and which of them are learned; by the row's number in the mix's source, if any."""
        task = {"kind": "prepare", "rows": rows, "sequence_length": 100_000}
        run = self.run(name, task, model={"name": self._model}, data={"path": source, **data})
        prepared = []
        for path in sorted((run / "shards").rglob("*.arrow")):
            file = token_file.read(path)
            assert file.error.null_count == len(file.error)
            for begin, end in zip(file.offsets, file.offsets[1:], strict=False):
                prepared.append((file.ids[begin:end].tolist(), file.loss[begin:end].tolist()))
        if source != "run:mix":
            return prepared
        order = [row["hala_source_row"] for row in rows_in(self._folder / "runs" / "mix" / "final")]
        return [tokens for _, tokens in sorted(zip(order, prepared, strict=True), key=lambda pair: pair[0])]

    def planned_training(self, **dataset: Any) -> None:
        """Raises what `hala plan` of a training says."""
        task = {"kind": "train", "datasets": {"d": dataset}, "sequence_length": 512, "batch": {"sequences": 2}}
        file = self._folder / "train.json"
        recipe = {"name": "train", "task": task, "model": {"name": self._model}, "run": {"root": self._folder / "runs"}}
        file.write_text(json.dumps(recipe, default=str))
        composed = lookup.load(file, "local", ())
        planning.plan_run(composed, planning.check(composed), self._folder / "runs" / "train")


@pytest.fixture
def chain(tmp_path: Path, model: Path) -> Chain:
    return Chain(tmp_path, model)


def rows_in(folder: Path) -> list[Row]:
    """The rows of a collected folder or a mix, in their order."""
    return [row for path in sorted((folder / "data").iterdir()) for row in schema.to_rows(pq.ParquetFile(path).read())]


@pytest.fixture(scope="module")
def tokens_of(model: Path) -> Callable[[Sequence[Row], Any], list[int]]:
    """What transformers itself makes of a conversation."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)

    def tokens_of(messages: Sequence[Row], tools: Any = None) -> list[int]:
        given = tokenizer.apply_chat_template(list(messages), tools=tools or None, return_dict=True)
        return list(given["input_ids"])

    return tokens_of


def write(path: Path, rows: Sequence[Row]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def spoken(turns: Sequence[Row], translated: bool = True) -> list[Row]:
    """Messages as a chat template wants them, with what echo makes of the user's and the assistant's texts."""
    messages = []
    for turn in turns:
        content = turn["content"] or ""
        is_text = translated and turn["role"] in ("user", "assistant") and content
        role = HEARD.get(turn["role"], turn["role"])
        messages.append(turn | {"role": role, "content": f"«{content}»" if is_text else content})
    return messages


# --- tool calls -------------------------------------------------------------------------------------------------------


def call(name: str, arguments: Any, **more: Any) -> Row:
    return {"id": f"c-{name}", "type": "function", "function": {"name": name, "arguments": arguments}, **more}


def tool(name: str, **properties: Any) -> Row:
    parameters = {"type": "object", "properties": properties, "required": list(properties)[:1]}
    return {"type": "function", "function": {"name": name, "description": f"Does {name}.", "parameters": parameters}}


def conversation(*calls: Row, tools: Sequence[Row] = (), role: str = "tool") -> Row:
    turns: list[Row] = [{"role": "system", "content": "Use tools."}, {"role": "user", "content": "How warm is it?"}]
    turns += [{"role": "assistant", "content": None, "tool_calls": list(calls)}]
    turns += [{"role": role, "name": calling["function"]["name"], "content": "12"} for calling in calls]
    turns += [{"role": "assistant", "content": "It is 12 degrees."}]
    return {"messages": turns, "tools": list(tools)}


TEXT, NUMBER = {"type": "string"}, {"type": "number"}
TYPED = [
    conversation(call("weather", {"city": "Paris"}), tools=[tool("weather", city=TEXT)]),
    conversation(call("add", {"x": 2, "y": 3}), tools=[tool("add", x=NUMBER, y=NUMBER)]),
    conversation(
        call("weather", {"city": "مكة", "days": [1, 2]}),
        call("place", {"at": {"lat": 1.5, "name": "<b>"}}),
        tools=[tool("weather", city=TEXT, days={"type": "array"}), tool("place", at={"type": "object"})],
    ),
    conversation(call("now", {}), role="function"),
]
"""Rows that one Arrow schema holds, in which every call has the arguments of all others, as nulls."""
FREE = [
    *TYPED,
    conversation(call("add", {"y": 3, "x": 2}), tools=[tool("add", y=NUMBER, x=NUMBER)]),  # in another order
    conversation(call("add", {"x": 2.0, "y": 3.5})),
    conversation(call("add", {"x": 2, "y": None})),  # a null that is meant
    conversation(call("add", '{"x": 2,  "y": 3}')),  # OpenAI's own: JSON text
    conversation(call("big", {"n": 2**63 - 1, "is": [True, None, "1", 1.0], "": ""})),
    {"messages": [{"role": "user", "content": "Old."}, {"role": "assistant", "content": "", "function_call": {
        "name": "f", "arguments": '{"a":1}'}}, {"role": "function", "name": "f", "content": "1"},
        {"role": "assistant", "content": "One."}], "tools": []},
]  # fmt: skip
ONLY_ORDER = [
    conversation(call("add", {"x": 2, "y": 3}), tools=[tool("add", x=NUMBER, y=NUMBER)]),
    conversation(call("add", {"y": 3, "x": 2}), tools=[tool("add", y=NUMBER, x=NUMBER)]),
]
"""The same keys everywhere, and in two orders."""


@pytest.mark.parametrize(
    ("rows", "name"),
    [(TYPED, "a.jsonl"), (TYPED, "a.parquet"), (FREE, "a.jsonl"), (ONLY_ORDER, "a.jsonl")],
    ids=["typed", "typed in Parquet", "free", "two orders"],
)
def test_calls_keep_their_own_arguments_token_by_token(
    chain: Chain, tmp_path: Path, rows: list[Row], name: str, tokens_of: Callable[..., list[int]]
) -> None:
    chain.translated(write(tmp_path / name, rows))
    mixed = chain.mixed(columns=["messages_ar"])
    prepared = chain.prepared()
    assert len(mixed) == len(prepared) == len(rows)
    for row, carried, (ids, _) in zip(rows, mixed, prepared, strict=True):
        messages = spoken(row["messages"])
        arguments, kept = (
            [calling["function"]["arguments"] for turn in turns for calling in turn.get("tool_calls") or []]
            for turns in (messages, carried["messages"])
        )
        assert json.dumps(kept) == json.dumps(arguments), "in their order, too"
        assert ids == tokens_of(messages, row["tools"])


def test_files_of_two_orders_keep_both(chain: Chain, tmp_path: Path, tokens_of: Callable[..., list[int]]) -> None:
    """In each Parquet file a call has an order of its own, which the schema of both must not take from it."""
    files = [write(tmp_path / f"{number}.parquet", [row]) for number, row in enumerate(ONLY_ORDER)]
    chain.translated(files)
    chain.mixed(columns=["messages_ar"])
    for row, (ids, _) in zip(ONLY_ORDER, chain.prepared(), strict=True):
        assert ids == tokens_of(spoken(row["messages"]), row["tools"])


@pytest.mark.parametrize("file", ["tools.jsonl", "hfjson.parquet", "hfjson_auto.parquet"])
def test_calls_of_real_files(chain: Chain, cases: Path, file: str, tokens_of: Callable[..., list[int]]) -> None:
    """Each is of the conversations of the JSON lines, in another form."""
    rows = [json.loads(line) for line in (cases / "tools.jsonl").read_text().splitlines()]
    chain.translated(cases / file)
    chain.mixed(columns=["messages_ar"])
    for row, (ids, _) in zip(rows, chain.prepared(), strict=True):
        assert ids == tokens_of(spoken(row["messages"]), row["tools"])


def test_calls_that_are_turns_of_their_own(chain: Chain, data: Path, tokens_of: Callable[..., list[int]]) -> None:
    """Real ShareGPT conversations: calls and results are turns, tools are JSON text."""
    source = data / "multiturn" / "llamafactory_glaive_toolcall_en_demo.json"
    rows = json.loads(source.read_text())
    chain.translated(source)
    chain.mixed(columns=["conversations_ar"])
    prepared = chain.prepared()
    assert len(prepared) == len(rows) == 300
    for row, (ids, _) in zip(rows, prepared, strict=True):
        said = [(part["from"], part["value"]) for part in row["conversations"]]
        turns = [turn({"human": "user", "gpt": "assistant"}.get(role, role), text) for role, text in said]
        assert ids == tokens_of(spoken(turns), json.loads(row["tools"] or "[]"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text("ab é\"'\\", max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xyzw"), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(st.sampled_from("xyzw"), json_values, max_size=3), min_size=1, max_size=5), st.data())
def test_any_arguments_come_back_in_their_order(tmp_path: Path, arguments: list[Row], draw: st.DataObject) -> None:
    """Through the schema of any chunks of them, and Parquet: what a translation and a mix do with each call."""
    shuffled = [dict(draw.draw(st.permutations(list(own.items())))) for own in arguments]
    rows = [{"calls": [{"name": "f", "arguments": own}]} for own in shuffled]
    at = draw.draw(st.integers(0, len(rows)))
    whole = None
    for part in (rows[:at], rows[at:]):
        whole = unify.unify(whole, unify.infer(part)) if part else whole
    assert whole is not None
    pq.write_table(schema.to_table(rows, unify.storable(whole)), tmp_path / "a.parquet")
    assert json.dumps(schema.to_rows(pq.ParquetFile(tmp_path / "a.parquet").read())) == json.dumps(rows)


def test_rows_that_differ_in_their_calls_alone_are_no_duplicates(chain: Chain, tmp_path: Path) -> None:
    zones = ["Europe/Paris and all around it", "America/Vancouver, with its islands", "Asia/Riyadh"]
    rows = [conversation(call("set_the_clock", {"zone": zone, "hours": len(zone)})) for zone in zones]
    file = write(tmp_path / "a.jsonl", [*rows, copy.deepcopy(rows[0])])
    run = chain.run("mix", {"kind": "mix", "sources": {"a": {"path": file}}})
    assert sorted(row["hala_source_row"] for row in rows_in(run / "final")) == [0, 1, 2]


def test_rows_with_the_same_long_tools_are_compared_by_their_words(chain: Chain, tmp_path: Path) -> None:
    tools = [tool(f"tool_number_{number}", place=TEXT, amount=NUMBER) for number in range(20)]
    talks = [("Where do whales sleep?", "Near the surface."), ("Name a prime.", "Seven.")]
    rows: list[Row] = [
        {"messages": [turn("user", question), turn("assistant", answer)], "tools": tools} for question, answer in talks
    ]
    rows.append({"messages": [rows[0]["messages"][0], turn("assistant", "Near the surface!")], "tools": tools})
    file = write(tmp_path / "a.jsonl", rows)
    run = chain.run("mix", {"kind": "mix", "sources": {"a": {"path": file}}})
    assert sorted(row["hala_source_row"] for row in rows_in(run / "final")) == [0, 1]


# --- preferences ------------------------------------------------------------------------------------------------------


def turn(role: str, content: str) -> Row:
    return {"role": role, "content": content}


ASKED = turn("user", "What colour is the sky?")
BLUE, GREEN = turn("assistant", "It is blue."), turn("assistant", "It is green.")
EARLIER = [turn("system", "Be brief."), turn("user", "Hi"), turn("assistant", "Hello."), ASKED]
FORMS: dict[str, tuple[Row, list[Row], Any, Any]] = {
    "explicit texts": ({"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
                       [turn("user", "The sky is")], [turn("assistant", " blue.")], [turn("assistant", " green.")]),
    "explicit turns": ({"prompt": [ASKED], "chosen": [BLUE], "rejected": [GREEN]}, [ASKED], [BLUE], [GREEN]),
    "explicit, one turn": ({"prompt": [ASKED], "chosen": BLUE, "rejected": GREEN}, [ASKED], [BLUE], [GREEN]),
    "explicit, a text and turns": ({"prompt": ASKED["content"], "chosen": [BLUE], "rejected": [GREEN]},
                                   [ASKED], [BLUE], [GREEN]),
    "implicit turns": ({"chosen": [ASKED, BLUE], "rejected": [ASKED, GREEN]}, [ASKED], [BLUE], [GREEN]),
    "implicit, longer": ({"chosen": [*EARLIER, BLUE], "rejected": [*EARLIER, GREEN]}, EARLIER, [BLUE], [GREEN]),
    "both": ({"prompt": ASKED["content"], "chosen": [ASKED, BLUE], "rejected": [ASKED, GREEN]},
             [ASKED], [BLUE], [GREEN]),
    "implicit texts": ({"chosen": "The sky is blue.", "rejected": "The sky is green."}, [],
                       "The sky is blue.", "The sky is green."),
}  # fmt: skip
"""A row; its prompt and sides as TRL's explicit form of turns, but for bare texts."""


def quoted(side: Any) -> Any:
    return f"«{side}»" if isinstance(side, str) else spoken(side)


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize("form", list(FORMS))
def test_preferences_are_translated_and_mixed_with_both_sides(
    chain: Chain, tmp_path: Path, form: str, ending: str, tokens_of: Callable[..., list[int]]
) -> None:
    row, prompt, chosen, rejected = FORMS[form]
    folder = chain.translated(write(tmp_path / f"a.{ending}", [row]))
    (collected,) = rows_in(folder)
    assert {name: collected[name] for name in row} == row
    named = [f"{name}_ar" for name in row]
    with pytest.raises(HalaError, match=re.escape(f"columns: [{', '.join(named)}] or columns: [{', '.join(row)}]")):
        chain.mixed()
    (carried,) = chain.mixed(columns=named)
    sides = [quoted(side) for side in (chosen, rejected)]
    is_bare = isinstance(chosen, str)
    assert [carried["chosen"], carried["rejected"]] == sides
    assert "prompt" not in carried if is_bare else carried["prompt"] == spoken(prompt)
    card = (tmp_path / "runs" / "mix" / "final" / "README.md").read_text()
    assert "| form | preferences of bare texts |" in card if is_bare else "| form | preferences of turns |" in card

    side = r"columns: \[chosen\], with kind: text\)" if is_bare else r"columns: \[prompt, chosen\]\)"
    with pytest.raises(HalaError, match=rf"no kind of training learns 'chosen' against 'rejected' \(.*: {side}"):
        chain.prepared()
    if is_bare:
        (tokens,) = chain.prepared(rows="text", columns=["chosen"])
        assert len(tokens[0]) == sum(tokens[1]) + 1
    else:
        (tokens,) = chain.prepared(columns=["prompt", "chosen"])
        assert tokens[0] == tokens_of([*spoken(prompt), *sides[0]])


@pytest.mark.parametrize("form", list(FORMS))
def test_a_training_says_that_it_learns_no_preferences_and_what_it_can_learn(
    chain: Chain, tmp_path: Path, form: str, tokens_of: Callable[..., list[int]]
) -> None:
    """What it says to write is what then works."""
    row, prompt, chosen, _ = FORMS[form]
    folder = chain.translated(write(tmp_path / "a.jsonl", [row]))
    with pytest.raises(HalaError) as refused:
        chain.planned_training(path=folder)
    refusal = str(refused.value)
    assert refusal.startswith(f"task.datasets.d: {folder / 'data'}"), "the file is named"
    assert "data: preferences: no kind of training learns 'chosen' against 'rejected'" in refusal
    (columns, *others) = [listed.split(", ") for listed in re.findall(r"columns: \[(.*?)\]", refusal)]
    assert columns == [f"{name}_ar" for name in row if name != "rejected"] and others == [
        [name for name in row if name != "rejected"]
    ]
    rows = "text" if "kind: text" in refusal else "chat"
    assert rows == ("text" if form == "implicit texts" else "chat")
    (tokens,) = chain.prepared(str(folder), rows, columns=columns)
    if rows == "chat":
        assert tokens[0] == tokens_of([*spoken(prompt), *spoken(chosen)])
    with pytest.raises(HalaError, match="no kind of training learns 'chosen_ar' against 'rejected_ar'"):
        chain.planned_training(path=folder, columns=[f"{name}_ar" for name in row])


def test_preferences_with_tools_keep_their_calls(
    chain: Chain, tmp_path: Path, tokens_of: Callable[..., list[int]]
) -> None:
    def calling(name: str, **arguments: Any) -> list[Row]:
        return [{"role": "assistant", "content": None, "tool_calls": [call(name, arguments)]}]

    tools = [tool("sky", colour=TEXT), tool("sea", depth=NUMBER)]
    rows = [
        {"prompt": [ASKED], "chosen": calling("sky", colour="?"), "rejected": calling("sea", depth=3), "tools": tools},
        {"prompt": [ASKED], "chosen": calling("sea", depth=1), "rejected": calling("sky", colour="x"), "tools": tools},
    ]
    chain.translated(write(tmp_path / "a.jsonl", rows))
    mixed = chain.mixed(columns=["prompt_ar", "chosen_ar", "rejected_ar"])
    prepared = chain.prepared(columns=["prompt", "chosen"])
    for row, carried, (ids, _) in zip(rows, mixed, prepared, strict=True):
        assert json.dumps(carried["tools"]) == json.dumps(tools)
        for side in ("chosen", "rejected"):
            assert carried[side][0]["tool_calls"] == row[side][0]["tool_calls"]  # type: ignore[index]
        assert ids == tokens_of(spoken([*row["prompt"], *row["chosen"]]), tools)  # type: ignore[misc]


def test_preferences_that_prefer_nothing_are_counted(chain: Chain, tmp_path: Path) -> None:
    rows = [
        {"chosen": [ASKED, BLUE], "rejected": [ASKED, GREEN]},
        {"chosen": [ASKED, BLUE], "rejected": [ASKED, BLUE]},
        {"chosen": [ASKED, BLUE], "rejected": [ASKED]},
        {"chosen": [ASKED, BLUE], "rejected": [turn("user", "Another?"), GREEN]},
    ]
    run = chain.run("mix", {"kind": "mix", "sources": {"a": {"path": write(tmp_path / "a.jsonl", rows)}}})
    (line,) = json.loads((run / "final" / "report.json").read_text())["sources"]
    assert {name: line[name] for name in ("rows", "no preference", "empty", "no prompt", "taken")} == {
        "rows": 4, "no preference": 1, "empty": 1, "no prompt": 1, "taken": 1,
    }  # fmt: skip


def test_preferences_that_differ_on_one_side_are_no_duplicates(chain: Chain, tmp_path: Path) -> None:
    rejected = ["It is green.", "Nobody has ever known that, and nobody ever will.", "It is green."]
    rows = [{"prompt": [ASKED], "chosen": [BLUE], "rejected": [turn("assistant", text)]} for text in rejected]
    run = chain.run("mix", {"kind": "mix", "sources": {"a": {"path": write(tmp_path / "a.jsonl", rows)}}})
    assert sorted(row["hala_source_row"] for row in rows_in(run / "final")) == [0, 1]


def others() -> Iterator[tuple[list[Row], dict[str, Any], str]]:
    mixed = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    yield mixed, {"columns": ["prompt", "chosen", "rejected", "more"]}, "no column 'more'"
    yield mixed, {"shape": "preference", "columns": ["chosen"]}, "a preference has two sides"
    odd = [{"prompt": "x", "chosen": [ASKED, BLUE], "rejected": [ASKED, GREEN]}]
    yield odd, {}, "'chosen' and 'rejected' do not begin with what is in 'prompt'"
    yield [{"prompt": "a", "completion": "b", "label": True}], {}, "unpaired preferences"


@pytest.mark.parametrize(("rows", "source", "refusal"), list(others()))
def test_preferences_that_cannot_be_read_are_refused(
    chain: Chain, tmp_path: Path, rows: list[Row], source: dict[str, Any], refusal: str
) -> None:
    with pytest.raises(HalaError, match=refusal):
        chain.run("mix", {"kind": "mix", "sources": {"a": {"path": write(tmp_path / "a.jsonl", rows), **source}}})


def test_preferences_and_conversations_are_no_one_mix(chain: Chain, tmp_path: Path) -> None:
    talk = write(tmp_path / "b.jsonl", [{"messages": [ASKED, BLUE]}])
    sides = write(tmp_path / "a.jsonl", [FORMS["explicit turns"][0]])
    sources = {"b": {"path": talk}, "a": {"path": sides}}
    with pytest.raises(HalaError, match=r"task.sources.a: .*preferences of turns among conversations"):
        chain.run("mix", {"kind": "mix", "sources": sources})
    sources["a"]["columns"] = ["prompt", "chosen"]  # type: ignore[assignment]
    run = chain.run("mix", {"kind": "mix", "sources": sources, "duplicates": ALL})
    assert [row["messages"] for row in rows_in(run / "final")] == [[ASKED, BLUE]] * 2


# --- a prompt and its completion --------------------------------------------------------------------------------------

COMPLETIONS: dict[str, tuple[Row, list[Row], list[Row]]] = {
    "texts": ({"prompt": "The sky is", "completion": " blue."},
              [turn("user", "The sky is")], [turn("assistant", " blue.")]),
    "turns": ({"prompt": [ASKED], "completion": [BLUE]}, [ASKED], [BLUE]),
    "more turns": ({"prompt": EARLIER, "completion": [BLUE]}, EARLIER, [BLUE]),
    "one turn": ({"prompt": ASKED, "completion": BLUE}, [ASKED], [BLUE]),
}  # fmt: skip


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize("form", list(COMPLETIONS))
def test_a_prompt_and_its_completion_need_no_names(
    chain: Chain, tmp_path: Path, form: str, ending: str, tokens_of: Callable[..., list[int]]
) -> None:
    """Only the completion is learned, also by way of a mix."""
    row, prompt, completion = COMPLETIONS[form]
    file = write(tmp_path / f"a.{ending}", [row])
    (direct,) = chain.prepared(str(file), name="direct")
    assert direct[0] == tokens_of([*prompt, *completion])
    chain.translated(file)
    (carried,) = chain.mixed(columns=["prompt_ar", "completion_ar"])
    (ids, loss), *_ = chain.prepared()
    assert ids == tokens_of([*spoken(prompt), *spoken(completion)])
    before = len(tokens_of([*spoken(prompt), turn("assistant", "")])) - 1
    assert not any(loss[:before]) and sum(loss) == len(ids) - before
    assert [message["content"] for message in carried["messages"]][-1] == f"«{completion[0]['content']}»"


def test_a_translated_conversation_is_named_alone(
    chain: Chain, tmp_path: Path, tokens_of: Callable[..., list[int]]
) -> None:
    """What a training's refusal says to write is what works."""
    folder = chain.translated(write(tmp_path / "a.jsonl", [{"messages": [ASKED, BLUE]}]))
    with pytest.raises(HalaError, match=r"columns: \[messages_ar\] or columns: \[messages\]"):
        chain.prepared(str(folder))
    (tokens,) = chain.prepared(str(folder), columns=["messages_ar"])
    assert tokens[0] == tokens_of(spoken([ASKED, BLUE]))


def test_what_a_label_calls_bad_is_not_learned_unseen(chain: Chain, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b", "label": True}, {"prompt": "a", "completion": "c", "label": False}]
    file = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(HalaError, match=r"where: label takes the good ones, columns: \[prompt, completion\]"):
        chain.planned_training(path=file)
    assert len(chain.prepared(str(file), columns=["prompt", "completion"], where="label")) == 1
