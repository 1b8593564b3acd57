"""What Slurm says of a run's jobs, or that it says nothing."""

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from hala_hpc.config.errors import HalaError
from hala_hpc.slurm import commands, record
from hala_hpc.slurm.commands import JobState

WATCH_SECONDS = 30.0
"""Between two questions while somebody watches: sites do not want programs to ask more often."""


@dataclass(frozen=True)
class Queue:
    """``silence`` is why there is no answer; empty where there is one. ``unanswered``: arrays that it may have."""

    tasks: list[JobState] = field(default_factory=list)
    silence: str = ""
    unanswered: int = 0

    @property
    def live(self) -> int:
        """Tasks that work or may yet."""
        return commands.live_workers(self.tasks)

    @property
    def may_work(self) -> bool:
        """Whether somebody may be at work, or be yet, for all that Slurm tells."""
        return bool(self.silence or self.unanswered or self.live)


class Asked:
    """Slurm's last answer of some runs' jobs, asked for again when it is old."""

    def __init__(self, *runs: Path) -> None:
        self._runs = runs
        self._queue: Queue | None = None
        self._at = 0.0

    def now(self) -> Queue:
        """The answer, at most ``WATCH_SECONDS`` old."""
        if self._queue is None or time.monotonic() - self._at > WATCH_SECONDS:
            self._queue, self._at = ask(*self._runs), time.monotonic()
        return self._queue


def ask(*runs: Path) -> Queue:
    """The tasks of some runs in one call; without a question where none of them is Slurm's."""
    jobs = list(dict.fromkeys(job for run in runs for job in record.slurm_jobs(run)))
    unanswered = sum(len(record.unanswered(run)) for run in runs)
    try:
        return Queue(commands.states(jobs), unanswered=unanswered)
    except HalaError as error:
        return Queue(silence=error.message, unanswered=unanswered)


def hints(tasks: list[JobState], run: str, minutes: int | None, has_progress: bool) -> list[str]:
    """What a person should know of tasks that ended badly or are held."""
    found = []
    if held := [one.job for one in tasks if one.is_held]:
        found.append(
            f"{len(held)} held in the queue: scontrol release {held[0].partition('_')[0]}, or hala cancel {run}"
        )
    kinds = Counter(_end(one) for one in tasks)
    if kinds["memory"]:
        found.append(f"{kinds['memory']} ended for lack of memory: a larger site.slurm.mem_gb (hala logs {run})")
    if kinds["time"] and not has_progress:
        what = f"site.slurm.minutes ({minutes})" if minutes else "site.slurm.minutes"
        found.append(
            f"{kinds['time']} ended at the time limit before anything was done: {what} must leave time to load"
        )
    return found


def _end(one: JobState) -> str:
    killed = "RaisedSignal:9" in one.reason or one.reason in ("OutOfMemory", "NonZeroExitCode:137")
    if one.state == "OUT_OF_MEMORY" or (one.state == "FAILED" and killed):
        return "memory"
    return "time" if one.state == "TIMEOUT" else ""
