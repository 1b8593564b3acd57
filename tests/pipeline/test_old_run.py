"""A run that was planned and begun before the modules got their present names is finished by today's.

``old_run`` was made at commit b16082c: three shards, of which one was done and one begun when its worker was killed.
"""

import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import Hala

JOB = (
    b"\x80\x04\x95Q\x00\x00\x00\x00\x00\x00\x00\x8c\x15hala_hpc.worker.array\x94\x8c\x0bArrayWorker\x94\x93\x94)\x81"
    b"\x94}\x94\x8c\x03run\x94\x8c\x18/scratch/me/old/runs/old\x94sb."
)
"""What submitit pickled for a task of its array, which may still wait in a queue."""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder, with its data elsewhere by now, and its worker silent for an hour."""
    shutil.copytree(Path(__file__).with_name("old_run"), tmp_path, dirs_exist_ok=True)
    for file in (tmp_path / "run" / "leases").rglob("*"):
        os.utime(file, (long_ago := file.stat().st_mtime - 3600, long_ago))
    return tmp_path / "run"


def test_it_is_finished(hala: Hala, run: Path) -> None:
    before = hala.json("status", run)
    assert (before["done"], before["rows_done"], before["shards"]) == (1, 4, 3)
    assert hala.json("resume", run, "data.path=texts.jsonl")["missing"] == 2
    hala("worker", run)  # returns when the other has done its part, too
    assert "proven" in hala("verify", run).stdout
    hala("collect", run, "--to", "out")
    rows = pq.read_table(run.parent / "out" / "data").to_pylist()
    assert [row["text_ar"] for row in rows] == [f"«{row['text']}»" for row in rows]
    assert [row["id"] for row in rows] == list(range(12))
    hala("redo", run, "--where", "id == 5", "task.prompt='again: {text}'")
    hala("worker", run.with_name("run-v2"))  # returns when the other has done its part, too
    assert "proven" in hala("verify", run.with_name("run-v2")).stdout
    hala("collect", run.with_name("run-v2"), "--to", "second")
    again = pq.read_table(run.parent / "second" / "data").to_pylist()
    assert [row["id"] for row, other in zip(again, rows, strict=True) if row != other] == [5]


def test_its_job_is_known(run: Path) -> None:
    job = pickle.loads(JOB)
    assert (type(job).__module__, job.run) == ("hala_hpc.worker.array", "/scratch/me/old/runs/old")
    assert replace(job, run=str(run)).run == str(run)
