"""From planned runs to their jobs, and to more of them when they go on."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from hala_hpc.config import frozen
from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Recipe
from hala_hpc.data.files import sources
from hala_hpc.pipeline import lookup
from hala_hpc.pipeline.planning import PlannedRun, on_its_nodes
from hala_hpc.run import lease, manifest, status
from hala_hpc.run.files import share
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.status import Status
from hala_hpc.slurm import commands, local, queue, record
from hala_hpc.slurm.queue import Queue
from hala_hpc.slurm.record import Submission
from hala_hpc.slurm.script import require_environment
from hala_hpc.slurm.submit import submit_each, without_gpus
from hala_hpc.worker import registry
from hala_hpc.worker.array import ArrayWorker

MOVED = "data.path="
CHANGEABLE = (
    *("site.", "run.workers=", "run.stall_seconds=", "run.flush_seconds=", "run.track.", MOVED),
    *("run.steward=", "run.submissions=", "run.days=", "engine.max_num_seqs="),
)
"""What may differ from the frozen recipe when a run goes on: where it and its data are, never what is asked."""


def start(folder: Path, runs: Sequence[PlannedRun], workers: Mapping[Path, int] | None = None) -> list[Submission]:
    """Hand in one array of workers for all runs, and before it, of trainings, one that prepares their data.

    ``folder``, where the arrays are written down, is the run's own or that of its grid. ``workers``: how many for each
    run, where not as many as its recipe wants. Raises HalaError where Slurm refuses; what was handed in until then is
    cancelled, if Slurm lets us.
    """
    recipe, environment = runs[0].recipe, runs[0].task.environment
    if any(run.recipe.site != recipe.site for run in runs):
        raise HalaError("grid: its cells share one array of jobs, so `site` cannot be an axis", "make it two grids")
    jobs = []
    for run in runs:
        most = max(1, len(status.missing(run.path)))  # 1: the last step
        count = workers[run.path] if workers else min(run.recipe.run.workers, most)
        jobs += [ArrayWorker(str(run.path))] * count
    whole = recipe
    if folder != runs[0].path:
        recipe = replace(recipe, name=folder.name)
        whole = replace(recipe, run=replace(recipe.run, workers=len(jobs)))
    if recipe.task.kind != "train":
        return [submit_each(on_its_nodes(whole, runs[0].task), folder, environment, jobs)]
    from hala_hpc.tasks.train import task as train

    if recipe.site.executor != "slurm" and recipe.site.slurm.nodes_per_worker > 1:
        raise HalaError("site.slurm.nodes_per_worker: without Slurm there is one node", "set it to 1")
    data = (path.resolve() for run in runs for path in train.prepare_runs(run.path, run.recipe))
    before = _prepare(recipe, environment, folder, dict.fromkeys(data))  # links in a cell lead to what all cells share
    after = [job for submission in before for job in submission.jobs]
    ranks = train.ranks_per_node(recipe.site)
    try:
        return [*before, submit_each(whole, folder, environment, jobs, ranks=ranks, after=after)]
    except BaseException:
        with contextlib.suppress(HalaError):  # they are on record: `hala cancel` ends them
            commands.cancel(after)
        raise


def _prepare(recipe: Recipe, environment: str, folder: Path, runs: Iterable[Path]) -> list[Submission]:
    """One array, without GPUs, for what is missing of the data; none without Slurm, where launchers prepare it."""
    if recipe.site.executor != "slurm":
        return []
    jobs = []
    for run in runs:
        status.retry_failed(run, recipe.run.attempts, recipe.run.lease_seconds)
        jobs += [ArrayWorker(str(run))] * min(recipe.run.workers, len(status.missing(run)))
    if not jobs:
        return []
    whole = replace(recipe, run=replace(recipe.run, workers=len(jobs)), site=without_gpus(recipe.site))
    return [submit_each(whole, folder, environment, jobs)]


def thawed(path: Path, overrides: tuple[str, ...]) -> PlannedRun:
    """A run that goes on, with what ``overrides`` change of it. Raises HalaError for what may not change."""
    if wrong := [word for word in overrides if not word.startswith(CHANGEABLE)]:
        raise HalaError(f"'{wrong[0]}': a run's recipe is frozen", f"only these may change: {' '.join(CHANGEABLE)}")
    recipe = lookup.thawed(path, overrides)
    share(recipe.is_shared)
    task = registry.create(recipe)
    require_environment(recipe.site, task.environment)
    return PlannedRun(recipe, task, path)


def retry(run: PlannedRun) -> tuple[Status, int]:
    """Where a run stands once its failed shards may be tried again, and how many they are."""
    settings = run.recipe.run
    retried = status.retry_failed(run.path, settings.attempts, settings.lease_seconds)
    return status.read(run.path, settings.lease_seconds, settings.attempts), retried


def note_moved(run: PlannedRun, overrides: tuple[str, ...]) -> None:
    """Note the new places of a run's data where ``overrides`` say that it moved. Raises HalaError for other data."""
    if not any(word.startswith(MOVED) for word in overrides):
        return
    facts = manifest.read(run.path / "manifest.parquet").facts
    reads_files = any(Path(source["path"]).is_absolute() for source in facts.sources)
    if facts.unit != "rows" or facts.items or facts.redo is not None or not reads_files:
        raise HalaError(f"{MOVED[:-1]}: this run reads no file of it", "leave it out")
    sources.note(run.path, facts, run.recipe.data)


def free_shards_of_dead(runs: Iterable[Path], tasks: Queue) -> None:
    """Have nobody wait until leases of workers are stale whose jobs are over by Slurm's word."""
    for run in runs:
        for worker in queue.ended_workers(run, tasks):
            lease.outdate(RunDirectory(run), worker, frozen.settings(run).lease_seconds)


def at_work(*paths: Path) -> int:
    """How many workers of some runs are at work or will be, as far as Slurm and this machine know.

    Shards of those whose jobs are over are free from then on. Raises HalaError where Slurm does not answer: nobody's
    work is to be doubled.
    """
    for path in paths:
        record.settle(path, ArrayWorker)
    tasks = queue.ask(*paths)
    if tasks.silence:
        raise HalaError(
            f"Slurm does not answer ({tasks.silence}), so it is not known which workers run",
            "try again later; --workers N starts N all the same",
        )
    runs = [run for path in paths for run in lookup.runs_of(path)]
    free_shards_of_dead(runs, tasks)
    return tasks.live + sum(len(local.workers(path)) for path in paths)
