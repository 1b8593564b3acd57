"""From files to the collected dataset: what is to be translated is, everything else stays as it was."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hala_hpc.config.compose import compose
from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Data
from hala_hpc.data.bad_rows import BadRows
from hala_hpc.data.cut import PlanWatch
from hala_hpc.data.documents import Columns, reader_of
from hala_hpc.data.files import sources
from hala_hpc.data.files.folders import QUARANTINE
from hala_hpc.data.outputs.collect import collect
from hala_hpc.data.schema import to_rows
from hala_hpc.pipeline.planning import check, plan_run
from hala_hpc.run import manifest
from hala_hpc.run.verify import verify
from hala_hpc.worker import registry
from hala_hpc.worker.job import work_until
from tests.conftest import Hala

TRANSLATED = ("human", "gpt", "user", "assistant")
Run = Callable[..., pa.Table]


@pytest.fixture
def run(tmp_path: Path, write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Plan, work, verify and collect in this process; the prompt is the bare text, so «text» comes back."""
    monkeypatch.chdir(tmp_path)

    def run(*files: Path, words: tuple[str, ...] = (), task: dict[str, Any] | None = None) -> pa.Table:
        recipe = write_recipe(
            task={"prompt": "{text}"} | (task or {}), data={"path": list(files)}, run={"root": tmp_path / "runs"}
        )
        asked = compose(recipe, None, words, registry.options_of)
        planned = plan_run(asked, check(asked), tmp_path / "runs" / asked.name)
        work_until(planned.path, lambda: False)
        facts = manifest.read(planned.manifest).facts
        assert verify(planned.path, registry.create(asked).checker(facts)).proven
        collect(planned.path, planned.final)
        assert not (planned.final / "quarantine.parquet").exists()
        return pq.read_table(planned.final / "data")

    return run


def quoted(turns: list[dict[str, Any]], role: str, text: str) -> list[dict[str, Any]]:
    """What echo makes of a conversation."""
    return [turn | {text: f"«{turn[text]}»"} if turn[role] in TRANSLATED else turn for turn in turns]


def as_written(rows: list[dict[str, Any]]) -> bytes:
    """Bytes of rows but for the order of keys: nulls and absent keys are two, as 1 and 1.0 are."""
    return orjson.dumps(rows, option=orjson.OPT_SORT_KEYS)


@pytest.mark.parametrize(
    ("name", "count"), [("fastchat_dummy_conversation", 500), ("llamafactory_glaive_toolcall_en_demo", 300)]
)
def test_conversations_keep_their_turns(data: Path, run: Run, name: str, count: int) -> None:
    """The real files, whole: every turn that is not to be translated, byte for byte."""
    source = data / "multiturn" / f"{name}.json"
    rows = json.loads(source.read_text())
    found = to_rows(run(source, words=("run.shard_rows=90",)))
    assert len(found) == len(rows) == count
    kept = [{key: row[key] for key in rows[0]} for row in found]
    assert as_written(kept) == as_written(rows)
    new = [row["conversations_ar"] for row in found]
    assert as_written(new) == as_written([quoted(row["conversations"], "from", "value") for row in rows])
    assert [row["hala_row"] for row in found] == list(range(count))
    roles = {turn["from"] for row in rows for turn in row["conversations"]}
    assert roles == ({"human", "gpt"} | ({"function_call", "observation"} if "glaive" in name else set()))


