"""From a planned run to its jobs: what ``submit`` and ``resume`` share."""

import contextlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Recipe
from hala_hpc.run import status
from hala_hpc.slurm.record import Submission
from hala_hpc.slurm.submit import submit, submit_each
from hala_hpc.tasks.base import Task
from hala_hpc.worker.array import ArrayWorker


def start(recipe: Recipe, task: Task, run: Path, workers: int) -> list[Submission]:
    """Hand in workers for a run, and before a training's launcher those that prepare its data; in this order.

    Raises HalaError where Slurm refuses; what was handed in until then is cancelled, if Slurm lets us.
    """
    if task.loop != "train":
        return [submit(recipe, run, task.stage, workers, ArrayWorker(str(run)))]
    from hala_hpc.slurm import commands
    from hala_hpc.tasks import train

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
