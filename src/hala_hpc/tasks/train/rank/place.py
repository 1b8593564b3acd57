"""Which rank this process is, and its sign of life for the launcher's watchdog."""

import contextlib
import json
import os
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """``launch`` names the start of all ranks together; ``end_time`` is when Slurm ends the job (unix seconds)."""

    rank: int
    world: int
    local_rank: int
    launch: str
    end_time: float | None

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def place() -> Place:
    """Read the environment, and complete it as torch.distributed wants it (``RANK`` and so on)."""
    rank, world, local = (
        os.environ.get(ours) or os.environ.get(slurms, default)
        for ours, slurms, default in (
            ("RANK", "SLURM_PROCID", "0"),
            ("WORLD_SIZE", "SLURM_NTASKS", "1"),
            ("LOCAL_RANK", "SLURM_LOCALID", "0"),
        )
    )
    os.environ.update({"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(local)})
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29511")
    end = os.environ.get("HALA_END_TIME")
    return Place(
        int(rank or 0),
        int(world or 1),
        int(local or 0),
        os.environ.get("HALA_LAUNCH", "by-hand"),
        float(end) if end else None,
    )


SECONDS = 1.0


class Beacon:
    """Says which step and phase this rank is in. A process that is stopped or frozen falls silent, as it should."""

    def __init__(self, folder: Path, rank: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{rank}.json"
        self._constants = {"rank": rank, "host": socket.gethostname(), "pid": os.getpid()}
        self._now: tuple[int, str] = (0, "starting")
        self._stop = threading.Event()
        self._write()
        self._thread = threading.Thread(target=self._beat, name="beacon", daemon=True)
        self._thread.start()

    def at(self, step: int, phase: str) -> None:
        """Tell where the rank is; costs nothing."""
        self._now = (step, phase)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=10 * SECONDS)

    def _beat(self) -> None:
        while not self._stop.wait(SECONDS):
            self._write()
        self._write()

    def _write(self) -> None:
        step, phase = self._now
        temporary = self._path.with_suffix(".tmp")
        with contextlib.suppress(OSError):  # a full disk is no reason to stop training
            temporary.write_text(json.dumps({**self._constants, "step": step, "phase": phase, "time": time.time()}))
            temporary.rename(self._path)