def test_submit_does_all_of_it(data: Path, hala: Hala, write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    source = data / "multiturn" / "llamafactory_glaive_toolcall_en_demo.json"
    words = ("site.executor=debug", "run.shard_rows=70")
    hala("submit", write_recipe(task={"prompt": "{text}"}, data={"path": source}), *words)
    hala("verify", "test")
    hala("collect", "test", "--to", "out")
    rows = json.loads(source.read_text())
    found = [row["conversations_ar"] for row in pq.read_table(tmp_path / "out/data").to_pylist()]
    assert as_written(found) == as_written([quoted(row["conversations"], "from", "value") for row in rows])


CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": "{y}"}'}}
MESSAGES = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi {text} \n "},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "  42\u2028 "},
    {"role": "assistant", "content": "It is 42."},
]
PARTS = [
    {"type": "text", "text": "What is this?"},
    {"type": "image_url", "image_url": {"url": "http://x/y.png"}},
    {"type": "text", "text": " "},
    {"type": "text", "text": "And this?"},
]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def test_messages_with_tool_calls(run: Run, tmp_path: Path) -> None:
    rows = [{"id": 1, "messages": MESSAGES, "tools": [{"name": "f"}]}, {"id": 2, "messages": [], "tools": []}]
    found = to_rows(run(write(tmp_path / "a.jsonl", [*rows, {"id": 3, "messages": None}])))
    assert as_written([{key: row[key] for key in ("id", "messages", "tools")} for row in found[:2]]) == as_written(rows)
    expected = [quoted(MESSAGES[:2], "role", "content"), MESSAGES[2:4], quoted(MESSAGES[4:], "role", "content")]
    assert as_written(found[0]["messages_ar"]) == as_written([turn for turns in expected for turn in turns])
    assert [row["messages_ar"] for row in found[1:]] == [[], None]


def test_messages_of_parts(run: Run, tmp_path: Path) -> None:
    """Text here and parts there: a list of turns all the same."""
    rows = [{"messages": MESSAGES}, {"messages": [{"role": "user", "content": PARTS}]}]
    table = run(write(tmp_path / "a.jsonl", rows))
    assert table.schema.field("messages").type == table.schema.field("messages_ar").type == pa.list_(pa.json_())
    found = to_rows(table)
    assert [row["messages"] for row in found] == [row["messages"] for row in rows]
    parts = found[1]["messages_ar"][0]["content"]
    assert parts == [PARTS[0] | {"text": "«What is this?»"}, PARTS[1], PARTS[2], PARTS[3] | {"text": "«And this?»"}]
    assert found[0]["messages_ar"][2] == MESSAGES[2]


def test_only_parts(run: Run, tmp_path: Path) -> None:
    found = to_rows(run(write(tmp_path / "a.jsonl", [{"messages": [{"role": "user", "content": PARTS}]}])))
    assert as_written(found[0]["messages"][0]["content"]) == as_written(PARTS)
    assert [part.get("text") for part in found[0]["messages_ar"][0]["content"]] == [
        "«What is this?»",
        None,
        " ",
        "«And this?»",
    ]


def test_roles_of_the_recipe(run: Run, tmp_path: Path) -> None:
    found = to_rows(run(write(tmp_path / "a.jsonl", [{"messages": MESSAGES}]), task={"roles": ["system", "tool"]}))
    contents = [turn["content"] for turn in found[0]["messages_ar"]]
    assert contents == ["«Be kind.»", "Hi {text} \n ", None, "«  42\u2028 »", "It is 42."]


def test_alpaca_with_and_without_input(run: Run, tmp_path: Path) -> None:
    one = write(tmp_path / "a.jsonl", [{"instruction": "a", "output": "b"}])
    two = write(
        tmp_path / "b.jsonl",
        [{"instruction": "c", "input": "", "output": "d"}, {"instruction": "e", "input": "f", "output": " "}],
    )
    found = run(one, two)
    assert found.column_names == [
        "instruction",
        "output",
        "input",
        "instruction_ar",
        "input_ar",
        "output_ar",
        "hala_row",
    ]
    assert found["instruction_ar"].to_pylist() == ["«a»", "«c»", "«e»"]
    assert found["input_ar"].to_pylist() == [None, "", "«f»"]
    assert found["output_ar"].to_pylist() == ["«b»", "«d»", " "]


