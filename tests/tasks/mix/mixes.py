"""Mixes over rows that are written to files, planned and done in this process or by workers of their own."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from hala_hpc.pipeline import lookup, planning
from hala_hpc.run.files import read_json
from hala_hpc.worker import job
from hala_hpc.worker.task import Outcome

Rows = Sequence[Mapping[str, Any]]
PAIRS = {"shape": "pairs", "columns": ["en", "ar"]}
LANGUAGES = {"source": "English", "target": "Arabic"}
NO_DUPLICATES = {"exact": False, "near": None}
"""All rows stay."""


def chats(count: int, words: str = "") -> list[dict[str, Any]]:
    """Conversations of which no two are alike."""
    return [turns(f"{hash_of(n)} {words}", f"{hash_of(n + 1_000_000)}") for n in range(count)]


def hash_of(number: int) -> str:
    """A text that has nothing in common with another one's."""
    return hashlib.sha256(str(number).encode()).hexdigest()


def turns(asked: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}


def pairs(count: int) -> list[dict[str, Any]]:
    return [{"en": f"en {hash_of(n + 2_000_000)}", "ar": f"ar {hash_of(n + 3_000_000)}"} for n in range(count)]


def recipe(folder: Path, sources: Mapping[str, Mapping[str, Any]], name: str = "mix", **task: Any) -> Path:
    """A recipe; ``rows`` of a source are written to a file, which is its path. ``run`` is that section."""
    given = {}
    for label, source in sources.items():
        given[label] = {key: value for key, value in source.items() if key != "rows"}
        if "rows" in source:
            file = folder / f"{name}-{label}.jsonl"
            file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in source["rows"]))
            given[label]["path"] = file
    run = {"root": folder / "runs", "shard_rows": 50, "lease_seconds": 1.2} | task.pop("run", {})
    whole = {"name": name, "task": {"kind": "mix", "sources": given, **task}, "run": run}
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(whole, default=str))
    return path


def plan(folder: Path, sources: Mapping[str, Mapping[str, Any]], name: str = "mix", **task: Any) -> Path:
    asked = lookup.load(recipe(folder, sources, name, **task), "local", ())
    return planning.plan_run(asked, planning.check(asked), Path(asked.run.root) / name).path


def finished(run: Path) -> Path:
    """The run, done in this process."""
    assert job.work_until(run, lambda: False, "one") is Outcome.FINISHED
    return run


def made(
    folder: Path, sources: Mapping[str, Mapping[str, Any]], name: str = "mix", **task: Any
) -> list[dict[str, Any]]:
    """The rows of a mix, in their order."""
    return rows(finished(plan(folder, sources, name, **task)))


def rows(run: Path) -> list[dict[str, Any]]:
    files = sorted((run / "final" / "data").glob("*.parquet"))
    return [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]


def counts(run: Path) -> dict[str, dict[str, int]]:
    """The table of sources, by source."""
    lines = read_json(run / "final" / "report.json")["sources"]
    return {line.pop("source"): line for line in lines}


def data_bytes(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run / "final" / "data").iterdir())}
