"""From a planned run to its jobs, and to more of them when it goes on."""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Recipe
from hala_hpc.data.files import sources
from hala_hpc.run import manifest, status
from hala_hpc.slurm import local, queue, record
from hala_hpc.slurm.record import Submission
from hala_hpc.slurm.submit import submit_each
from hala_hpc.worker.array import ArrayWorker
from hala_hpc.worker.task import Task

MOVED = "data.path="
CHANGEABLE = ("site.", "run.workers=", "run.stall_seconds=", "run.flush_seconds=", MOVED)
"""What may differ from the frozen recipe when a run goes on: where it and its data are, never what is asked."""


def start(recipe: Recipe, task: Task, run: Path, workers: int) -> list[Submission]:
    """Hand in workers for a run, and before a training's launcher those that prepare its data; in this order.

    Raises HalaError where Slurm refuses; what was handed in until then is cancelled, if Slurm lets us.
    """
    if recipe.task.kind != "train":
        return [submit_each(recipe, run, task.stage, [ArrayWorker(str(run))] * workers)]
    from hala_hpc.slurm import commands
    from hala_hpc.tasks.train import task as train

    if recipe.site.executor != "slurm" and recipe.site.slurm.nodes_per_worker > 1:
        raise HalaError("site.slurm.nodes_per_worker: without Slurm there is one node", "set it to 1")
    before = prepare(recipe, task.stage, run, train.prepare_runs(run, recipe))
    jobs = [job for submission in before for job in submission.jobs]
    try:
        launcher = submit_each(
            recipe,
            run,
            task.stage,
            [ArrayWorker(str(run))] * workers,
            ranks=train.ranks_per_node(recipe.site),
            after=jobs,
        )
    except BaseException:
        with contextlib.suppress(HalaError):  # they are on record: `hala cancel` ends them
            commands.cancel(jobs)
        raise
    return [*before, launcher]


def prepare(recipe: Recipe, stage: str, run: Path, runs: Iterable[Path]) -> list[Submission]:
    """One array, without GPUs, for what is missing of ``runs``: the data of a training, or of a grid of them.

    Without Slurm there is none: launchers do it. ``run`` is where the array is written down.
    """
    if recipe.site.executor != "slurm":
        return []
    jobs = []
    for prepared in runs:
        status.retry_failed(prepared, recipe.run.attempts, recipe.run.lease_seconds)
        jobs += [ArrayWorker(str(prepared))] * min(recipe.run.workers, len(status.missing(prepared)))
    if not jobs:
        return []
    cpu = recipe.site.slurm_cpu
    asked = replace(cpu, account=cpu.account or recipe.site.slurm.account, gpus_per_worker=0, nodes_per_worker=1)
    whole = replace(recipe, run=replace(recipe.run, workers=len(jobs)), site=replace(recipe.site, slurm=asked))
    return [submit_each(whole, run, stage, jobs)]


def refuse_frozen(overrides: Sequence[str]) -> None:
    """Raises HalaError for an override of what a run's recipe has settled."""
    if wrong := [word for word in overrides if not word.startswith(CHANGEABLE)]:
        raise HalaError(f"'{wrong[0]}': a run's recipe is frozen", f"only these may change: {' '.join(CHANGEABLE)}")


def note_moved(path: Path, recipe: Recipe, overrides: tuple[str, ...]) -> None:
    """Where ``overrides`` say that a run's data moved: note their new places. Raises HalaError for other data."""
    if not any(word.startswith(MOVED) for word in overrides):
        return
    facts = manifest.read(path / "manifest.parquet").facts
    if facts.unit != "rows" or not any(Path(source["path"]).is_absolute() for source in facts.sources):
        raise HalaError(f"{MOVED[:-1]}: this run reads no file of it", "leave it out")
    sources.note(path, facts, recipe.data)


def at_work(*paths: Path) -> int:
    """How many workers of some runs are at work or will be, for all that Slurm and this machine tell.

    Raises HalaError where Slurm does not answer: nobody's work is to be doubled.
    """
    for path in paths:
        record.settle(path, ArrayWorker)
    found = queue.ask(*paths)
    if found.silence:
        raise HalaError(
            f"Slurm does not answer ({found.silence}), so who is at work is not known",
            "try again later; --workers N starts N all the same",
        )
    return found.live + sum(len(local.workers(path)) for path in paths)