def test_an_input_that_first_appears_late_is_translated(run: Run, tmp_path: Path) -> None:
    rows = [{"instruction": "a", "output": "b"}] * 2_100 + [{"instruction": "a", "input": "late", "output": "b"}]
    assert run(write(tmp_path / "a.jsonl", rows))["input_ar"].to_pylist() == [None] * 2_100 + ["«late»"]


def test_columns_dots_and_prompt(run: Run, tmp_path: Path) -> None:
    rows = [{"translation": {"en": "a", "es": "x"}, "b.c": "d"}, {"translation": None, "b.c": None}]
    found = run(
        write(tmp_path / "a.jsonl", rows),
        words=("data.columns=[translation.en, b.c]",),
        task={"prompt": "To {target}: {text}", "suffix": "_x", "target": "Basque"},
    )
    assert found["translation_en_x"].to_pylist() == ["«To Basque: a»", None]
    assert found["b_c_x"].to_pylist() == ["«To Basque: d»", None]
    assert found["translation"].to_pylist() == [row["translation"] for row in rows]


def test_parquet_columns_travel_untouched(run: Run, tmp_path: Path) -> None:
    turn = pa.struct([("from", pa.dictionary(pa.int32(), pa.string())), ("value", pa.large_string())])
    turns = [[{"from": "human", "value": "hi"}, {"from": "tool", "value": "x"}], None] * 50
    table = pa.table(
        {
            "id": pa.array(range(100), pa.uint16()),
            "conversations": pa.array(turns, pa.list_(turn)),
            "score": pa.array([0.1, None] * 50, pa.float32()),
            "when": pa.array(range(100), pa.timestamp("us", "UTC")),
            "tag": pa.array(["a", "b"] * 50).dictionary_encode(),
            "raw": pa.array([b"\x00\xff"] * 100),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=30)
    found = run(tmp_path / "a.parquet", words=("run.shard_rows=9",))
    original = pq.read_table(tmp_path / "a.parquet")
    assert found.select(original.column_names).schema == original.schema
    assert found.select(original.column_names).to_pylist() == original.to_pylist()
    assert found["conversations_ar"].type == original["conversations"].type
    assert found["conversations_ar"][0].as_py() == [{"from": "human", "value": "«hi»"}, {"from": "tool", "value": "x"}]


def notes_of(run: str) -> dict[str, int]:
    return manifest.read(Path("runs") / run / "manifest.parquet").facts.notes


def test_a_collected_folder_takes_a_second_language(run: Run, tmp_path: Path) -> None:
    """The originals are translated again, not the translations; the earlier run's number of a row is kept."""
    rows = [{"conversations": [{"from": "human", "value": f"h{n}"}, {"from": "tool", "value": "t"}]} for n in range(3)]
    run(write(tmp_path / "a.jsonl", rows), words=("data.limit=2",))
    folder = tmp_path / "runs/test/final"
    which = ("data.shape=conversations", "data.columns=[conversations]")
    found = run(folder, words=("name=two", "task.suffix=_eu", "task.prompt='<{text}>'", *which))
    assert found.column_names == ["conversations", "conversations_ar", "hala_row_1", "conversations_eu", "hala_row"]
    assert found["conversations"].to_pylist() == [row["conversations"] for row in rows[:2]]
    assert [turns[0]["value"] for turns in found["conversations_ar"].to_pylist()] == ["«h0»", "«h1»"]
    assert [turns[0]["value"] for turns in found["conversations_eu"].to_pylist()] == ["«<h0>»", "«<h1>»"]
    assert found["hala_row_1"].to_pylist() == found["hala_row"].to_pylist() == [0, 1]
    card = (tmp_path / "runs/two/final/README.md").read_text()
    for name in ("conversations_ar", "conversations_eu"):
        assert f"| `{name}` | translation of `conversations` |" in card
    assert notes_of("two") == {
        "turns of 'tool' are left as they are": 2,
        "columns of an earlier run are renamed: hala_row to hala_row_1": 1,
    }
    third = run(tmp_path / "runs/two/final", words=("name=three", "task.suffix=_fr", *which)).column_names
    assert third[2:] == ["hala_row_2", "conversations_eu", "hala_row_1", "conversations_fr", "hala_row"]


def test_rows_in_quarantine_are_no_data(tmp_path: Path) -> None:
    """Not by a folder that holds the collected one, not by a glob; named by its path the file is read."""
    (tmp_path / "sets/one/data").mkdir(parents=True)
    done, held = tmp_path / "sets/one/data/train-00000-of-00001.parquet", tmp_path / "sets/one/quarantine.parquet"
    pq.write_table(pa.table({"text": ["a"]}), done)
    pq.write_table(pa.table({"text": ["b"], "hala_error": ["empty: x"]}), held)
    for path in (tmp_path / "sets", tmp_path / "sets/**/*.parquet"):
        notes: Counter[str] = Counter()
        opened = sources.open_sources(Data(path=[str(path)]), tmp_path, print, BadRows(notes=notes))
        assert [source.path for source in opened] == [done]
        assert notes == {QUARANTINE: 1}
    assert sources.resolve(Data(path=[str(held)])) == [held]
    pq.write_table(pa.table({"text": ["b"]}), held)
    assert sources.resolve(Data(path=[str(tmp_path / "sets")])) == [done, held]


def test_a_run_is_the_rows_that_were_collected_of_it(run: Run, tmp_path: Path) -> None:
    run(write(tmp_path / "a.jsonl", [{"text": "a"}]))
    path = tmp_path / "runs/test"
    assert sources.resolve(Data(path=[str(path)])) == [path / "final/data/train-00000-of-00001.parquet"]
    (path / "final").rename(tmp_path / "elsewhere")
    said = r"runs/test is a run whose rows are not collected \(`hala collect .*runs/test` makes its rows data\)"
    with pytest.raises(HalaError, match=said):
        sources.resolve(Data(path=[str(path)]))


@pytest.mark.parametrize("is_marked", [True, False])
def test_a_training_is_told_which_column_is_the_translation(run: Run, tmp_path: Path, is_marked: bool) -> None:
    run(write(tmp_path / "a.jsonl", [{"instruction": "a", "output": "b", "output_type": 5}]))
    folder = tmp_path / "runs/test/final"
    table = pq.read_table(file := next(folder.glob("data/*.parquet")))
    schema = table.schema if is_marked else pa.schema([field.with_metadata(None) for field in table.schema])
    assert pq.read_schema(file).field("output_ar").metadata[b"hala.of"] == b"output"
    with pytest.raises(HalaError) as caught:
        reader_of("chat", Data(), schema)
    assert str(caught.value) == (
        "data: rows that a run translated: 'instruction' is the original of 'instruction_ar' "
        "(say which is meant: columns: [instruction_ar, output_ar] or columns: [instruction, output])"
    )
    for columns in (["instruction_ar", "output_ar"], ["instruction", "output"]):
        assert reader_of("chat", Data(columns=columns), schema) == Columns((columns[0],), columns[1], chat=True)


def test_what_stays_as_it_is_is_counted(run: Run, tmp_path: Path, write_recipe: Callable[..., Path]) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "tool_use", "input": {"text": "b"}}]
    rows: list[Any] = [
        {"messages": [{"role": "user", "content": parts}, {"role": "agent", "content": "c"}], "source": "wiki"},
        {"messages": [{"role": "agent", "content": "d"}], "source": "wiki"},
        {"messages": [{"role": "user", "content": "long " * 20}], "source": ""},
    ]
    file = write(tmp_path / "a.jsonl", rows)
    assert run(file).num_rows == 3
    expected = {
        "turns of 'agent' are left as they are": 2,
        "parts of type 'tool_use' are left as they are": 1,
        "rows hold text in a column that is left as it is: 'source'": 2,
        "rows hold no text to work on": 1,
    }
    assert notes_of("test") == expected
    assert "| note | 2 turns of 'agent' are left as they are |" in (tmp_path / "runs/test/final/README.md").read_text()
    engine = {"kind": "vllm", "max_model_len": 30}
    recipe = compose(
        write_recipe(engine=engine, sampling={"max_tokens": 10}, data={"path": file}), None, (), registry.options_of
    )
    cut = registry.create(recipe).plan(tmp_path, PlanWatch())
    words = "texts are, by estimate, longer than the 20 tokens that the model has for them"
    assert cut.facts.notes == expected | {words: 1}


