"""Runs of ``task.kind: score``: what they come to, what they refuse, and that a kill costs nothing."""

import csv
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hala_hpc.config.compose import compose
from hala_hpc.config.errors import HalaError
from hala_hpc.data.cut import Cut, PlanWatch
from hala_hpc.data.schema import to_rows
from hala_hpc.data.where import Where
from hala_hpc.report import write
from hala_hpc.run.layout import RunDirectory
from hala_hpc.tasks.score import scores
from hala_hpc.tasks.score.task import INPUT
from hala_hpc.worker import registry
from tests.conftest import ROOT, SMALL_VLLM, Hala
from tests.worker import helpers

PROMPT = "Translate everything that follows into Arabic: "
Write = Callable[..., Path]


def flores(data: Path, name: str, most: int) -> list[str]:
    return (data / "parallel" / "flores200" / f"{name}.devtest").read_text("utf-8").splitlines()[:most]


@pytest.fixture
def sides(data: Path, tmp_path: Path) -> Path:
    """Arabic of FLORES as references; a system that loses each fourth word, and one that loses each third."""
    references, english = flores(data, "arb_Arab", 200), flores(data, "eng_Latn", 200)
    systems = {
        name: [" ".join(word for at, word in enumerate(text.split(), 1) if at % step) for text in references]
        for name, step in (("fourth", 4), ("third", 3))
    }
    table = {"id": [f"q{number}" for number in range(200)], "human": references, "english": english, **systems}
    pq.write_table(pa.table(table), tmp_path / "sides.parquet")
    return tmp_path


def recipe(folder: Path, name: str = "s", **changes: Any) -> Path:
    """Both systems against the references, in one file."""
    file = str(folder / "sides.parquet")
    task = {
        "kind": "score",
        "references": {"path": file, "column": "human"},
        "systems": {label: {"path": file, "column": label} for label in ("fourth", "third")},
        "resamples": 50,
    } | changes
    run = {"root": str(folder / "runs"), "lease_seconds": 1.2}
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps({"name": name, "task": task, "run": run}))
    return path


def planned(folder: Path, **changes: Any) -> Cut:
    composed = compose(recipe(folder, **changes), None, [], registry.options_of)
    (folder / "planned").mkdir(exist_ok=True)
    return registry.create(composed).plan(folder / "planned", PlanWatch())


def result(run: Path) -> scores.Scores:
    return scores.from_json(json.loads((run / "final" / scores.SCORES).read_text()))


def test_a_run_scores_as_the_command_does(hala: Hala, sides: Path) -> None:
    hala("plan", recipe(sides, sources={"path": "sides.parquet", "column": "english"}, resamples=1000), "--create")
    hala("worker", "s")
    assert "proven: every score is what its rows say" in hala("verify", "s").stdout
    found = result(sides / "runs" / "s")
    table = pq.read_table(sides / "sides.parquet")
    for name in ("human", "fourth", "third"):
        (sides / name).write_text("".join(f"{text}\n" for text in table[name].to_pylist()), "utf-8")
    expected = hala.json("score", "human", "fourth", "third", "--paired")
    assert found.as_json()["signatures"] == expected["signatures"]
    assert {name: system["scores"] for name, system in found.as_json()["systems"].items()} == {
        name: system["scores"] for name, system in expected["systems"].items()
    }
    third = found.systems["third"].scores["bleu"]
    assert third.p is not None and third.p < 0.05 and third.score < found.systems["fourth"].scores["bleu"].score


def test_conditions_reach_the_scores_of_each_row(hala: Hala, sides: Path) -> None:
    hala("plan", recipe(sides, metrics=["chrf", "bleu"], key="id"), "--create")
    hala("worker", "s")
    table = pq.read_table(sides / "runs" / "s" / "final" / scores.ROWS)
    rows = to_rows(table)
    assert [row["key"] for row in rows[:2]] == ["q0", "q1"]
    bad = Where("third.chrf < fourth.chrf and third.bleu < 10", table.schema)
    assert 10 < sum(map(bad.holds, rows)) < 190
    hala("collect", "s", "--to", "scores")
    assert "| `third` |" in (sides / "scores" / "report.md").read_text()


