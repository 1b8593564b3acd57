"""The end of a run with workers of unequal speed, of which some come late and some are killed: how long it takes."""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common import HALA, quiet, report, title

SPEEDS = (8.0, 6.0, 4.0, 4.0, 2.0, 2.0, 6.0, 4.0)
"""Rows a second of each worker."""
LATE, KILLED = (6,), (7,)
"""Workers that start at a third of the run, and those that are killed at a half, by their place in SPEEDS."""
CAPACITY = 4
BAR = 1.10


@dataclass
class Worker:
    """A process, and from when to when it was at its full speed; seconds since the epoch."""

    process: subprocess.Popen[bytes]
    speed: float
    began: float = 0.0
    killed: float | None = None


def work(run: Path, speed: float) -> None:
    """In a process of its own: a worker of the run whose engine does so many rows a second."""
    from hala_hpc import engines
    from hala_hpc.config.schema import Recipe
    from hala_hpc.engines import echo
    from hala_hpc.worker.job import main as worker

    def start(recipe: Recipe) -> echo.Echo:
        print(time.time(), flush=True)
        return echo.Echo(replace(recipe.engine, capacity=CAPACITY, seconds=CAPACITY / speed))

    engines.start = start
    sys.exit(worker([str(run)]))


def start(run: Path, speed: float) -> Worker:
    command = [sys.executable, __file__, "--worker", str(run), str(speed)]
    return Worker(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL), speed)


def bound(workers: Sequence[Worker], rows: int) -> float:
    """The time at which ideal workers are done: all rows over the speeds, each from its own start, none idle.

    What a killed worker could have done until then counts as done, so the bound is the hardest one.
    """
    lived = [worker for worker in workers if worker.killed is None]
    by_dead = sum(worker.speed * (worker.killed - worker.began) for worker in workers if worker.killed is not None)
    head = sum(worker.speed * worker.began for worker in lived)
    return (rows - by_dead + head) / sum(worker.speed for worker in lived)


def measure(folder: Path, name: str, rows: int, shard_rows: int) -> float:
    """The time of a run, from its first engine's start to its last shard, over the bound."""
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": f"text {number}"}) + "\n" for number in range(rows)))
    recipe = {
        "name": name,
        "task": {"kind": "translate", "segments": {"tokens": 0}},
        "engine": {"kind": "echo"},
        "data": {"path": str(data)},
        "run": {"shard_rows": shard_rows, "lease_seconds": 3.0, "flush_seconds": 0.5},
    }
    (folder / f"{name}.json").write_text(json.dumps(recipe))
    quiet(*HALA, "plan", f"{name}.json", "--create", "--site", "local", cwd=folder)
    run = folder / "runs" / name
    whole = rows / sum(SPEEDS)
    workers = {place: start(run, speed) for place, speed in enumerate(SPEEDS) if place not in LATE}
    first = min(map(_ready, workers.values()))
    _until(first + whole / 3)
    workers |= {place: start(run, SPEEDS[place]) for place in LATE}
    for place in LATE:
        _ready(workers[place])
    _until(first + whole / 2)
    for place in KILLED:
        os.kill(workers[place].process.pid, signal.SIGKILL)
        workers[place].killed = time.time()
    for worker in workers.values():
        worker.process.wait()
    outputs = sorted((path.stat().st_mtime for path in (run / "shards").rglob("*.parquet")), reverse=True)
    if len(outputs) != -(-rows // shard_rows):
        sys.exit(f"{name}: {len(outputs)} shards are done, of {-(-rows // shard_rows)}")
    return (outputs[0] - first) / (bound(list(workers.values()), rows) - first)


def _ready(worker: Worker) -> float:
    """When it has its engine, which is waited for: how long a model takes to load is not what is measured."""
    assert worker.process.stdout is not None
    if not (line := worker.process.stdout.readline()):
        sys.exit("a worker ended before it had an engine")
    worker.began = float(line)
    return worker.began


def _until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.time()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=3600)
    parser.add_argument("--shard-rows", type=int, nargs="+", default=[10, 40])
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(Path(arguments.worker[0]), float(arguments.worker[1]))
    title("tail")
    slowest = min(SPEEDS)
    with tempfile.TemporaryDirectory() as folder:
        for number, shard_rows in enumerate(arguments.shard_rows):
            ratio = measure(Path(folder), f"r{number}", arguments.rows, shard_rows)
            share = shard_rows / slowest / (arguments.rows / sum(SPEEDS))
            figure = f"end of the run / bound, shards of {100 * share:.0f} % of the slowest's time"
            report(figure, ratio, "", f"at most {BAR:.2f}" if not number else "", bool(number) or ratio <= BAR)


if __name__ == "__main__":
    main()