def test_a_guess_that_misses_most_rows_is_refused(run: Run, tmp_path: Path) -> None:
    rows: list[Any] = [{"messages": [{"role": "user", "content": "a"}]}] + [{"question": "b"}] * 9
    file = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(HalaError, match=r"9 of 10 rows hold text only in other columns \('question'\)"):
        run(file)
    found = run(file, words=("data.shape=messages",))
    assert found["messages_ar"].to_pylist() == [[{"role": "user", "content": "«a»"}]] + [None] * 9
    assert notes_of("test")["rows hold no text to work on"] == 9


def test_answer_options_and_preferences_are_translated_in_place(run: Run, tmp_path: Path) -> None:
    chosen = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    row = {"choices": ["x", "", "y"], "chosen": chosen, "rejected": chosen[1], "faq": [{"q": ["m"], "id": "7"}]}
    found = run(
        write(tmp_path / "a.jsonl", [row]), words=("data.columns=[choices,chosen,rejected,'faq[].q']",)
    ).to_pylist()[0]
    assert {name: found[name] for name in row} == row
    assert found["choices_ar"] == ["«x»", "", "«y»"]
    assert as_written([found["chosen_ar"]]) == as_written([quoted(chosen, "role", "content")])
    assert found["rejected_ar"] == chosen[1] | {"content": "«a»"}
    assert found["faq_ar"] == [{"q": ["«m»"], "id": "7"}]


