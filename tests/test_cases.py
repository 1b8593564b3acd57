"""Small inputs after public reports of other tools' users: each is done as its owner would want it, or told in a line.

Like the real text, they are no part of the project: ../shared/cases, or where HALA_TEST_CASES points. What each stands
for has tests of its own, with inputs of their own, beside the code that mends it.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.data import schema
from hala_hpc.pipeline import lookup, planning
from hala_hpc.run import manifest
from hala_hpc.worker.job import work_until
from tests.conftest import ROOT
from tests.worker.helpers import proof


@pytest.fixture(scope="session")
def cases() -> Path:
    path = Path(os.environ.get("HALA_TEST_CASES", ROOT.parent / "shared" / "cases"))
    if not path.is_dir():
        pytest.skip(f"no cases at {path} (set HALA_TEST_CASES)")
    return path


@dataclass(frozen=True)
class Case:
    """A file, what the command line adds, and what comes of it: rows, notes, and a column of the first row."""

    file: str
    words: Sequence[str] = ()
    rows: int = 1
    notes: dict[str, int] = field(default_factory=dict)
    column: str = "text_ar"
    value: Any = None


LEFT = "rows hold text in a column that is left as it is: "
TOOLS = {
    "turns hold 'tool_calls' beside their text, which is left as it is": 2,
    "turns of 'tool' are left as they are": 2,
    f"{LEFT}'tools'": 2,
}
HI = [{"role": "user", "content": "«Hi»"}, {"role": "assistant", "content": "«Hello»"}]
DONE = [
    Case("a.jsonl.zst", value="«a»"),
    Case("alpaca_history.jsonl", notes={f"{LEFT}'system'": 1, f"{LEFT}'history'": 1}, column="output_ar",
         value="«Cold.»"),
    Case("badrow.jsonl", ["data.bad_rows=set_aside"], 2, {"rows set aside: not valid JSON": 1}, "output_ar", "«b»"),
    Case("badutf8.jsonl", ["data.bad_rows=set_aside"], 1, {"rows set aside: not UTF-8": 1}, value="«ok»"),
    Case("choices.jsonl", ["data.columns=[question,choices]"], column="choices_ar", value=["«Paris»", "«Rome»"]),
    Case("conversations_role_content.jsonl", column="conversations_ar", value=HI),
    Case("crlf.jsonl", rows=2, value="«a»"),
    Case("forty.jsonl", rows=40),
    Case("hfjson.parquet", rows=2, notes=TOOLS, column="messages_ar"),
    Case("hfjson_auto.parquet", rows=2, notes=TOOLS, column="messages_ar"),
    Case("hfrepo", ["data.split=train"], 2, column="instruction_ar", value="«train1»"),
    Case("latin1.csv", ["data.encoding=latin-1"], notes={f"{LEFT}'lang'": 1}, value="«café»"),
    Case("messages_as_text.parquet", rows=3, column="messages_ar", value=json.dumps(HI, ensure_ascii=False)),
    Case("numtext.jsonl", ["data.bad_rows=set_aside"], 1,
         {"rows set aside: column 'output' holds a number, not text": 1}, "output_ar", "«4»"),
    Case("oddmsgs2.jsonl", rows=3, notes={"parts of type 'image_url' are left as they are": 1,
         "turns hold 'tool_calls' beside their text, which is left as it is": 1}, column="messages_ar"),
    Case("roles.jsonl", rows=2, notes={"turns of 'agent' are left as they are": 1}, column="messages_ar"),
    Case("sections.jsonl", column="instruction_ar", value="«Fix this»"),
    Case("semicolon.csv", ["data.delimiter=;"], column="input_ar", value="«2, 3»"),
    Case("sharegpt6.jsonl", rows=6, column="conversations_ar",
         value=[{"from": "human", "value": "«Question 0»"}, {"from": "gpt", "value": "«Answer 0»"}]),
    Case("surrogate.jsonl", rows=3, notes={"rows with half a surrogate pair: replaced by U+FFFD": 1},
         column="output_ar", value="«Hi 😀»"),
    Case("tabs.tsv", column="input_ar", value="«2, 3»"),
    Case("think.jsonl", notes={"turns hold 'reasoning_content' beside their text, which is left as it is": 1},
         column="messages_ar"),
    Case("tools.jsonl", rows=2, notes=TOOLS, column="messages_ar"),
    Case("weights.jsonl", column="messages_ar"),
]  # fmt: skip
REFUSED = [
    ("badrow.jsonl", r"badrow.jsonl:2: not valid JSON"),
    ("badutf8.jsonl", r"badutf8.jsonl:1: not UTF-8.*data.encoding"),
    ("dup.parquet", r"two columns are named 'text'"),
    ("dupkeys.jsonl", r"dupkeys.jsonl:1: the key 'text' is there twice"),
    ("hfrepo", r"several splits: train \(1\), test \(1\) .*data.split=train"),
    ("latin1.csv", r"line 2: not UTF-8 .*data.encoding"),
    ("numtext.jsonl", r"row 2: column 'output' holds a number, not text .*data.bad_rows"),
    ("semicolon.csv", r"data.delimiter=';'"),
    ("tab.jsonl", r"tab.jsonl:1: not valid JSON: unexpected control character"),
]


def planned(folder: Path, data: Path, words: Sequence[str] = ()) -> Path:
    recipe = {
        "name": "r",
        "task": {"kind": "translate", "prompt": "{text}", "segments": {"tokens": 0}},
        "engine": {"kind": "echo"},
        "data": {"path": [str(data)]},
        "run": {"root": str(folder / "runs")},
    }
    (folder / "r.json").write_text(json.dumps(recipe))
    asked = lookup.load(folder / "r.json", "local", tuple(words))
    return planning.plan_run(asked, planning.check(asked), Path(asked.run.root) / "r").path


@pytest.mark.parametrize("case", DONE, ids=lambda case: case.file)
def test_what_people_have_is_translated_and_what_is_left_is_counted(cases: Path, tmp_path: Path, case: Case) -> None:
    run = planned(tmp_path, cases / case.file, case.words)
    work_until(run, lambda: False)
    assert proof(run).proven
    assert manifest.read(run / "manifest.parquet").facts.notes == case.notes
    files = sorted((run / "shards").rglob("*.parquet"))
    rows = [row for file in files for row in schema.to_rows(pq.ParquetFile(file).read())]
    assert len(rows) == case.rows and all(row["hala_error"] is None for row in rows)
    if case.value is not None:
        assert rows[0][case.column] == case.value


@pytest.mark.parametrize("file", ["tools.jsonl", "hfjson.parquet", "hfjson_auto.parquet"])
def test_tool_calls_have_their_own_arguments_and_no_others(cases: Path, tmp_path: Path, file: str) -> None:
    run = planned(tmp_path, cases / file)
    work_until(run, lambda: False)
    files = sorted((run / "shards").rglob("*.parquet"))
    rows = [row for path in files for row in schema.to_rows(pq.ParquetFile(path).read())]
    calls = [call["function"] for row in rows for turn in row["messages_ar"] for call in turn.get("tool_calls") or []]
    arguments = {call["name"]: call["arguments"] for call in calls}
    assert arguments["weather"] == {"city": "Paris"} and arguments["add"].keys() == {"x", "y"}


@pytest.mark.parametrize(("file", "told"), REFUSED)
def test_what_cannot_be_taken_is_told_in_a_line(cases: Path, tmp_path: Path, file: str, told: str) -> None:
    with pytest.raises(HalaError, match=told):
        planned(tmp_path, cases / file)
    assert not list(tmp_path.glob("runs/*"))
