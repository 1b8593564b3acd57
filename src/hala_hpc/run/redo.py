"""What a resumed run needs: a person's changes of its recipe on record, and damaged outputs out of the way."""

import itertools
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hala_hpc.config.frozen import FOLDER, files
from hala_hpc.run import manifest
from hala_hpc.run.files import fsync, write_new
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
    run, plan = manifest.open_run(path)
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
    fsync(output.parent)
    fsync(run.damaged)


def write(run: Path, changed: Mapping[str, Any]) -> Path | None:
    """Write down changed keys, so that every worker that starts from now on has them. None where nothing changed."""
    from omegaconf import OmegaConf

    from hala_hpc.config.compose import literal

    if not changed:
        return None
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    text = OmegaConf.to_yaml(OmegaConf.create(literal(dict(changed))))
    while True:
        last = int(changes[-1].stem) if (changes := files(run)) else 0
        path = folder / f"{last + 1:03d}.yaml"
        try:
            write_new(path, text.encode())
            return path
        except FileExistsError:
            continue  # somebody else resumes it too
