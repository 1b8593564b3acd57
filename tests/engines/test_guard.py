"""Nothing that a worker started outlives it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PARENT = """
import signal, subprocess, sys
from hala_hpc.engines.vllm import Guard
children = [subprocess.Popen(["sleep", "60"], start_new_session=True) for _ in range(2)]
guard = Guard([child.pid for child in children[:1]])
if sys.argv[1] == "closed":
    guard.close()
print(children[0].pid, children[1].pid, flush=True)
signal.pause()
"""


def start(mode: str) -> tuple[subprocess.Popen[str], int, int]:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, mode], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    guarded, free = map(int, parent.stdout.readline().split())
    return parent, guarded, free


def lives(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def ends(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while lives(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not lives(pid)


def test_a_killed_worker_takes_its_engine_along() -> None:
    parent, guarded, free = start("open")
    assert lives(guarded)
    parent.kill()
    parent.wait()
    assert ends(guarded)
    assert lives(free), "only what it was told to guard"
    os.kill(free, signal.SIGKILL)


def test_a_guard_that_was_called_off_kills_nobody() -> None:
    parent, guarded, free = start("closed")
    parent.kill()
    parent.wait()
    time.sleep(0.5)
    assert lives(guarded)
    for pid in (guarded, free):
        os.kill(pid, signal.SIGKILL)
