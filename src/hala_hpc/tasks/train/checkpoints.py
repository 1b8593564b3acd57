"""Checkpoints that are complete, ours and as they were written, or not used.

A checkpoint counts only with its marker, which the first rank writes after all ranks have written and flushed theirs.
``run.digests`` shows whether a byte of its files has changed since; the marker's own seal, whether the marker has.
"""

import contextlib
import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, TypedDict

from hala_hpc.config.errors import HalaError
from hala_hpc.run import digests
from hala_hpc.run.files import fsync, fsync_tree, remove_tree, write_durably

MARKER = "complete.json"
PREFIX = "checkpoint-"
FALLBACK: Final = "fallback.json"
"""Beside the checkpoints, a ``Fallback``."""
OF_RANK: Final = re.compile(r"(?:zero_pp_rank|rng_state)_(\d+)")
"""Files that one rank writes: it finds them in its own node's memory."""
OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True)
class Saved:
    """What the marker says: after which step it was saved, by how many ranks, in how many seconds."""

    path: Path
    step: int
    world: int
    stage: int
    seconds: float

    @property
    def marker(self) -> dict[str, int | float]:
        """What the marker says, which differs from that of another checkpoint after the same step."""
        return {key: value for key, value in asdict(self).items() if key != "path"}


class Fallback(TypedDict):
    """From which step a training last went on, and which newer checkpoints were damaged, and how."""

    step: int
    damaged: dict[str, str]
    time: float


def complete(folder: Path) -> list[Saved]:
    """All complete ones, newest first; without those whose marker is damaged.

    Raises HalaError for one that anybody else has made or may change: loading runs what is in it.
    """
    whole: list[Saved] = []
    for path in _marked(folder):
        with contextlib.suppress(FileNotFoundError):  # it is being dropped
            marker = (path / MARKER).read_bytes()
            _refuse_others(path)
            whole += filter(None, [_read(path, marker)])
    return whole


def newest_step(folder: Path) -> int:
    """The step of the newest one with a marker, whatever it says; -1 without any."""
    return next((int(_step(path)) for path in _marked(folder)), -1)


def digests_of(path: Path, own: int = 0, world: int = 1) -> dict[str, str]:
    """Digests of the files of a checkpoint that fall to one of the ranks: best those that it wrote itself."""
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    owners = [int(rank[1]) if (rank := OF_RANK.search(name)) else at for at, name in enumerate(names)]
    mine = (name for name, owner in zip(names, owners, strict=True) if owner % world == own)
    return {name: digests.digest_of(path / name) for name in mine}


def faults(folder: Path) -> dict[Path, list[str]]:
    """The checkpoints that are not what was written, and how; reads every byte. Older ones without digests pass."""
    return {path: wrong for path in _marked(folder) if (wrong := faults_of(path))}


def faults_of(path: Path) -> list[str]:
    """How one differs from what was written, in plain words."""
    marker = (path / MARKER).read_bytes()
    if _read(path, marker) is None:
        return [f"{MARKER} is not what was written"]
    wrong = digests.faults(path)
    if wrong is None:  # an older one, or one that has lost its list
        return [f"{digests.NAME} is missing"] if "seal" in json.loads(marker) else []
    return wrong


def _marked(folder: Path) -> list[Path]:
    """All with a marker, whatever it says, newest first."""
    paths = (marker.parent for marker in folder.glob(f"{PREFIX}*/{MARKER}"))
    return sorted((path for path in paths if _step(path).isdigit()), key=lambda path: -int(_step(path)))


def _step(path: Path) -> str:
    return path.name.removeprefix(PREFIX)


def _read(path: Path, marker: bytes) -> Saved | None:
    """None where the marker is not what was written."""
    try:
        record = json.loads(marker)
        if "seal" in record and record.pop("seal") != _seal(record):
            return None
        return Saved(path, **record)
    except (ValueError, TypeError, AttributeError):
        return None


def _seal(record: Mapping[str, int | float]) -> str:
    return hashlib.blake2b(json.dumps(record, sort_keys=True).encode(), digest_size=16).hexdigest()


def _refuse_others(path: Path) -> None:
    """Raises HalaError where a file is somebody else's, or somebody else may write to it."""
    for file in (path.parent, path, *path.rglob("*")):
        try:
            about = file.lstat()
        except FileNotFoundError:  # it is being dropped
            continue
        if about.st_uid != os.getuid():
            raise HalaError(f"{file}: belongs to another user, and loading it would run what is in it")
        if about.st_mode & OTHERS_WRITE and not stat.S_ISLNK(about.st_mode):
            raise HalaError(
                f"{file}: other users may write to it, and loading it would run what is in it",
                f"if it is as you left it: chmod -R go-w {path.parent}",
            )


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

    def newest_whole(self, say: Callable[[str], None]) -> Saved | None:
        """The newest that is what was written; damaged newer ones are set aside, said, and noted for status.

        Raises HalaError where all are damaged.
        """
        complete(self.folder)  # refuses what is not ours
        damaged: dict[str, str] = {}
        for path in _marked(self.folder):
            if not (wrong := faults_of(path)):
                break
            damaged[path.name] = "; ".join(wrong[:3])
            say(f"{path.name} is damaged and is not used: {damaged[path.name]}")
        else:
            if damaged:
                raise HalaError(
                    f"{self.folder}: every checkpoint is damaged ({', '.join(damaged)})",
                    "put them back from a copy; or remove them, and the training begins anew",
                )
            return None
        if damaged:  # noted before they are set aside: a kill in between must not hide it
            note: Fallback = {"step": int(_step(path)), "damaged": damaged, "time": time.time()}
            write_durably(self.folder / FALLBACK, json.dumps(note).encode())
        for name in damaged:
            (self.folder / name / MARKER).unlink()
        self.set_aside()
        return next(iter(complete(self.folder)))

    def mark(self, step: int, world: int, stage: int, seconds: float, known: dict[str, str] | None = None) -> Saved:
        """Declare the checkpoint of a step complete, and drop older ones. To be called once all ranks are through.

        ``known``: what ``digests_of`` gave to the ranks.
        """
        path = self.path(step)
        for file in (self.folder, path, *path.rglob("*")):
            file.chmod(file.stat().st_mode & ~OTHERS_WRITE)
        saved = Saved(path, step, world, stage, round(seconds, 3))
        digests.write(path, known)
        fsync_tree(path)
        write_durably(path / MARKER, json.dumps(saved.marker | {"seal": _seal(saved.marker)}).encode())
        self.settle()
        return saved

    def drop_unmarked(self, step: int) -> None:
        """Remove what there is of the checkpoint of a step, where it is not complete."""
        if not (self.path(step) / MARKER).is_file():
            remove_tree(self.path(step))

    def settle(self) -> None:
        """What is left to do once there is a complete one more: its name is made durable, older ones are dropped."""
        for folder in (self.folder, *self.folder.parents[:2]):  # whoever made them: the folders in the run, too
            fsync(folder)
        for old in complete(self.folder)[self._keep :]:
            (old.path / MARKER).unlink()  # first: a kill in the middle must not leave a hollow one that counts
            remove_tree(old.path)
        remove_tree(self.folder / "incomplete")