def test_a_killed_run_goes_on_to_the_same_scores(hala: Hala, sides: Path) -> None:
    hala("plan", recipe(sides, "whole", resamples=10_000), "--create")
    hala("worker", "whole")
    hala("plan", recipe(sides, "killed", resamples=10_000), "--create")
    run = RunDirectory(sides / "runs" / "killed", "")
    worker = helpers.start(run.path)
    outputs = [run.shard_output(0), run.shard_output(1)]  # a worker takes them in any order
    helpers.wait_until(lambda: any(output.exists() for output in outputs), 60)
    os.kill(worker.pid, signal.SIGKILL)
    worker.communicate()
    (done,) = (output for output in outputs if output.exists())
    assert not run.final.exists()
    assert "1 of 2 shards not finished" in hala("verify", "killed", code=1).stderr
    first = done.stat().st_mtime_ns
    hala("worker", "killed")
    assert done.stat().st_mtime_ns == first, "what was finished is not done again"
    for name in (scores.SCORES, scores.ROWS):
        assert (run.final / name).read_bytes() == (sides / "runs" / "whole" / "final" / name).read_bytes()


def test_texts_that_changed_since_the_plan_are_refused(hala: Hala, sides: Path) -> None:
    hala("plan", recipe(sides), "--create")
    file = sides / "runs" / "s" / INPUT
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    file.write_bytes(whole)
    assert f"{INPUT} is damaged" in hala("worker", "s", code=1).stdout


def test_scores_are_computed_again_to_prove_them(hala: Hala, sides: Path) -> None:
    hala("plan", recipe(sides), "--create")
    hala("worker", "s")
    output = RunDirectory(sides / "runs" / "s", "").shard_output(1)
    record = json.loads((output / scores.RESULT).read_text())
    assert list(scores.faults(output, record["digest"], 200, 50)) == []
    assert list(scores.faults(output, "other", 200, 50)) == ["it is of other texts"]
    assert list(scores.faults(output, record["digest"], 201, 50)) == ["it has 200 rows, 201 were planned"]
    record["scores"]["bleu"] += 0.01
    (output / scores.RESULT).write_text(json.dumps(record))
    (fault,) = scores.faults(output, record["digest"], 200, 50)
    assert fault.endswith("is not what its rows say")
    assert f"{scores.RESULT} has" in hala("verify", "s", code=1).stderr


