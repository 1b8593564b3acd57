"""A sign of life of each rank, for the launcher's watchdog: a small file that a thread rewrites every second."""

import contextlib
import json
import os
import socket
import threading
import time
from pathlib import Path

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
