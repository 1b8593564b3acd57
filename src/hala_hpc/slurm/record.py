"""What was submitted for a run, and what was about to be: an intent is on disk before sbatch is asked.

A submission's file is ``ledger/submit-*.jsonl``, that of a steward's job ``steward-*.jsonl``: ``intended`` with a token
that the job carries as its comment, then ``submitted`` with its id or ``refused``. Where neither follows (a kill, a
controller that did not answer in time), the queue is asked for the token.
"""

import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hala_hpc.config.errors import HalaError, plural
from hala_hpc.run import layout, ledger
from hala_hpc.run.files import fsync
from hala_hpc.slurm import commands, pickles

END_BYTES = 16 * 1024
"""How much of a ledger's end holds a worker's last word."""
LATE_SECONDS = 180.0
"""A controller that fell silent may do so much later what it was asked for before."""
MOST_REQUEUES = 1_000
"""Times that submitit requeues one worker at the time limit; only a run without end would reach it."""


WORKERS, STEWARD = "submit", "steward"
"""Kinds of submissions: how the names of their files begin."""


class Job(Protocol):
    """What an array's task is to do; ``run`` is the run that it works on."""

    @property
    def run(self) -> str: ...

    def __call__(self) -> Any: ...


@dataclass(frozen=True)
class Submission:
    """What was submitted. ``jobs`` are array job ids (with Slurm) or process ids (local); ``time``: when (or 0)."""

    executor: str
    jobs: list[str]
    workers: int
    host: str = ""
    gpus: list[list[int]] = field(default_factory=list)  # of each local process
    runs: list[str] = field(default_factory=list)  # of each task of an array
    time: float = 0.0

    @property
    def tasks(self) -> dict[str, Path]:
        """Slurm's names of an array's tasks, with the run of each."""
        return {_task_name(self.jobs[0], task, len(self.runs)): Path(run) for task, run in enumerate(self.runs)}


@dataclass(frozen=True)
class Intent:
    """An array that Slurm was asked for, without an answer on record. ``runs`` are those of its tasks."""

    file: Path
    token: str
    runs: list[str]
    minutes: int | None
    time: float

    def took(self, job: str) -> None:
        """Slurm has it."""
        _append(self.file, "submitted", executor="slurm", jobs=[job], workers=len(self.runs))

    def refused(self, why: str) -> None:
        """Slurm does not have it, and will not."""
        _append(self.file, "refused", error=why)


def intend(run: Path, runs: Sequence[str], minutes: int | None, kind: str = WORKERS) -> Intent:
    """Write down what is about to be asked. Raises OSError where that cannot be kept: then nothing must be asked."""
    token = f"hala-{secrets.token_hex(6)}"
    file = run / "ledger" / f"{kind}-{time.time_ns()}.jsonl"
    _append(file, "intended", token=token, runs=list(runs), minutes=minutes, on=os.uname().nodename)
    fsync(file.parent)
    return Intent(file, token, list(runs), minutes, time.time())


def record(run: Path, submission: Submission) -> None:
    """Write down local processes that were started."""
    file = run / "ledger" / f"submit-{time.time_ns()}.jsonl"
    facts = {"executor": submission.executor, "jobs": submission.jobs, "workers": submission.workers}
    _append(file, "submitted", **facts, on=os.uname().nodename, gpus=submission.gpus)


def submitted(run: Path, kind: str = WORKERS) -> list[Submission]:
    """All of a kind that was ever submitted for a run, oldest first."""
    submissions = []
    for _, events in _files(run, kind):
        intents = [event for event in events if event["event"] == "intended"][:1]
        runs = next((event["runs"] for event in intents), [])
        submissions += [
            Submission(
                executor=event["executor"],
                jobs=event["jobs"],
                workers=event["workers"],
                host=event.get("on", ""),
                gpus=event.get("gpus", []),
                runs=runs,
                time=float((intents or [event])[0]["time"]),
            )
            for event in [event for event in events if event["event"] == "submitted"][:1]
        ]
    return submissions


def unanswered(run: Path, kind: str = WORKERS) -> list[Intent]:
    """Arrays that Slurm may have without our knowing, oldest first."""
    return [
        Intent(file, event["token"], event["runs"], event.get("minutes"), float(event["time"]))
        for file, events in _files(run, kind)
        if not any(event["event"] in ("submitted", "refused") for event in events)
        for event in [event for event in events if event["event"] == "intended"][:1]
    ]


def slurm_jobs(run: Path) -> list[str]:
    """Slurm's arrays for a run: those submitted here, and those of workers that were started by hand."""
    jobs = [job for submission in submitted(run) if submission.executor == "slurm" for job in submission.jobs]
    workers = [worker for _, worker in ledger.openings(run / "ledger") if worker.get("executor") == "slurm"]
    # Where an array's other tasks are at other runs, only our own count. A job without tasks is somebody's interactive
    # one.
    shared = grid_of(run)
    for submission in submitted(run.parent) if shared else ():
        jobs += [task for task, path in submission.tasks.items() if path.name == run.name]
    names = [str(worker["job"]) for worker in workers if "_" in str(worker.get("job", ""))]
    return list(dict.fromkeys([*jobs, *(name if shared else name.partition("_")[0] for name in names)]))


