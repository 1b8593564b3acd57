"""Finished shards done once more: their outputs are moved aside, never removed."""

import itertools
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

from hala_hpc.run import manifest
from hala_hpc.run.files import fsync_directory
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.ledger import Ledger
from hala_hpc.run.manifest import Shard
from hala_hpc.run.verify import CheckShard, Verdict, verify


def set_aside_damaged(
    path: Path, check: CheckShard, progress: Callable[[Iterator[Shard]], Iterator[Shard]] = iter
) -> Verdict:
    """Move the outputs that ``verify`` refuses to RUN/damaged, so that workers do their shards again.

    What was made of all shards goes with them. Returns what ``verify`` said before.
    """
    verdict = verify(path, check, progress)
    plan = manifest.read(path / "manifest.parquet")
    run = RunDirectory(path, plan.facts.suffix)
    for shard in verdict.damaged:
        _set_aside(run, run.shard_output(shard), f"{shard:06d}", run.suffix)
    if plan.facts.assembled and (verdict.damaged or verdict.damaged_final):
        _set_aside(run, run.final, run.final.name, "")
    if verdict.damaged:
        history = Ledger(run.ledger / f"resume-{secrets.token_hex(3)}.jsonl", pid=os.getpid())
        history.write("set aside", shards=verdict.damaged)
        history.close()
    return verdict


def _set_aside(run: RunDirectory, output: Path, name: str, suffix: str) -> None:
    run.damaged.mkdir(exist_ok=True)
    free = (run.damaged / f"{name}.{number}{suffix}" for number in itertools.count(1))
    target = next(path for path in free if not path.exists())
    try:
        output.rename(target)
    except FileNotFoundError:  # another `hala resume` was first
        return
    fsync_directory(output.parent)
    fsync_directory(run.damaged)
