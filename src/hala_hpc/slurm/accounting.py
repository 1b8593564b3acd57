"""How tasks ended, as Slurm's accounting tells: it remembers what the queue has forgotten, and what killed a worker."""

import re
from collections.abc import Collection
from dataclasses import dataclass

from hala_hpc.config.errors import HalaError
from hala_hpc.slurm import commands

ASK_SECONDS = 5.0
"""Accounting is a database of its own, and a word on the past: nobody should wait for it."""
FIELDS = "JobID,State,ExitCode,End"
OUT_OF_MEMORY, KILLED = "OUT_OF_MEMORY", "KILLED"
"""Sites without cgroups kill for memory by a plain signal 9, which is also anybody's."""
_KILLED = re.compile(r"\d+:9|137:0")


@dataclass(frozen=True)
class End:
    """How an array task ended; ``by`` is the user id of who cancelled it. ``time`` in seconds since 1970."""

    job: str
    state: str
    by: int | None = None
    time: float = 0.0


def ends(tasks: Collection[str], since: float) -> list[End] | None:
    """How some tasks ended after ``since``, in one call. None where there is no accounting or no answer."""
    if not tasks:
        return []
    jobs = ",".join(dict.fromkeys(task.partition("_")[0] for task in tasks))
    try:
        # Times as numbers, whatever the time zones of login node and controller.
        words = ("env", "SLURM_TIME_FORMAT=%s", "sacct", "--noheader", "--parsable2", f"--format={FIELDS}")
        done = commands.said(*words, f"--jobs={jobs}", seconds=ASK_SECONDS)
    except HalaError:
        return None
    if done.code != 0 or "disabled" in done.error:
        return None
    return [one for one in parse(done.out) if one.job in tasks and one.time >= since]


def parse(text: str) -> list[End]:
    """Tasks that are over, out of ``sacct --parsable2`` in our format. What killed a step killed its task."""
    found: dict[str, End] = {}
    for line in text.splitlines():
        if line.count("|") != FIELDS.count(","):
            continue
        name, said, code, time = line.strip().split("|")
        job, _, step = name.partition(".")
        state, _, by = said.partition(" by ")
        state = KILLED if _KILLED.fullmatch(code) and (step or state == "FAILED") else state
        if not step and (state in commands.ENDED or state == KILLED):
            found[job] = End(job, state, int(by) if by.isdigit() else None, float(time) if time.isdigit() else 0.0)
        elif step and job in found and found[job].state in ("FAILED", KILLED) and state in (OUT_OF_MEMORY, KILLED):
            found[job] = End(job, state, time=found[job].time)
    return list(found.values())


def end_of(task: commands.JobState) -> End | None:
    """The same of a task that the queue still shows, for sites without accounting; None while it may work."""
    if task.may_work:
        return None
    killed = task.state == "FAILED" and ("RaisedSignal:9" in task.reason or task.reason == "NonZeroExitCode:137")
    return End(task.job, KILLED if killed else OUT_OF_MEMORY if task.reason == "OutOfMemory" else task.state)
