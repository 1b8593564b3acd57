"""A result follows from its samples, and whoever changes one of the two is found out."""

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.tasks.evaluate import results
from tests.tasks.evaluate.samples import SAMPLES, written


def test_the_score_is_the_mean_of_tasks_not_of_questions(tmp_path: Path) -> None:
    result = written(tmp_path / "r")
    assert (result.tasks["arabic_mmlu:a"].score, result.tasks["arabic_mmlu:b"].score) == (0.75, 0.0)
    assert result.score == 0.375
    assert result.questions_per_second == 1.5, "as it was told: of questions that an engine answered just now"
    scores = [1.0, 0.0, 1.0, 1.0]
    assert result.tasks["arabic_mmlu:a"].stderr == pytest.approx(statistics.stdev(scores) / math.sqrt(4), abs=1e-15)
    assert math.isnan(result.tasks["arabic_mmlu:b"].stderr), "of a single question nothing is known"
    assert json.loads((tmp_path / "r" / "result.json").read_text())["tasks"]["arabic_mmlu:b"]["stderr"] is None
    assert results.contradictions(tmp_path / "r") == []
    assert results.contradictions(tmp_path / "r") == []


def test_samples_come_back_as_they_were(tmp_path: Path) -> None:
    rows = results.samples(written(tmp_path / "r").folder).to_pylist()
    assert [(row["task"], row["index"], row["score"]) for row in rows] == [
        (sample.task, sample.index, sample.score) for sample in SAMPLES
    ]
    assert rows[2]["choices"] == ["0", "1", "2"] and rows[2]["gold"] == [1] and rows[2]["question"] == "سؤال 2"
    assert json.loads(rows[0]["metrics"]) == {"acc_norm": 1.0}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda told: told | {"score": 0.38}, "its tasks give 0.375000, result.json has 0.380000"),
        (lambda told: told | {"questions": 6}, "has 6 questions"),
        (lambda told: told | {"benchmark": "aratrust"}, "questions of aratrust"),
        (lambda told: told["tasks"]["arabic_mmlu:a"].update(score=0.8) or told, "samples give 0.750000"),
        (lambda told: told["tasks"].pop("arabic_mmlu:b") and told, "not the same"),
        (lambda told: told | {"surprise": 1}, "cannot be read"),
    ],
)
def test_a_changed_summary_is_found(tmp_path: Path, change: Any, said: str) -> None:
    path = written(tmp_path / "r").folder / results.RESULT
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    assert said in "; ".join(results.contradictions(tmp_path / "r"))


@pytest.mark.parametrize(
    ("row", "changes", "said"),
    [
        (1, {"score": 1.0}, "its score cannot be 1.0"),
        (0, {"answer": 1}, "the likeliest choice is 0, the answer is 1"),
        (0, {"normalised": [-1.0]}, "2 choices, 1 numbers"),
        (0, {"normalised": [math.nan, -1.0]}, "not a number"),
        (1, {"index": 0}, "a question is there twice"),
    ],
)
def test_a_changed_sample_is_found(tmp_path: Path, row: int, changes: dict[str, Any], said: str) -> None:
    path = written(tmp_path / "r").folder / results.SAMPLES
    rows = results.samples(tmp_path / "r").to_pylist()
    rows[row] |= changes
    pq.write_table(pa.Table.from_pylist(rows, schema=results.SCHEMA), path)
    assert said in "; ".join(results.contradictions(tmp_path / "r"))


def test_a_torn_file_is_found(tmp_path: Path) -> None:
    path = written(tmp_path / "r").folder / results.SAMPLES
    path.write_bytes(path.read_bytes()[:-20])
    assert "cannot be read" in results.contradictions(tmp_path / "r")[0]


def test_what_is_no_result_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(HalaError, match="no questions"):
        written(tmp_path / "r", [])
    with pytest.raises(HalaError, match="twice"):
        written(tmp_path / "r", [SAMPLES[0], SAMPLES[0]])
    with pytest.raises(HalaError, match="not numbers"):
        written(tmp_path / "r", [replace(SAMPLES[0], log_probabilities=[math.nan, -1.0])])
    assert not (tmp_path / "r").exists()
