"""What Slurm says of a run's jobs, in its queue and in its accounting, or that it says nothing."""

import os
import re
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hala_hpc.config.errors import HalaError, plural
from hala_hpc.run import ledger
from hala_hpc.slurm import accounting, commands, record
from hala_hpc.slurm.commands import JobState

FIELDS = "JobID,State,ExitCode,End"
OUT_OF_MEMORY, KILLED = "OUT_OF_MEMORY", "KILLED"
"""Sites without cgroups kill for memory by a plain signal 9, which is also anybody's."""
_KILLED = re.compile(r"\d+:9|137:0")
_OF_SRUN = re.compile(r"(9|137):0|\d+:9")
"""Exit codes of a job whose last step a signal 9 killed: 137 is 9 to the accounting of Slurm 22.05."""


@dataclass(frozen=True)
class TaskEnd:
    """How an array task ended; ``by`` is the user id of who cancelled it. ``time`` in seconds since 1970."""

    job: str
    state: str
    by: int | None = None
    time: float = 0.0


def ends(tasks: Collection[str], since: float) -> list[TaskEnd] | None:
    """How some tasks ended after ``since``, in one call. None where there is no accounting or no answer."""
    if not tasks:
        return []
    text = accounting.ask(dict.fromkeys(task.partition("_")[0] for task in tasks), FIELDS)
    return None if text is None else [end for end in parse(text) if end.job in tasks and end.time >= since]


def parse(text: str) -> list[TaskEnd]:
    """Tasks that are over, out of ``sacct --parsable2`` in our format.

    What killed a step killed its task, but where a worker was killed, started again (see ``again``), and then ended in
    another way.
    """
    killed: set[str] = set()
    by_job: dict[str, TaskEnd] = {}
    for name, words, code, seconds in commands.rows(text, len(FIELDS.split(","))):
        job, _, step = name.partition(".")
        state, _, by = words.partition(" by ")
        state = KILLED if _KILLED.fullmatch(code) and (step or state == "FAILED") else state
        if not step and _OF_SRUN.fullmatch(code):
            killed.add(job)
        if not step and (state in commands.ENDED or state == KILLED):
            by_job[job] = TaskEnd(
                job, state, int(by) if by.isdigit() else None, float(seconds) if seconds.isdigit() else 0.0
            )
            continue
        task = by_job.get(job)
        if task is None or task.state not in ("FAILED", KILLED):
            continue
        if step and (state == OUT_OF_MEMORY or (state == KILLED and job in killed)):
            by_job[job] = replace(task, state=state)
    return list(by_job.values())


def end_of(task: JobState) -> TaskEnd | None:
    """The same for a task that the queue still shows, for sites without accounting; None while it may work."""
    if task.may_work:
        return None
    killed = task.state == "FAILED" and ("RaisedSignal:9" in task.reason or task.reason == "NonZeroExitCode:137")
    return TaskEnd(task.job, KILLED if killed else OUT_OF_MEMORY if task.reason == "OutOfMemory" else task.state)


def nodes_of(job: str) -> list[str]:
    """The nodes that a task had, as accounting knows them; none where it does not."""
    names = (accounting.ask([job], "NodeList", "--allocations") or "").splitlines()[-1:]
    try:
        return commands.run("scontrol", "show", "hostnames", *names).split() if names and "None" not in names[0] else []
    except HalaError:
        return []


WATCH_SECONDS = 30.0
"""Between two questions while somebody watches: sites do not want programs to ask more often."""


@dataclass(frozen=True)
class Queue:
    """``silence`` is why there is no answer; empty where there is one. ``unanswered``: arrays that it may have.

    ``ends``: those of tasks whose worker did not say how it ended, since workers were last submitted. ``stewards``:
    their jobs that wait or work.
    """

    tasks: list[JobState] = field(default_factory=list)
    silence: str = ""
    unanswered: int = 0
    ends: list[TaskEnd] = field(default_factory=list)
    stewards: list[JobState] = field(default_factory=list)

    @property
    def live(self) -> int:
        """Tasks that work or may yet."""
        return sum(task.may_work for task in self.tasks)


class QueueView:
    """Slurm's last answer about some runs' jobs, renewed when it is old."""

    def __init__(self, *runs: Path) -> None:
        self._runs = runs
        self._queue: Queue | None = None
        self._at = 0.0

    def now(self, finished: bool = False) -> Queue:
        """The answer, at most ``WATCH_SECONDS`` old.

        Slurm is only asked about what is ``finished`` where a task may have outlived it: one that is held, or back in
        the queue.
        """
        if finished and not any(record.open_tasks(run) for run in self._runs):
            return Queue()
        if self._queue is None or time.monotonic() - self._at > WATCH_SECONDS:
            self._queue, self._at = with_ends(ask(*self._runs), self._runs), time.monotonic()
        return self._queue


