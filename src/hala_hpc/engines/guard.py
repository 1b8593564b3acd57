"""Processes that must not outlive us, not even when we are killed with -9: an orphaned engine would keep its GPU."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PROGRAM = """
import os, signal, sys
sys.stdin.read()
for word in sys.argv[1:]:
    pid, started = word.split(":")
    try:
        with open(f"/proc/{pid}/stat") as stat:
            if stat.read().rpartition(")")[2].split()[19] == started:
                os.kill(int(pid), signal.SIGKILL)
    except OSError:
        pass
"""
"""Waits for the end of its input, which comes when whoever holds the other end is gone, however it went."""


class Guard:
    """A small process that kills the given ones once this process is gone; ``close`` calls it off."""

    def __init__(self, processes: Sequence[int]) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        if processes:
            words = [f"{pid}:{_started(pid)}" for pid in processes]
            # A session of its own: the signals that end us are not meant for it.
            command = [sys.executable, "-S", "-c", PROGRAM, *words]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def close(self) -> None:
        """Nothing is to be killed any more."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stdin is not None:
                self._process.stdin.close()
            self._process = None


def _started(pid: int) -> str:
    """When a process started, in the kernel's ticks: a process id alone may have gone to somebody else."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
