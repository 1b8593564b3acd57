"""Workers that are processes of this machine: which of them live, and how they are asked to stop."""

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from hala_hpc.run import ledger
from hala_hpc.slurm.record import submitted


@dataclass(frozen=True)
class Process:
    """A live process of a run's worker, or the one that submitit watches it with."""

    pid: int
    gpus: tuple[int, ...] = ()


def live(run: Path) -> list[Process]:
    """Processes started here for a run that live: known from the moment they are started.

    A process id may have been given to somebody else since, so each is looked at for what it runs.
    """
    here, found = os.uname().nodename, {}
    for one in submitted(run):
        if one.executor != "local" or one.host not in ("", here):
            continue
        for number, job in enumerate(one.jobs):
            gpus = one.gpus[number] if number < len(one.gpus) else []
            if job.isdigit() and _is_for(int(job), run / "logs"):
                found[int(job)] = Process(int(job), tuple(gpus))
    return list(found.values())


def workers(run: Path) -> set[int]:
    """Process ids of the live workers of a run on this machine, one for each."""
    started = {process.pid for process in live(run)}
    watched = {child for pid in started for child in (*_children(pid), *_grandchildren(pid))}
    return started | (_of_ledgers(run) - watched)


def end(run: Path, known: set[int]) -> set[int]:
    """Ask the local workers of a run to stop, those too that are just starting. Returns the processes that were asked.

    ``known`` are those asked before: a worker passes over a signal while it starts, so one may have to be asked again.
    """
    logs = run / "logs"
    found = {process.pid for process in live(run)} | _of_ledgers(run) | {pid for pid in known if _is_for(pid, logs)}
    found |= {child for pid in found for child in _children(pid) if _is_for(child, logs)}
    asked = set()
    for pid in sorted(found, reverse=True):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGTERM)
            asked.add(pid)
    return asked


def _of_ledgers(run: Path) -> set[int]:
    """Workers of this machine that are up, by their own files: also those that a person started."""
    here, found = os.uname().nodename, set()
    for file in sorted((run / "ledger").glob("*.jsonl")):
        worker = ledger.first(file)
        is_here = worker.get("host") == here and worker.get("executor") != "slurm"
        if is_here and isinstance(worker.get("pid"), int) and (run / "leases" / "workers" / file.stem).exists():
            words = _words(worker["pid"])
            found |= {worker["pid"]} if b"submitit" in words or b"hala" in words else set()
    return found


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _grandchildren(pid: int) -> list[int]:
    """With setup lines a shell is between the process that we started and the one that watches the worker."""
    return [inner for child in _children(pid) for inner in _children(child)]


def _is_for(pid: int, logs: Path) -> bool:
    """Whether a process is submitit's for these logs; with setup lines it is a shell that has them in its command."""
    words = _words(pid)
    return b"submitit" in words and os.fsencode(logs) in words


def _words(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