def ask(*runs: Path) -> Queue:
    """The tasks of some runs in one call; Slurm is not asked where none of them is its own."""
    known = dict.fromkeys(job for run in runs for job in record.slurm_jobs(run))
    jobs = [job for job in known if "_" not in job or job.partition("_")[0] not in known]
    unanswered = sum(len(record.unanswered(run)) for run in runs)
    of_stewards = dict.fromkeys(job for run in runs for job in record.steward_jobs(run))
    try:
        tasks = commands.states([*jobs, *of_stewards])
    except HalaError as error:
        return Queue(silence=error.message, unanswered=unanswered)
    workers = [task for task in tasks if task.job.partition("_")[0] not in of_stewards]
    stewards = [task for task in tasks if task.job.partition("_")[0] in of_stewards and task.may_work]
    return Queue(workers, unanswered=unanswered, stewards=stewards)


def ended_workers(run: Path, queue: Queue) -> set[str]:
    """The workers of a run, and their processes, whose jobs are over by Slurm's word, however fresh their heartbeat."""
    if queue.silence:
        return set()
    known = {job.partition("_")[0] for job in record.slurm_jobs(run)}
    live = {task.job for task in queue.tasks if task.may_work}
    openings = {file.stem: opening for file, opening in ledger.openings(run / "ledger")}
    ended = {
        worker
        for worker, opening in openings.items()
        if opening.get("executor") == "slurm"
        and (job := str(opening.get("job", ""))).partition("_")[0] in known
        and job not in live
    }
    return ended | {worker for worker, opening in openings.items() if opening.get("part_of") in ended}


def with_ends(queue: Queue, runs: Sequence[Path]) -> Queue:
    """Asks accounting once, for tasks that are no longer in the queue and whose worker did not say how it ended."""
    if queue.silence:
        return queue
    live = {task.job for task in queue.tasks if task.may_work}
    silent = {task for run in runs for task in record.open_tasks(run)} - live
    known = ends(silent, max(map(record.newest, runs), default=0.0))
    if known is None:
        known = [end for task in queue.tasks if task.job in silent and (end := end_of(task)) is not None]
    return replace(queue, ends=known)


def advice(
    queue: Queue,
    run: Path,
    slurm: Mapping[str, Any],
    *,
    finished: bool = False,
    alive: bool = False,
    has_progress: bool = False,
) -> list[str]:
    """What a person should know of a run's jobs, and what to do.

    ``slurm`` is the recipe's ``site.slurm``; ``alive``: a worker has a heartbeat.
    """
    waiting = [task for task in queue.tasks if task.may_work and task.state not in ("RUNNING", commands.ENDING)]
    if finished:
        left = f"finished, but {plural(len(waiting), 'task')} still in the queue: hala cancel {run}"
        return [left] if waiting else []
    if queue.silence:
        return [f"Slurm does not answer ({queue.silence}): whether jobs wait or work is not known"]
    lines = []
    if unlaunched := [task for task in waiting if task.is_unlaunched]:
        release = " ".join(dict.fromkeys(task.job.partition("_")[0] for task in unlaunched))
        ways = f"a worker that ends or hala steward {run} lets each go three times, scontrol release {release} always"
        lines.append(f"{len(unlaunched)} held in the queue, for a node could not launch them: {ways}")
    if held := [task.job for task in waiting if task.is_held and not task.is_unlaunched]:
        release = " ".join(dict.fromkeys(job.partition("_")[0] for job in held))
        lines.append(f"{len(held)} held in the queue: scontrol release {release}, or hala cancel {run}")
    lines += _cures(queue.ends, run, slurm, has_progress)
    if queue.unanswered and not queue.live:
        lines.append(f"Slurm did not say whether it took the workers: hala resume {run} asks again")
    if not (alive or queue.unanswered or queue.live):
        stewards = ", ".join(task.job.partition("_")[0] for task in queue.stewards)
        decides = f"no worker is left; a steward (job {stewards}) decides how it goes on"
        lines.append(decides if stewards else f"nobody works on it: hala resume {run}")
    return lines


def _cures(ends: Sequence[TaskEnd], run: Path, slurm: Mapping[str, Any], has_progress: bool) -> list[str]:
    def now(key: str) -> str:
        return f"site.slurm.{key}" + (f" ({slurm[key]:g} now)" if slurm.get(key) else "")

    time_limit = f"raise {now('minutes')}, which must leave time to load the model"
    cures = {
        OUT_OF_MEMORY: f"raise {now('mem_gb')}",
        KILLED: f"signal 9, as for lack of memory: then raise {now('mem_gb')}",
        "TIMEOUT": f"it could not stop in time: raise {now('signal_seconds')}" if has_progress else time_limit,
        "DEADLINE": f"hala resume {run}",
        "NODE_FAIL": f"the node's fault; hala resume {run} if it is not back in the queue",
        "BOOT_FAIL": f"the node's fault; hala resume {run} if it is not back in the queue",
        "CANCELLED": f"by others than you: ask them, then hala resume {run}",
    }
    states = [end.state for end in ends if end.state != "CANCELLED" or end.by not in (None, os.getuid())]
    counts = Counter(state for state in states if state in cures)
    return [f"{plural(count, 'task')} ended by {state}: {cures[state]}" for state, count in counts.items()]
