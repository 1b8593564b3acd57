"""From files to the collected dataset: what is to be translated is, everything else stays as it was."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hala_hpc import tasks
from hala_hpc.cli.planning import check, plan_run
from hala_hpc.config.compose import compose
from hala_hpc.config.errors import HalaError
from hala_hpc.data.collect import collect
from hala_hpc.data.schema import to_rows
from hala_hpc.run import manifest
from hala_hpc.run.verify import verify
from hala_hpc.worker.main import StopFlag, work
from tests.conftest import Hala

TRANSLATED = ("human", "gpt", "user", "assistant")
Run = Callable[..., pa.Table]


@pytest.fixture
def run(tmp_path: Path, write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Plan, work, verify and collect in this process; the prompt is the bare text, so «text» comes back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(StopFlag, "install", lambda _: None)

    def run(*files: Path, words: tuple[str, ...] = (), task: dict[str, Any] | None = None) -> pa.Table:
        recipe = write_recipe(
            task={"prompt": "{text}"} | (task or {}), data={"path": list(files)}, run={"root": tmp_path / "runs"}
        )
        asked = compose(recipe, None, words, tasks.options_of)
        planned = plan_run(asked, check(asked), tmp_path / "runs" / asked.name)
        work(planned.path, StopFlag())
        facts = manifest.read(planned.manifest).facts
        assert verify(planned.path, tasks.create(asked).checker(facts)).proven
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


def test_kinds() -> None:
    assert "translate" in tasks.KINDS.names()
    with pytest.raises(HalaError, match="no task 'rows'"):
        tasks.KINDS.load("rows")


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
