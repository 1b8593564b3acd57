"""What was handed in for a run, as its ledger knows it: before it was asked for, and as soon as it was taken."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hala_hpc.run import layout, ledger
from hala_hpc.slurm import commands


@dataclass(frozen=True)
class Submission:
    """What was handed in. ``jobs`` are array job ids (with Slurm) or process ids (local).

    ``gpus`` are those of local workers, by process id; ``started`` is when each process did, in the kernel's ticks.
    """

    executor: str
    jobs: list[str]
    workers: int
    gpus: dict[str, list[int]] = field(default_factory=dict)
    started: dict[str, str] = field(default_factory=dict)


def submitted(run: Path) -> list[Submission]:
    """All that was ever handed in for a run, oldest first."""
    events = [event for events in _by_file(run).values() for event in events if event["event"] == "submitted"]
    fields = Submission.__dataclass_fields__
    return [Submission(**{key: value for key, value in event.items() if key in fields}) for event in events]


def unanswered(run: Path) -> dict[Path, str]:
    """Submissions whose answer was lost, by their file in the ledger: the mark that their jobs would bear."""
    return {
        file: str(events[-1]["mark"]) for file, events in _by_file(run).items() if events[-1]["event"] == "submitting"
    }


def find_lost(run: Path) -> list[str]:
    """Ask Slurm for jobs whose submission got no answer, and put them on record. Returns their ids.

    Raises HalaError where Slurm does not answer: then nobody knows whether there are such jobs.
    """
    found: list[str] = []
    for file, mark in unanswered(run).items():
        jobs = commands.with_comment(mark)
        history = ledger.Ledger(file)
        for job in jobs:
            history.write("submitted", **vars(Submission("slurm", [job], 0)))
        if not jobs:
            history.write("refused", error="Slurm knows of no such job")
        history.close()
        found += jobs
    return found


def slurm_jobs(run: Path) -> list[str]:
    """Slurm's arrays for a run: those submitted here, and those that workers started by hand tell of."""
    jobs = [job for one in submitted(run) if one.executor == "slurm" for job in one.jobs]
    started = map(ledger.first, sorted((run / "ledger").glob("*.jsonl")))
    names = [str(worker["job"]) for worker in started if worker.get("executor") == "slurm"]
    # Of an array whose other tasks are at other runs only our own; a job without tasks is somebody's interactive one.
    shared = (run.parent / layout.GRID).is_file()
    jobs += [name if shared else name.partition("_")[0] for name in names if "_" in name]
    return list(dict.fromkeys(jobs))


def is_alive(one: Submission, pid: str) -> bool:
    """Whether a local worker's process still is the one that was started."""
    return bool(start_time(pid)) and one.started.get(pid, "") in ("", start_time(pid)) and is_ours(pid)


def start_time(pid: str) -> str:
    """When a process started, in the kernel's ticks since boot; '' for one that is gone, or dead and not yet buried."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if words[0] == "Z" else words[19]


def is_ours(pid: str) -> bool:
    """A process id may have been given to somebody else since: look at what it runs."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"submitit" in words or b"hala" in words


def _by_file(run: Path) -> dict[Path, list[dict[str, Any]]]:
    """What each submission wrote down, oldest first."""
    files = sorted((run / "ledger").glob("submit-*.jsonl"))
    read = {file: [event for event in ledger.read(file) if event["event"] != "started"] for file in files}
    return {file: events for file, events in read.items() if events}


@contextlib.contextmanager
def recording(run: Path) -> Iterator[Callable[..., None]]:
    """A file in the run's ledger for one submission. What is written there is on the disk before anything goes on."""
    (run / "ledger").mkdir(exist_ok=True)
    path = run / "ledger" / f"submit-{time.time_ns()}.jsonl"

    def record(event: str, submission: Submission | None = None, **told: Any) -> None:
        with path.open("ab") as file:  # no Ledger: that passes over a full disk, and a job must never be forgotten
            line = {"event": event, "time": round(time.time(), 3), **(vars(submission) if submission else {}), **told}
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    yield record
