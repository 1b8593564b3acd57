"""Runs for the echo engine, and workers as processes of their own."""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from hala_hpc.pipeline import lookup, planning
from hala_hpc.run import ledger, manifest
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.verify import Verdict, verify
from hala_hpc.worker import registry

REQUEUE = 85


def texts(count: int) -> list[str]:
    return [f"text {number}" for number in range(count)]


def plan(
    folder: Path,
    rows: list[str],
    name: str = "r",
    run: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    **engine: Any,
) -> Path:
    """Plan a run of one text per row, which is sent as it is; ``engine`` options of the echo engine or another."""
    options = engine if "kind" in engine else {"kind": "echo", "log": str(folder / f"{name}.log"), **engine}
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    recipe = {
        "name": name,
        "task": {"kind": "translate", "prompt": "{text}", "segments": {"tokens": 0}},
        "engine": options,
        "model": {"name": "m"},
        "data": data or {"path": [str(file)]},
        "run": {"root": str(folder / "runs"), "shard_rows": 10, "lease_seconds": 1.2, "flush_seconds": 0.2}
        | (run or {}),
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(recipe))
    asked = lookup.load(path, "local", ())
    return planning.plan_run(asked, planning.check(asked), Path(asked.run.root) / name).path


def start(run: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hala_hpc.worker", str(run)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def finish(run: Path, code: int = 0) -> str:
    """Run a worker to its end; what it said."""
    process = start(run)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    return said


def wait_until(what: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


def asked(run: Path) -> Counter[str]:
    """The prompts that the echo engine was given, with their number."""
    log = run.parents[1] / f"{run.name}.log"
    return Counter(line[1:-1] for line in log.read_text().splitlines()) if log.exists() else Counter()


def directory(run: Path) -> RunDirectory:
    return RunDirectory(run, manifest.read(run / "manifest.parquet").facts.suffix)


def events(run: Path, *kinds: str) -> list[dict[str, Any]]:
    """What all ledgers tell, in the order of time."""
    found = [event for file in (run / "ledger").glob("*.jsonl") for event in ledger.read(file)]
    return sorted((e for e in found if not kinds or e["event"] in kinds), key=lambda event: float(event["time"]))


def rows(run: Path) -> list[dict[str, Any]]:
    """All finished rows in their order."""
    files = sorted((run / "shards").rglob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def quarantined(run: Path) -> dict[str, str]:
    return {row["text"]: row["hala_error"] for row in rows(run) if row["hala_error"] is not None}


def proof(run: Path) -> Verdict:
    facts = manifest.read(run / "manifest.parquet").facts
    return verify(run, registry.create(lookup.thawed(run)).checker(facts))


def leftovers(run: Path) -> list[str]:
    """Names that should be gone once a run is finished; the beacons of the killed may stay."""
    return sorted(str(p.relative_to(run)) for at in ("leases/000", "partial/000") for p in (run / at).iterdir())


def unbroken(count: int) -> list[dict[str, Any]]:
    """The rows that a run of ``texts(count)`` without any disturbance gives."""
    return [
        {"text": text, "text_ar": f"«{text}»", "hala_row": number, "hala_error": None}
        for number, text in enumerate(texts(count))
    ]