def test_conversations_keep_their_form(run: Run, tmp_path: Path) -> None:
    """A sequence of dicts, as Parquet of older `datasets` has it, and JSON text."""
    columns = {"from": ["human", "gpt"], "value": ["a", "b"]}
    text = json.dumps(turns := [{"role": "user", "content": "é"}], ensure_ascii=False)
    table = pa.table({"conversations": [columns], "talk": [text]})
    pq.write_table(table, tmp_path / "a.parquet")
    found = run(tmp_path / "a.parquet", words=("data.shape=conversations", "data.columns=[conversations,talk]"))
    assert found.schema.field("conversations_ar").type == table.schema.field("conversations").type
    assert found["conversations_ar"].to_pylist() == [columns | {"value": ["«a»", "«b»"]}]
    assert found["talk_ar"].to_pylist() == [text.replace("é", "«é»")]
    assert json.loads(found["talk_ar"][0].as_py()) == quoted(turns, "role", "content")


def test_kinds() -> None:
    assert "translate" in registry.KINDS.names()
    with pytest.raises(HalaError, match="no task 'rows'"):
        registry.KINDS.load("rows")


def test_a_hub_dataset_in_a_folder(hala: Hala, write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    """Offline, as compute nodes are; the library's cache is the site's."""
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "train.jsonl", [{"text": f"t{n}"} for n in range(5)])
    site = {"cache": "cache", "offline": True}
    recipe = write_recipe(task={"prompt": "{text}"}, data={"hub": "./set", "limit": 4}, site=site)
    hala("plan", recipe, "--create")
    hala("worker", "runs/test")
    hala("collect", "test")
    assert pq.read_table(tmp_path / "runs/test/final/data")["text_ar"].to_pylist() == [f"«t{n}»" for n in range(4)]
    assert (tmp_path / "cache").is_dir()
