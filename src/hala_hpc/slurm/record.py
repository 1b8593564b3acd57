"""What was handed in for a run, and what was about to be: an intent is on disk before sbatch is asked.

A submission's file is ``ledger/submit-*.jsonl``: ``intended`` with a token that the job carries as its comment, then
``submitted`` with its id or ``refused``. Where neither follows (a kill, a controller that did not answer in time), the
queue is asked for the token.
"""

import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hala_hpc.config.errors import HalaError
from hala_hpc.config.words import plural
from hala_hpc.run import layout, ledger
from hala_hpc.run.files import fsync_directory, fsync_file
from hala_hpc.slurm import commands

END_BYTES = 16 * 1024
"""How much of a ledger's end holds a worker's last word."""
LATE_SECONDS = 180.0
"""A controller may do so much later what it was asked for before it fell silent."""
MOST_REQUEUES = 1_000
"""Times that submitit requeues one worker at the time limit; only a run without end would reach it."""


class Job(Protocol):
    """What an array's task is to do; ``run`` is the run that it works on."""

    @property
    def run(self) -> str: ...

    def __call__(self) -> Any: ...


@dataclass(frozen=True)
class Submission:
    """What was handed in. ``jobs`` are array job ids (with Slurm) or process ids (local)."""

    executor: str
    jobs: list[str]
    workers: int
    host: str = ""
    gpus: list[list[int]] = field(default_factory=list)  # of each local process
    runs: list[str] = field(default_factory=list)  # of each task of an array


@dataclass(frozen=True)
class Intent:
    """An array that Slurm was asked for and of which no answer is on record. ``runs`` are those of its tasks."""

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


def intend(run: Path, runs: Sequence[str], minutes: int | None) -> Intent:
    """Write down what is about to be asked. Raises OSError where that cannot be kept: then nothing must be asked."""
    token = f"hala-{secrets.token_hex(6)}"
    file = run / "ledger" / f"submit-{time.time_ns()}.jsonl"
    fields = {"token": token, "runs": list(runs), "minutes": minutes, "on": os.uname().nodename}
    _append(file, "intended", **fields)
    fsync_directory(file.parent)
    return Intent(file, token, list(runs), minutes, time.time())


def record(run: Path, submission: Submission) -> None:
    """Write down local processes that were started."""
    file = run / "ledger" / f"submit-{time.time_ns()}.jsonl"
    told = {"on": os.uname().nodename, "gpus": submission.gpus}
    _append(file, "submitted", executor=submission.executor, jobs=submission.jobs, workers=submission.workers, **told)


def submitted(run: Path) -> list[Submission]:
    """All that was ever handed in for a run, oldest first."""
    found = []
    for events in _events(run):
        runs: list[str] = next((event["runs"] for event in events if event["event"] == "intended"), [])
        for event in events:
            if event["event"] == "submitted":
                more = (event.get("on", ""), event.get("gpus", []), runs)
                found.append(Submission(event["executor"], event["jobs"], event["workers"], *more))
    return found


def unanswered(run: Path) -> list[Intent]:
    """Arrays that Slurm may have without our knowing, oldest first."""
    found = []
    for file, events in zip(_files(run), _events(run), strict=True):
        intents = [event for event in events if event["event"] == "intended"]
        if intents and not any(event["event"] in ("submitted", "refused") for event in events):
            one = intents[0]
            found.append(Intent(file, one["token"], one["runs"], one.get("minutes"), float(one["time"])))
    return found


def slurm_jobs(run: Path) -> list[str]:
    """Slurm's arrays for a run: those submitted here, and those that workers started by hand tell of."""
    jobs = [job for one in submitted(run) if one.executor == "slurm" for job in one.jobs]
    started = map(ledger.first, sorted((run / "ledger").glob("*.jsonl")))
    names = [str(worker["job"]) for worker in started if worker.get("executor") == "slurm" and "job" in worker]
    # Of an array whose other tasks are at other runs only our own; a job without tasks is somebody's interactive one.
    shared = (run.parent / layout.GRID).is_file()
    for one in submitted(run.parent) if shared else ():
        jobs += [f"{one.jobs[0]}_{task}" for task, path in enumerate(one.runs) if Path(path).name == run.name]
    jobs += [name if shared else name.partition("_")[0] for name in names if "_" in name]
    return list(dict.fromkeys(jobs))


