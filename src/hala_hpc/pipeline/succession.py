"""The job of a run's steward, and that of the next one: in the queue before anything else is asked, then told its time.

So a submission or a steward that is killed in between has a successor. Left alone, it starts ``GUARD_SECONDS`` later,
reads how far all is, and goes on from there.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Environment, Recipe
from hala_hpc.slurm import commands, queue, record
from hala_hpc.slurm.record import Job
from hala_hpc.slurm.submit import submit_each, without_gpus
from hala_hpc.worker import registry

MINUTES: Final = 30
"""Of the steward's job, which mostly takes seconds: Slurm may be silent for a while (ours)."""
MEMORY_GB: Final = 4.0
"""At most, of its job (ours)."""
GUARD_SECONDS: Final = 120
"""After which the next steward starts, should whoever handed it in be killed before it said what to wait for (ours)."""
AGAIN_SECONDS: Final = 60
"""The same, where jobs that it was to wait for are no longer in Slurm's queue."""
MOST_WATCHED: Final = 100
"""Tasks of which one's end starts a steward: Slurm looks at each often, and of many some are enough (ours)."""


@dataclass(frozen=True)
class Wait:
    """What the next steward waits for: the end of ``tasks``, of any of them or of all, and ``seconds`` at the least."""

    tasks: Sequence[str] = ()
    is_any: bool = False
    seconds: int = 0

    @property
    def dependency(self) -> str:
        """In Slurm's words."""
        if self.is_any:
            names = self.tasks[:: -(-len(self.tasks) // MOST_WATCHED) or 1]
        else:
            names = list(dict.fromkeys(task.partition("_")[0] for task in self.tasks))
        return ("?" if self.is_any else ",").join(f"afterany:{name}" for name in names)


def follows(recipe: Recipe) -> bool:
    """Whether stewards are handed in for a run, by its recipe and its site."""
    return recipe.site.executor == "slurm" and recipe.run.steward and recipe.site.jobs_submit


def waiting(folder: Path, work: Callable[[str], Job]) -> list[str]:
    """The jobs of next stewards in the queue, mostly one. ``work`` makes such a job. Raises HalaError for silence.

    One that is at work is none: it may be about to end, because it takes us for the next one.
    """
    record.settle(folder, work, record.STEWARD)
    tasks = queue.ask(folder)
    if tasks.silence:
        raise HalaError(f"Slurm does not answer ({tasks.silence})", "try again later")
    return list(dict.fromkeys(task.job.partition("_")[0] for task in tasks.stewards if task.state == "PENDING"))


def hand_in(folder: Path, recipe: Recipe, work: Callable[[str], Job], python: str = "") -> str:
    """The job of the next steward, in the queue already or handed in now, to start in ``GUARD_SECONDS``.

    Empty where none follows. ``python``: the interpreter, where it is not that of the workers. Raises HalaError where
    Slurm refuses or does not answer.
    """
    if not follows(recipe):
        return ""
    if jobs := waiting(folder, work):
        return jobs[0]
    site, environment = without_gpus(recipe.site), registry.create(recipe).environment
    slurm = replace(
        site.slurm,
        cpus_per_worker=1,
        mem_gb=min(site.slurm.mem_gb, MEMORY_GB) if site.slurm.mem_gb else site.slurm.mem_gb,
        minutes=min(MINUTES, site.slurm.minutes),
        max_running=None,
        extra=site.slurm.extra | {"begin": f"now+{GUARD_SECONDS}"},
    )
    environments = dict(site.environments)
    if (own := environments.get(environment)) is not None and own.container is not None:
        environments[environment] = Environment()  # a container may have no sbatch: in the Python that we run in
    if python:
        environments[environment] = Environment(python=python)
    site = replace(site, slurm=slurm, environments=environments)
    ours = replace(recipe, name=f"{folder.name}-steward", run=replace(recipe.run, workers=1), site=site)
    return submit_each(ours, folder, environment, [work(str(folder))], kind=record.STEWARD).jobs[0]


def tell(job: str, wait: Wait) -> None:
    """Say to a steward in the queue what it waits for. Where Slurm does not take it, it starts and sees for itself.

    Slurm refuses for a steward that has started, and for tasks that it has forgotten: these ended long ago.
    """
    start = f"StartTime=now+{wait.seconds}" if wait.seconds else "StartTime=now"
    try:
        commands.run("scontrol", "update", f"JobId={job}", start, f"Dependency={wait.dependency}")
    except HalaError as error:
        if wait.tasks and not commands.is_silence(error):
            tell(job, Wait(seconds=AGAIN_SECONDS))


def withdraw(jobs: Sequence[str]) -> None:
    """Take stewards out of the queue, but one that has started. What Slurm refuses stays, and sees for itself."""
    with contextlib.suppress(HalaError):
        if jobs:
            commands.run("scancel", "--state=PENDING", *jobs)
