"""Chaos: a run on the real test cluster whose workers are killed, stopped, drained and requeued; and an unbroken one.

Both have the same rows and an engine that only waits, so that they take each other nothing but processors.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import HALA, ROOT, quiet, report, title

sys.path.insert(0, str(ROOT))

ENGINE = {"kind": "echo", "seconds": 0.5, "capacity": 2}
"""Four rows a second of a worker."""
RATE = ENGINE["capacity"] / ENGINE["seconds"]
PATIENCE_SECONDS = 600.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="of faults; 60 for an hour")
    parser.add_argument("--every", type=float, default=10.0, help="seconds from fault to fault")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--shards", type=int, default=200)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--lease", type=float, default=6.0, help="seconds")
    parser.add_argument("--load", type=float, default=1.0, help="the unbroken run's time, as a part of that of faults")
    arguments = parser.parse_args()
    title("chaos")
    from tests.minislurm.cluster import Cluster, missing

    if reason := missing():
        sys.exit(f"no Slurm: {reason}")
    cluster = Cluster().start()
    cluster.guard()
    try:
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), dict(cluster.env), arguments)
    finally:
        cluster.stop()
        shutil.rmtree(cluster.dir, ignore_errors=True)


def measure(folder: Path, env: dict[str, str], arguments: argparse.Namespace) -> None:
    of_shard = max(1, round(arguments.load * 60 * arguments.minutes * RATE * arguments.workers / arguments.shards))
    rows = of_shard * arguments.shards
    (folder / "rows.jsonl").write_text("".join(f'{{"text": "line {i}"}}\n' for i in range(rows)))
    recipe = {
        "task": {"kind": "translate", "segments": {"tokens": 0}},
        "data": {"path": "rows.jsonl"},
        "run": {
            "shard_rows": of_shard,
            "workers": arguments.workers,
            "lease_seconds": arguments.lease,
            "submissions": 10_000,
        },
        "site": {"executor": "slurm", "slurm": {"cpus_per_worker": 1, "minutes": 240}},
    }
    for name in ("unbroken", "broken"):
        own = {"name": name, "engine": ENGINE | {"answered": str(folder / f"{name}.answered")}}
        (folder / f"{name}.yaml").write_text(json.dumps(recipe | own))
        quiet(*HALA, "submit", f"{name}.yaml", env=env, cwd=folder)
    often = ("--minutes", arguments.minutes, "--every", arguments.every, "--seed", arguments.seed)
    words = [*HALA, "chaos", "broken", *often, "--patience", PATIENCE_SECONDS / 60, "--yes", "--json"]
    hurt = subprocess.run(list(map(str, words)), check=False, stdout=subprocess.PIPE, text=True, env=env, cwd=folder)
    if hurt.returncode not in (0, 1):
        sys.exit(f"hala chaos: exit code {hurt.returncode}")
    tell(json.loads(hurt.stdout), unbroken(folder, env), answers(folder / "broken.answered"), rows)


def unbroken(folder: Path, env: dict[str, str]) -> float:
    """Seconds from the first worker's start to the last one's end."""
    until = time.monotonic() + PATIENCE_SECONDS
    while not json.loads(quiet(*HALA, "status", "unbroken", "--json", env=env, cwd=folder))["finished"]:
        if time.monotonic() > until:
            sys.exit("the unbroken run does not end")
        time.sleep(2)
    seconds: float = json.loads(quiet(*HALA, "cost", "unbroken", "--json", env=env, cwd=folder))["wall_seconds"]
    return seconds


def answers(file: Path) -> int:
    """How many an engine gave: what was answered and lost too, of which no ledger knows."""
    with file.open() as lines:
        return sum(1 for _ in lines)


def tell(harm: dict[str, Any], alone: float, answered: int, rows: int) -> None:
    faults, goodput = harm["faults"], harm["goodput"]
    listed = ", ".join(f"{count} {kind}" for kind, count in sorted(faults.items()))
    print(
        f"{rows:,} rows; faults: {listed}; refused: {harm['refused']}; {harm['unfinished'] or 'it ended'}", flush=True
    )
    if harm["lost"] is None:
        sys.exit("MISSED: the run did not end")
    said = 100 * (harm["computed_twice"] + harm["unknown"]) / rows
    twice = 100 * (answered - rows) / rows
    report("faults done", sum(faults.values()), "", "", True)
    report("rows lost", harm["lost"], "", "0", harm["lost"] == 0)
    report("rows published twice", harm["published_twice"], "", "0", harm["published_twice"] == 0)
    report("rows computed twice, by the engine's own count", twice, "%", "at most 2 %", twice <= 2)
    report("… by `hala chaos`, its estimate of the unknown included", said, "%", "", True)
    report("starts of workers by a person", harm["by_people"], "", "0", harm["by_people"] == 0)
    report("… by stewards", harm["by_stewards"], "", "", True)
    report("finished and proven (1: yes)", harm["finished"] and harm["proven"], "", "1", harm["proven"])
    report("time, first worker to last", harm["seconds"] or 0, "s", "", True)
    report("… / that of the unbroken run beside it", (harm["seconds"] or 0) / alone, "", "", True)
    for name, share in goodput.items():
        report(f"goodput, {name}", share if share is not None else float("nan"), "", "", True)


if __name__ == "__main__":
    main()
