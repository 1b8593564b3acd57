"""What one launch of a training's ranks leaves behind for its launcher: signs of life, steps, ends.

Everything is small files in the run directory, read tolerantly: the launcher may run on another node than the ranks.
"""

import contextlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from hala_hpc.tasks.train import metrics, paths
from hala_hpc.tasks.train.options import Watch

LATEST_STEPS: Final = 20
"""The usual time of a step is the median of so many."""
SLOW_PHASES: Final = ("starting", "saving", "evaluating", "exporting")
"""Phases of a rank in which no step ends for long: they are given ``watch.start_seconds``."""
TAIL_BYTES: Final = 64 * 1024
MOST_OF_ERROR: Final = 300
FOUND_SECONDS: Final = 10.0
"""How long a network file system may take to show a file that another node wrote before it ended."""


@dataclass(frozen=True)
class Beacon:
    """The last sign of life of a rank. ``time`` is its own node's clock: never compared with another's."""

    rank: int
    host: str
    pid: int
    step: int
    phase: str
    time: float


@dataclass(frozen=True)
class End:
    """How a rank ended: its exit code, negative for a signal, as ``subprocess`` has it; ``at``: file server's time."""

    rank: int
    code: int
    at: float = 0.0


def folder(run: Path, launch: str) -> Path:
    """Where the ranks of a launch leave their beacons and ends."""
    return run / paths.RANKS / launch


def beacons(run: Path, launch: str) -> dict[int, Beacon]:
    """The beacons that can be read now, by rank."""
    found = {}
    for path in folder(run, launch).glob("*.json"):
        told = _json(path)
        if told is not None:
            found[int(told["rank"])] = Beacon(**{key: told[key] for key in Beacon.__dataclass_fields__})
    return found


def write_end(run: Path, launch: str, end: End) -> None:
    """Leave word of how a rank ended; a full disk must not keep it from ending."""
    target = folder(run, launch)
    target.mkdir(parents=True, exist_ok=True)
    temporary = target / f"{end.rank}.end.tmp"
    with temporary.open("w") as file:
        json.dump({"rank": end.rank, "code": end.code}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(target / f"{end.rank}.end")


def write_error(run: Path, launch: str, rank: int, error: BaseException) -> None:
    """Leave word of what a rank is ending of; it must not keep it from ending."""
    said = next(filter(None, map(str.strip, str(error).splitlines())), "")
    with contextlib.suppress(OSError):
        target = folder(run, launch)
        target.mkdir(parents=True, exist_ok=True)
        (target / f"{rank}.error").write_text(f"{type(error).__name__}: {said}"[:MOST_OF_ERROR], "utf-8")


def error_of(run: Path, launch: str, rank: int) -> str:
    """What ``write_error`` left; '' where it did not."""
    try:
        return (folder(run, launch) / f"{rank}.error").read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def ends_so_far(run: Path, launch: str) -> list[End]:
    """Ends that are told by now, without waiting for any."""
    told = [(_json(path), path.stat().st_mtime) for path in folder(run, launch).glob("*.end")]
    found = [End(end["rank"], end["code"], at) for end, at in told if end is not None]
    return sorted(found, key=lambda end: end.at)


def ends(run: Path, launch: str, world: int) -> list[End]:
    """The ends of all ranks once their step is over, first come first; without those that were killed."""
    deadline = time.monotonic() + FOUND_SECONDS
    while len(found := ends_so_far(run, launch)) < world and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def step_seconds(run: Path, launch: str) -> list[float]:
    """Seconds of the last steps of a launch, oldest first; empty before its first step has ended."""
    path = run / metrics.FOLDER / f"{launch}.jsonl"
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return []
    told = [line for line in map(_line, lines) if line is not None and "loss" in line]
    return [float(line["seconds"]) for line in told[-LATEST_STEPS:] if isinstance(line.get("seconds"), (int, float))]


def steps_ended(run: Path, launch: str) -> int:
    """How large the launch's metrics have grown, in bytes: it grows with each step that ends."""
    try:
        return (run / metrics.FOLDER / f"{launch}.jsonl").stat().st_size
    except FileNotFoundError:
        return 0


def patience(watch: Watch, latest: Sequence[float], phases: Sequence[str]) -> float:
    """Seconds that may pass until the next step ends, before the training is taken for hung."""
    if not latest or any(phase in SLOW_PHASES for phase in phases):
        return watch.start_seconds
    return max(watch.stall_seconds, watch.stall_factor * median(latest))


def newest_checkpoint(run: Path) -> int:
    """The step of the newest complete checkpoint; -1 where there is none."""
    steps = [
        int(path.parent.name.rpartition("-")[2])
        for path in (run / paths.CHECKPOINTS).glob("checkpoint-*/complete.json")
        if path.parent.name.rpartition("-")[2].isdigit()
    ]
    return max(steps, default=-1)


def _json(path: Path) -> dict[str, Any] | None:
    try:
        told = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return told if isinstance(told, dict) else None


def _line(line: bytes) -> dict[str, Any] | None:
    try:
        told = json.loads(line)
    except ValueError:
        return None
    return told if isinstance(told, dict) else None
