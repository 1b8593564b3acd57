"""Checkpoints that are complete or not there.

A checkpoint counts only with its marker, which the first rank writes after all ranks have written and flushed theirs.
"""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from hala_hpc.config.errors import HalaError
from hala_hpc.run.files import fsync_tree, remove_tree, write_durably

MARKER = "complete.json"
PREFIX = "checkpoint-"


@dataclass(frozen=True)
class Saved:
    """What the marker says: after which step, by how many ranks, in how many seconds."""

    path: Path
    step: int
    world: int
    stage: int
    seconds: float


def complete(folder: Path) -> list[Saved]:
    """All complete ones, newest first. Raises HalaError for one of somebody else's: loading runs what is in it."""
    found = []
    for path in folder.glob(f"{PREFIX}*"):
        try:
            marker, owner = (path / MARKER).read_text(), (path / MARKER).stat().st_uid
        except FileNotFoundError:  # half-written, or about to be dropped
            continue
        if owner != os.getuid():
            raise HalaError(f"{path}: belongs to another user, and loading it would run what is in it")
        found.append(Saved(path, **json.loads(marker)))
    return sorted(found, key=lambda one: -one.step)


class Checkpoints:
    """The checkpoints of one run, as its first rank makes and drops them."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self._keep = max(1, keep)

    def path(self, step: int) -> Path:
        return self.folder / f"{PREFIX}{step}"

    def set_aside(self) -> list[Path]:
        """Move what a kill left half-written out of the way; it is dropped with the next complete one."""
        moved = []
        for path in self.folder.glob(f"{PREFIX}*"):
            if not (path / MARKER).is_file():
                aside = self.folder / "incomplete"
                aside.mkdir(exist_ok=True)
                moved.append(path.rename(aside / f"{path.name}-{time.time_ns()}"))
        return moved

    def mark(self, step: int, world: int, stage: int, seconds: float) -> Saved:
        """Declare the checkpoint of a step complete, and drop older ones. To be called once all ranks are through."""
        saved = Saved(self.path(step), step, world, stage, round(seconds, 3))
        fsync_tree(saved.path)
        said = asdict(saved)
        del said["path"]
        write_durably(saved.path / MARKER, json.dumps(said).encode())
        for old in complete(self.folder)[self._keep :]:
            (old.path / MARKER).unlink()  # first: a kill in the middle must not leave a hollow one that counts
            remove_tree(old.path)
        remove_tree(self.folder / "incomplete")
        return saved