def open_tasks(run: Path) -> list[str]:
    """Slurm's tasks whose worker did not say that its work is over, as workers name their jobs.

    Only what it said at its own run counts: a launcher also finishes the preparation of data, and then goes on.
    """
    given: dict[str, Path] = {}
    for folder in (run, *([run.parent] if (run.parent / layout.GRID).is_file() else [])):
        for one in submitted(folder):
            for number, path in enumerate(one.runs if one.executor == "slurm" else ()):
                if folder == run or Path(path).name == run.name:
                    name = one.jobs[0] if len(one.runs) == 1 else f"{one.jobs[0]}_{number}"
                    given[name] = _as_moved(run, Path(path))
    over = set()
    for folder in {run, *given.values()}:
        for file in (folder / "ledger").glob("*.jsonl"):
            opening = ledger.first(file)
            job = str(opening.get("job", ""))
            if opening.get("executor") == "slurm" and folder == run and job:
                given.setdefault(job, run)
            if given.get(job) == folder and any(map(_is_end, ledger.read(file, END_BYTES))):
                over.add(job)
    return [job for job in given if job not in over]


def newest(run: Path) -> float:
    """When workers were last handed in for a run; 0 where they never were."""
    folders = (run, *([run.parent] if (run.parent / layout.GRID).is_file() else []))
    return max(
        (float(event["time"]) for folder in folders for events in _events(folder) for event in events), default=0.0
    )


def _as_moved(run: Path, path: Path) -> Path:
    """Where a run of this or of a grid is, wherever it was when it was handed in."""
    here = run if path.name == run.name else run / path.name
    return here if here.is_dir() else path


def _is_end(event: ledger.Event) -> bool:
    """Whether a worker says with it that its job ends, and not to be back in the queue."""
    if event["event"] == "failed":
        return "shard" not in event
    return event["event"] == "ended" and event.get("outcome") in ("finished", "gave up")


def settle(run: Path, work: Callable[[str], Job]) -> list[str]:
    """Ask Slurm what became of unanswered submissions, and write it down. Returns the ids of arrays that it has.

    ``work`` makes the job of a run by its path.

    Raises HalaError where Slurm does not answer, or may still do what it was asked for a moment ago.
    """
    found = []
    for intent in unanswered(run):
        if (job := in_queue(intent.token)) is not None:
            adopt(run, intent, job, [work(path) for path in intent.runs])
            found.append(job)
        elif (wait := intent.time + LATE_SECONDS - time.time()) > 0:
            raise HalaError(
                f"{run.name}: Slurm gave no answer for {plural(len(intent.runs), 'worker')}, and may take them yet",
                f"try again in {wait:.0f} s",
            )
        else:
            intent.refused("not in the queue")
    return found


def in_queue(token: str) -> str | None:
    """The array with this token in its comment. Raises HalaError where Slurm does not answer."""
    words = ("squeue", "--me", "--noheader", "--states=all", "--format=%F|%k")
    lines = (line.strip().split("|", 1) for line in commands.run(*words, seconds=commands.ASK_SECONDS).splitlines())
    return next((line[0] for line in lines if len(line) == 2 and token in line[1]), None)


def adopt(run: Path, intent: Intent, job: str, work: Sequence[Job]) -> None:
    """Give the tasks of an array the work that submitit would have given them, had it got sbatch's answer."""
    from submitit.core.utils import DelayedSubmission, JobPaths

    for task, one in enumerate(work):
        name = f"{job}_{task}" if len(work) > 1 else job
        pickle = JobPaths(run / "logs", job_id=name).submitted_pickle
        if not pickle.exists():
            delayed = DelayedSubmission(one)
            delayed.set_timeout(intent.minutes or 60, MOST_REQUEUES)
            delayed.dump(pickle)
    intent.took(job)


def _files(run: Path) -> list[Path]:
    return sorted((run / "ledger").glob("submit-*.jsonl"))


def _events(run: Path) -> Iterator[list[ledger.Event]]:
    return (list(ledger.read(file)) for file in _files(run))


def _append(file: Path, event: str, **fields: Any) -> None:
    """One event, durable. Raises OSError: unlike the history of a worker, this must not have a gap."""
    line = json.dumps({"event": event, "time": round(time.time(), 3), **fields}, ensure_ascii=False)
    with file.open("ab") as out:
        out.write(line.encode() + b"\n")
    fsync_file(file)
