"""Run directories made by hand, and beacons that look as if their worker had gone silent."""

import os
import time
from pathlib import Path

from hala_hpc.run import manifest
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.lease import Leases
from hala_hpc.run.manifest import Facts, Shard

TTL = 60.0


def bare_run(path: Path, shards: int, suffix: str = ".txt") -> RunDirectory:
    """The folders of a run, without a plan."""
    run = RunDirectory(path, suffix)
    run.create_folders(shards)
    return run


def planned_run(path: Path, rows: list[int]) -> RunDirectory:
    """A run with a manifest: shards of so many rows each."""
    run = bare_run(path, len(rows))
    starts = [sum(rows[:index]) for index in range(len(rows))]
    shards = [Shard(i, "translate", "a.jsonl", 0, starts[i], rows[i], 10, 3, "") for i in range(len(rows))]
    manifest.write(run.manifest, shards, Facts(run.suffix, sum(rows), sum(rows), 10, 3))
    return run


def worker(run: RunDirectory, name: str, attempts: int = 3) -> Leases:
    return Leases(run, name, TTL, attempts)


def silent(leases: Leases, seconds: float = 2 * TTL) -> None:
    """Make a worker's last heartbeat so many seconds old."""
    then = time.time() - seconds
    os.utime(leases.beacon, (then, then))


def output(run: RunDirectory, shard: int, text: str = "done") -> None:
    run.shard_output(shard).write_text(text)