def translated(hala: Hala, folder: Path, name: str, **engine: Any) -> None:
    """A finished translation of English by the echo engine, each row with what a person would write."""
    rows = [{"id": number, "text": f"word{number} here", "human": f"{PROMPT}word{number} here"} for number in range(40)]
    (folder / "in.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    task = {"kind": "translate", "segments": {"tokens": 0}}
    whole = {"name": name, "task": task, "engine": {"kind": "echo", **engine}}
    whole |= {"data": {"path": str(folder / "in.jsonl"), "columns": ["text"]}, "model": {"name": f"some/{name}"}}
    (folder / f"{name}.yaml").write_text(json.dumps(whole))
    hala("plan", f"{name}.yaml", "--create", "site.slurm.gpus_per_worker=2")
    hala("worker", name)


@pytest.fixture
def runs(hala: Hala, tmp_path: Path) -> dict[str, Any]:
    """Recipes of scores of two translations: one has three rows in quarantine."""
    translated(hala, tmp_path, "slow", seconds=0.1, capacity=4)
    translated(hala, tmp_path, "fast", fail_on="word3 ")
    return {
        "references": {"path": "run:fast", "column": "human"},
        "sources": {"path": "run:fast", "column": "text"},
        "systems": {name: {"path": f"run:{name}", "column": "text_ar"} for name in ("slow", "fast")},
        "metrics": ["rouge_l", "tree_sim"],
    }


def test_runs_stand_with_what_they_cost(hala: Hala, tmp_path: Path, runs: dict[str, Any]) -> None:
    said = hala("plan", recipe(tmp_path, **runs), "--create", code=2).stderr
    assert "fast lacks 1 row (missing: leave_out" in said
    hala("plan", recipe(tmp_path, **runs, missing="empty"), "--create")
    hala("worker", "s")
    found = result(tmp_path / "runs" / "s")
    slow, fast = found.systems["slow"], found.systems["fast"]
    assert (slow.missing, fast.missing, fast.empty) == (0, 1, 1)
    assert slow.scores["rouge_l"].score == 1 and fast.scores["rouge_l"].score == pytest.approx(39 / 40)
    assert slow.run is not None and fast.run is not None
    assert (slow.run["model"], slow.run["gpus_per_worker"]) == ("some/slow", 2)
    assert 0 < slow.run["of_gpu"] == pytest.approx(slow.run["output_tokens_per_second"] / 2, abs=1e-3)
    # 40 rows of eight tokens, four side by side, 0.1 s each: at most 320 tokens a second.
    assert slow.run["output_tokens"] == 320 and slow.run["output_tokens_per_second"] < 330
    report = write.gather([tmp_path / "runs" / "s"], write.ReportOptions(examples=1))
    tables = {table.name: table for table in report.tables}
    assert [row[0].value for row in tables["scores-s-runs"].rows] == ["slow", "fast"]
    assert tables["scores-s"].rows[1][-1].value == 1
    assert [cell.value for cell in tables["scores-s-signatures"].rows[0]] == ["ROUGE-L", found.signatures["rouge_l"]]
    assert tables["scores-s-tests"].rows[1][-1].value == fast.scores["rouge_l"].p
    (section,) = (section for section in report.sections if section.name == "scores-s")
    assert any("1 texts missing" in text for text in section.text)
    assert ("fast", "") in section.examples[1].texts, "the row in quarantine is the worst one"


def test_rows_that_a_system_lacks_are_left_out_of_all(hala: Hala, tmp_path: Path, runs: dict[str, Any]) -> None:
    hala("plan", recipe(tmp_path, **runs, missing="leave_out"), "--create")
    hala("worker", "s")
    found = result(tmp_path / "runs" / "s")
    assert found.rows == 39 and found.systems["fast"].scores["rouge_l"].score == 1
    assert found.systems["fast"].missing == 1 and found.systems["fast"].empty == 0
    assert found.notes == {"rows left out, which a system lacks": 1}
    assert "1 rows left out" in hala("plan", recipe(tmp_path, "again", **runs, missing="leave_out")).stdout


def test_a_key_pairs_rows_in_any_order(sides: Path) -> None:
    rows = to_rows(pq.read_table(sides / "sides.parquet"))
    lines = [json.dumps({"id": row["id"], "ar": row["third"]}) for row in reversed(rows)]
    (sides / "mixed.jsonl").write_text("\n".join(lines))
    systems = {
        "in_order": {"path": str(sides / "sides.parquet"), "column": "third"},
        "mixed": {"path": str(sides / "mixed.jsonl"), "column": "ar"},
    }
    planned(sides, key="id", systems=systems)
    table = pq.read_table(sides / "planned" / INPUT)
    assert table["system.mixed"].to_pylist() == table["system.in_order"].to_pylist()
    (sides / "mixed.jsonl").write_text("\n".join([*lines[5:], json.dumps({"id": "new", "ar": "x"})]))
    with pytest.raises(HalaError, match="1 row without a reference: new"):
        planned(sides, key="id", systems=systems)
    cut = planned(sides, key="id", systems=systems, missing="leave_out")
    assert cut.facts.notes == {"rows of mixed without a reference": 1, "rows left out, which a system lacks": 5}
    (sides / "mixed.jsonl").write_text("\n".join([*lines, lines[0]]))
    with pytest.raises(HalaError, match=r"the key 'q199' is there twice"):
        planned(sides, key="id", systems=systems)


def refusals() -> Iterator[tuple[dict[str, Any], str]]:
    file = "sides.parquet"
    yield {"systems": {}}, "task.systems is missing"
    yield {"systems": {"a/b": {"path": file}}}, "cannot be a label"
    yield {"systems": {"key": {"path": file}}}, "'key' is a column of the scored rows"
    yield {"systems": {"a": {"column": "x"}}}, "nothing says where a are"
    yield {"systems": {"a": {"path": file}}}, "task.systems.a: .*which column"
    yield {"systems": {"a": {"path": file, "column": "thrid"}}}, "no column 'thrid' .did you mean 'third'"
    yield {"systems": {"a": {"path": file, "column": "third", "limit": 9}}}, "a: 9 rows, and the references have 200"
    yield {"systems": {"a": {"path": file, "columns": ["third"]}}}, "columns: third: a side has one"
    yield {"systems": {"a": {"path": file, "column": "third", "bad_rows": "set_aside"}}}, "shifts the rows after it"
    yield {"key": "id", "systems": {"a": {"path": "lines.txt"}}}, "which column"
    yield {"metrics": ["comet"]}, "no metric 'comet'"
    yield {"metrics": []}, "task.metrics: is empty"
    yield {"baseline": "fifth"}, "no system 'fifth'"
    yield {"resamples": -1}, "must be 0 or more"
    yield {"key": "number"}, "there is no column 'number'"


@pytest.mark.parametrize(
    ("changes", "said"), list(refusals()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_refused(sides: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], said: str) -> None:
    monkeypatch.chdir(sides)
    (sides / "lines.txt").write_text("one\n" * 200)
    with pytest.raises(HalaError, match=said):
        planned(sides, **changes)


ENGINE = ("engine.dtype=float32", "engine.max_model_len=512", "engine.enforce_eager=true", "engine.max_num_seqs=8")


@pytest.mark.exhaustive
@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_the_recipes_on_a_tiny_model(
    data: Path, hala: Hala, tmp_path: Path, serve_python: Path, tiny_model: Callable[[str], Path]
) -> None:
    """MMLU's questions through real vLLM, twice, then scored, as the recipes of Hala's translator do it."""
    sides = {"question": "mmlu_english/test/anatomy_test.csv", "reference": "mmlu_arabic/test/anatomy_test.csv"}
    table = {}
    for name, file in sides.items():
        with (data / "arabic_bench" / file).open(encoding="utf-8") as rows:
            table[name] = [row[0] for row in csv.reader(rows)][-12:]  # the English has a line of names at its beginning
    pq.write_table(pa.table(table), tmp_path / "pairs.parquet")
    jobs = ROOT / "jobs" / "hala"
    for name in ("translate-mmlu-before", "translate-mmlu-after"):
        words = (f"name={name}", f"model.name={tiny_model('llama')}", f"data.path={tmp_path / 'pairs.parquet'}")
        words += (*ENGINE, "site.slurm.gpus_per_worker=0", "sampling.max_tokens=24")
        words += ('task.prompt="Translate from English to Arabic: {text}"',) if name.endswith("before") else ()
        hala("plan", jobs / "translate-mmlu.yaml", "--create", *words)
        env = hala.env | SMALL_VLLM
        command = [serve_python, "-m", "hala_hpc.worker", tmp_path / "runs" / name]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    hala("plan", jobs / "score-translator.yaml", "--create")
    command = [serve_python, "-m", "hala_hpc.worker", tmp_path / "runs" / "score-translator"]
    subprocess.run(command, env=hala.env, capture_output=True, check=True)
    hala("verify", "score-translator")
    found = result(tmp_path / "runs" / "score-translator")
    assert found.rows == 12 and found.baseline == "before"
    for system in found.systems.values():
        assert system.run is not None and system.run["output_tokens"] > 0
        assert system.run["output_tokens_per_second"] > system.run["output_tokens"] / (system.run["hours"] * 3600)
        assert 0 <= system.scores["chrf"].score < 30, "a random model's noise"
    hala("report", "score-translator", "--to", "report", "--format", "md")
    assert "### What they cost" in (tmp_path / "report" / "report.md").read_text()