def open_tasks(run: Path) -> list[str]:
    """Slurm's tasks whose worker did not say that its work is over, as workers name their jobs.

    Only what it said at its own run counts: a launcher also finishes the preparation of data, and then goes on.
    """
    runs: dict[str, Path] = {}
    for folder in (run, *grid_of(run)):
        for submission in submitted(folder):
            for task, path in submission.tasks.items():
                if folder == run or path.name == run.name:
                    runs[task] = _as_moved(run, path)
    over = set()
    for folder in {run, *runs.values()}:
        for file, worker in ledger.openings(folder / "ledger"):
            job = str(worker.get("job", ""))
            if worker.get("executor") == "slurm" and folder == run and job:
                runs.setdefault(job, run)
            if runs.get(job) == folder and any(map(_is_end, ledger.read(file, END_BYTES, ("ended", "failed")))):
                over.add(job)
    return [job for job in runs if job not in over]


def newest(run: Path) -> float:
    """When workers were last submitted for a run; 0 where they never were."""
    times = [event["time"] for folder in (run, *grid_of(run)) for _, events in _files(folder) for event in events]
    return float(max(times, default=0.0))


def grid_of(run: Path) -> list[Path]:
    """The folder of the grid that a run belongs to, if it does."""
    return [run.parent] if (run.parent / layout.GRID).is_file() else []


def _task_name(job: str, task: int, tasks: int) -> str:
    """How Slurm names a task of a job with so many: one alone is not an array."""
    return f"{job}_{task}" if tasks > 1 else job


def _as_moved(run: Path, path: Path) -> Path:
    """Where a run of this or of a grid is, wherever it was when it was submitted."""
    here = run if path.name == run.name else run / path.name
    return here if here.is_dir() else path


def _is_end(event: ledger.Event) -> bool:
    """Whether the event says that the worker's job ends, and will not be back in the queue."""
    if event["event"] == "failed":
        return "shard" not in event
    return event["event"] == "ended" and event.get("outcome") in ("finished", "gave up")


def steward_jobs(run: Path) -> list[str]:
    """Slurm's jobs of the stewards of a run or a grid, oldest first."""
    return [job for submission in submitted(run, STEWARD) for job in submission.jobs]


def settle(run: Path, work: Callable[[str], Job], kind: str = WORKERS) -> list[str]:
    """Ask Slurm what became of unanswered submissions, and write it down. Returns the ids of arrays that it has.

    ``work`` makes the job of a run by its path.

    Raises HalaError where Slurm does not answer, or may still do what it was asked for a moment ago.
    """
    jobs = []
    for intent in unanswered(run, kind):
        if (job := in_queue(intent.token, intent.file.stat().st_uid)) is not None:
            adopt(run, intent, job, [work(path) for path in intent.runs])
            jobs.append(job)
        elif (wait := intent.time + LATE_SECONDS - time.time()) > 0:
            raise HalaError(
                f"{run.name}: Slurm gave no answer for {plural(len(intent.runs), 'worker')}, and may take them yet",
                f"try again in {wait:.0f} s",
            )
        else:
            intent.refused("not in the queue")
    return jobs


def in_queue(token: str, user: int) -> str | None:
    """The array of a user with this token in its comment. Raises HalaError where Slurm does not answer."""
    words = ("squeue", f"--user={user}", "--noheader", "--states=all", "--format=%F|%k")
    lines = commands.rows(commands.run(*words, seconds=commands.ASK_SECONDS), 2)
    return next((job for job, comment in lines if token in comment), None)


def adopt(run: Path, intent: Intent, job: str, work: Sequence[Job]) -> None:
    """Give the tasks of an array the work that submitit would have given them, had it got sbatch's answer."""
    from submitit.core.utils import DelayedSubmission, JobPaths

    pickles.guard()
    for task, call in enumerate(work):
        pickle = JobPaths(run / "logs", job_id=_task_name(job, task, len(work))).submitted_pickle
        if not pickle.exists():
            delayed = DelayedSubmission(call)
            delayed.set_timeout(intent.minutes or 60, MOST_REQUEUES)
            whole = pickle.with_name(f".{pickle.name}.{secrets.token_hex(6)}")
            delayed.dump(whole)  # tasks of the array may do so at the same time
            whole.rename(pickle)
    intent.took(job)


def take_up(run: Path, token: str, job: str, work: Mapping[str, Callable[[str], Job]]) -> None:
    """The same by one of the array's own tasks, whose submitter was killed. ``work`` is by kind of submission."""
    for kind, job_of in work.items():
        for intent in unanswered(run, kind):
            if intent.token == token and intent.file.stat().st_uid == os.getuid():
                adopt(run, intent, job.partition("_")[0], [job_of(path) for path in intent.runs])


def _files(run: Path, kind: str = WORKERS) -> Iterator[tuple[Path, list[ledger.Event]]]:
    """The submissions of a run, oldest first, with their events."""
    return ((file, list(ledger.read(file))) for file in sorted((run / "ledger").glob(f"{kind}-*.jsonl")))


def _append(file: Path, event: str, **fields: Any) -> None:
    """One event, durable. Raises OSError: unlike the history of a worker, this must not have a gap."""
    with file.open("ab") as out:
        out.write(ledger.line(event, fields))
    fsync(file)
