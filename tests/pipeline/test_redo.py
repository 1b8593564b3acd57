"""Some rows of a finished run again, as a run of its own: the others stay byte for byte, whatever happens meanwhile."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.data.chosen import Choice
from hala_hpc.pipeline import lookup, redo
from hala_hpc.run import files, manifest
from tests.worker.helpers import asked, directory, events, finish, leftovers, plan, proof, start, texts, wait_until

TENTH = "matches(text, '3$')"
OTHER = ("task.prompt='again: {text}'",)


def again(run: Path, choice: Choice, *overrides: str, name: str = "") -> Path:
    """Plan a redo; its log stands beside the run's."""
    log = run.parents[1] / f"{name or run.name}-again.log"
    planned = redo.plan(run, choice, (*overrides, f"engine.log={log}"), name)
    planned.make()
    return planned.planned.path


def prompts(run: Path) -> list[str]:
    log = Path(lookup.thawed(run).engine.log)
    return sorted(line[1:-1] for line in log.read_text().splitlines()) if log.exists() else []


def table(run: Path) -> pa.Table:
    """All rows, without what made each shard."""
    outputs = sorted((run / "shards").rglob("*.parquet"))
    return pa.concat_tables(pq.read_table(output).replace_schema_metadata() for output in outputs)


def others(run: Path, rows: Sequence[int]) -> pa.Table:
    """All rows but some."""
    whole = table(run)
    return whole.filter(pa.array([number not in rows for number in whole["hala_row"].to_pylist()]))


def contents(run: Path) -> dict[str, bytes]:
    return {str(file.relative_to(run)): file.read_bytes() for file in sorted(run.rglob("*")) if file.is_file()}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of a hundred rows in ten shards, of which eleven are in quarantine."""
    made = plan(tmp_path, texts(100), fail_on="text 8", capacity=8)
    finish(made)
    return made


def test_a_tenth_again_leaves_the_other_rows_byte_for_byte(run: Path) -> None:
    before = contents(run)
    new = again(run, Choice(TENTH), *OTHER)
    assert new == run.with_name("r-v2")
    finish(new)
    rows = [number for number in range(3, 100, 10) if number != 83]  # that one is in quarantine
    assert others(new, rows).equals(others(run, rows))
    assert {row["hala_row"]: row["text_ar"] for row in table(new).to_pylist() if row["hala_row"] in rows} == {
        number: f"«again: text {number}»" for number in rows
    }
    assert prompts(new) == sorted(f"again: text {number}" for number in rows)
    assert contents(run) == before
    assert proof(new).proven and proof(new).quarantined == {"failed": 11}
    assert leftovers(new) == []
    assert (new / "shards/000/000008.parquet").samefile(run / "shards/000/000008.parquet")
