"""What the launcher of a training and its ranks know of each other: environment, signals, exit codes, heartbeats, ends.

Signs of life are small files in the run directory, read tolerantly: the launcher may be on another node than the ranks.
This module is light, for it is imported before anything that could fail.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Final

from hala_hpc.run.files import read_json, write_durably
from hala_hpc.tasks.train import metrics, paths
from hala_hpc.tasks.train.options import Watchdog

LATEST_STEPS: Final = 20
"""The usual time of a step is the median of so many."""
SLOW_PHASES: Final = ("starting", "saving", "evaluating", "exporting")
"""Phases of a rank in which no step ends for long: they are given ``watch.start_seconds``."""
TAIL_BYTES: Final = 64 * 1024
MOST_OF_ERROR: Final = 300
VISIBLE_SECONDS: Final = 10.0
"""How long a network file system may take to show a file that another node wrote before it ended."""
HEARTBEAT_SECONDS: Final = 1.0


@dataclass(frozen=True)
class RankHeartbeat:
    """The last heartbeat of a rank. ``time`` is its own node's clock: never compared with another's."""

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


class HeartbeatWriter:
    """Says which step and phase this rank is in. A process that is stopped or frozen falls silent, as it should."""

    def __init__(self, run: Path, launch: str, rank: int) -> None:
        self._path = _made(run, launch) / f"{rank}.json"
        self._now = RankHeartbeat(rank, socket.gethostname(), os.getpid(), 0, "starting", time.time())
        self._stop = threading.Event()
        self._write()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def at(self, step: int, phase: str) -> None:
        """Note where the rank is; costs nothing."""
        self._now = replace(self._now, step=step, phase=phase)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=10 * HEARTBEAT_SECONDS)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            self._write()
        self._write()

    def _write(self) -> None:
        temporary = self._path.with_suffix(".tmp")
        with contextlib.suppress(OSError):  # a full disk is no reason to stop training
            temporary.write_text(json.dumps(asdict(replace(self._now, time=time.time()))))
            temporary.rename(self._path)


def folder(run: Path, launch: str) -> Path:
    """Where the ranks of a launch leave their heartbeats and ends."""
    return run / paths.RANKS / launch


def heartbeats(run: Path, launch: str) -> dict[int, RankHeartbeat]:
    """The heartbeats that can be read now, by rank."""
    read = filter(None, map(read_json, folder(run, launch).glob("*.json")))
    return {int(heartbeat["rank"]): RankHeartbeat(**heartbeat) for heartbeat in read}


def write_end(run: Path, launch: str, end: End) -> None:
    """Leave word of how a rank ended."""
    record = json.dumps({"rank": end.rank, "code": end.code})
    write_durably(_made(run, launch) / f"{end.rank}.end", record.encode())


def write_error(run: Path, launch: str, rank: int, error: BaseException) -> None:
    """Leave word of what a rank is ending of; it must not keep it from ending."""
    line = next(filter(None, map(str.strip, str(error).splitlines())), "")
    with contextlib.suppress(OSError):
        text = f"{type(error).__name__}: {line}"[:MOST_OF_ERROR]
        (_made(run, launch) / f"{rank}.error").write_text(text, "utf-8")


def error_of(run: Path, launch: str, rank: int) -> str:
    """What ``write_error`` left; '' where it did not."""
    try:
        return (folder(run, launch) / f"{rank}.error").read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def ends_so_far(run: Path, launch: str) -> list[End]:
    """The ends that are known by now, first come first, without waiting for any."""
    read = [(read_json(path), path.stat().st_mtime) for path in folder(run, launch).glob("*.end")]
    known = [End(end["rank"], end["code"], at) for end, at in read if end]
    return sorted(known, key=lambda end: end.at)


def ends(run: Path, launch: str, world: int) -> list[End]:
    """The ends of all ranks once their step is over, first come first; without those that were killed."""
    deadline = time.monotonic() + VISIBLE_SECONDS
    while len(known := ends_so_far(run, launch)) < world and time.monotonic() < deadline:
        time.sleep(0.1)
    return known


def step_seconds(run: Path, launch: str) -> list[float]:
    """Seconds of the last steps of a launch, oldest first; empty before its first step has ended."""
    try:
        lines = metrics.tail(metrics.file_of(run, launch), TAIL_BYTES)
    except FileNotFoundError:
        return []
    latest = [line.get("seconds") for line in lines if "loss" in line][-LATEST_STEPS:]
    return [float(seconds) for seconds in latest if isinstance(seconds, int | float)]


def steps_ended(run: Path, launch: str) -> int:
    """How large the launch's metrics have grown, in bytes: it grows with each step that ends."""
    try:
        return metrics.file_of(run, launch).stat().st_size
    except FileNotFoundError:
        return 0


def patience(watch: Watchdog, latest: Sequence[float], phases: Sequence[str]) -> float:
    """Seconds that may pass until the next step ends, before the training is taken for hung."""
    if not latest or any(phase in SLOW_PHASES for phase in phases):
        return watch.start_seconds
    return max(watch.stall_seconds, watch.stall_factor * median(latest))


def _made(run: Path, launch: str) -> Path:
    path = folder(run, launch)
    path.mkdir(parents=True, exist_ok=True)
    return path


TRAINED, REFUSED, STOPPED, DIVERGED = 0, 2, 85, 86
"""Exit codes: trained and exported; cannot be done as the recipe says; stopped on request, with a checkpoint; stopped
for good. ``failure.json`` gives the reason for the second and the last. Anything else is a crash, after which the
training goes on from its last complete checkpoint."""
PLANNED: Final = (TRAINED, STOPPED, DIVERGED)
LAUNCH, RANKS_PER_NODE, END_TIME = "HALA_LAUNCH", "HALA_RANKS_PER_NODE", "HALA_END_TIME"
"""Variables that the launcher sets."""
RANK_VARIABLES: Final = (
    ("RANK", "SLURM_PROCID", "0"),
    ("WORLD_SIZE", "SLURM_NTASKS", "1"),
    ("LOCAL_RANK", "SLURM_LOCALID", "0"),
    ("LOCAL_WORLD_SIZE", RANKS_PER_NODE, ""),
)
"""Torch's name of each variable, where its value is found under srun, and the value without either."""


@dataclass(frozen=True)
class RankPlace:
    """``launch`` names the start of all ranks together; ``end_time`` is when Slurm ends the job (unix seconds)."""

    rank: int
    world: int
    local_rank: int
    ranks_per_node: int
    launch: str
    end_time: float | None

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def place() -> RankPlace:
    """Read the environment, and complete it as torch.distributed wants it (``RANK`` and so on)."""
    for name, slurms, default in RANK_VARIABLES:
        if value := os.environ.get(name) or os.environ.get(slurms, default):
            os.environ[name] = value
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29511")
    rank, world, local_rank = (int(os.environ[name]) for name, *_ in RANK_VARIABLES[:3])
    ranks_per_node = int(os.environ.get(RANKS_PER_NODE, "1"))
    end = os.environ.get(END_TIME)
    launch = os.environ.get(LAUNCH, "by-hand")
    return RankPlace(rank, world, local_rank, ranks_per_node, launch, float(end) if end else None)
