"""Workers that are processes of this machine: which of them live, and how they are stopped."""

import contextlib
import os
import signal
from pathlib import Path

from hala_hpc.run import ledger
from hala_hpc.slurm.record import submitted


def live(run: Path) -> dict[int, list[int]]:
    """Ids of live processes that were started here for a run (or that submitit watches them with), and their GPUs.

    They are known from the moment they are started. A process id may have been given to somebody else since, so each
    is looked at for what it runs.
    """
    gpus: dict[int, list[int]] = {}
    for submission in submitted(run):
        if submission.executor == "local" and submission.host in ("", os.uname().nodename):
            for number, job in enumerate(submission.jobs):
                if job.isdigit() and _is_for(int(job), run / "logs"):
                    gpus[int(job)] = submission.gpus[number] if number < len(submission.gpus) else []
    return gpus


def workers(run: Path) -> set[int]:
    """Process ids of the live workers of a run on this machine, one for each."""
    started = set(live(run))
    children = {child for pid in started for child in _children(pid)}
    # With setup lines a shell is between the process that we started and the one that watches the worker.
    watched = children | {inner for child in children for inner in _children(child)}
    return started | (_of_ledgers(run) - watched)


def end(run: Path, known: set[int]) -> set[int]:
    """Signal the local workers of a run to stop, those too that are just starting. Returns the processes that got it.

    ``known`` got it before: a worker passes over a signal while it starts, so it may have to be sent again.
    """
    logs = run / "logs"
    pids = live(run).keys() | _of_ledgers(run) | {pid for pid in known if _is_for(pid, logs)}
    pids |= {child for pid in pids for child in _children(pid) if _is_for(child, logs)}
    signalled = set()
    for pid in sorted(pids, reverse=True):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGTERM)
            signalled.add(pid)
    return signalled


def _of_ledgers(run: Path) -> set[int]:
    """Workers of this machine that are up, by their own files: also those that a person started."""
    pids = set()
    for file, worker in ledger.openings(run / "ledger"):
        is_here = worker["host"] == os.uname().nodename and worker.get("executor") != "slurm"
        if is_here and isinstance(worker.get("pid"), int) and (run / "leases" / "workers" / file.stem).exists():
            words = _words(worker["pid"])
            pids |= {worker["pid"]} if b"submitit" in words or b"hala" in words else set()
    return pids


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _is_for(pid: int, logs: Path) -> bool:
    """Whether a process is submitit's for these logs, or its worker; with setup lines a shell has them in its words."""
    words = _words(pid)
    return (b"submitit" in words or b"hala_hpc.worker" in words) and os.fsencode(logs) in words


def _words(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""
