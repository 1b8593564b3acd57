"""``hala resume``: workers for what is missing."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hala_hpc.cli import common
from hala_hpc.config.words import plural

if TYPE_CHECKING:
    from hala_hpc.config.schema import Recipe
    from hala_hpc.run.manifest import Facts
    from hala_hpc.tasks.base import Task

MOVED = "data.path="
CHANGEABLE = ("site.", "run.workers=", "run.stall_seconds=", "run.flush_seconds=", MOVED)
"""What may differ from the frozen recipe when a run goes on: where it and its data are, never what is asked."""


@click.command()
@common.run_argument
@common.overrides_argument
@click.option("--workers", type=click.IntRange(min=1), help="How many to start. [as in the recipe, less those at work]")
@click.option("--damaged", is_flag=True, help="First move what `hala verify` refuses to RUN/damaged, to be done again.")
@click.option(
    "--quarantine",
    is_flag=False,
    flag_value="",
    metavar="[REASON]",
    help="First take rows out of quarantine, to be tried again: those of one reason, or all.",
)
@common.as_json
def command(
    run: str, overrides: tuple[str, ...], workers: int | None, damaged: bool, quarantine: str | None, json_: bool
) -> None:
    r"""Start any number of workers for what is missing. Finished rows are kept, failed shards are tried again.

    \b
    hala resume translate-openorca
    hala resume translate-openorca --workers 8 site.slurm.partition=long
    hala resume translate-openorca --damaged
    hala resume translate-openorca --quarantine "worker died"
    hala resume translate-openorca data.path=/new/place/openorca
    hala resume sft-9b site.slurm.nodes_per_worker=2
    """
    from hala_hpc import tasks
    from hala_hpc.cli import grid
    from hala_hpc.cli.starting import start
    from hala_hpc.config.errors import HalaError
    from hala_hpc.run import manifest, status
    from hala_hpc.run.layout import RunDirectory
    from hala_hpc.slurm.launch import require_environment

    if folder := grid.find(run):
        if damaged or quarantine is not None:
            raise HalaError(f"{run} is a grid", f"--damaged and --quarantine are for one of its runs: {run}/CELL")
        grid.resume(folder, overrides, json_)
        return
    path = common.find(run)
    if wrong := [word for word in overrides if not word.startswith(CHANGEABLE)]:
        raise HalaError(f"'{wrong[0]}': a run's recipe is frozen", f"only these may change: {' '.join(CHANGEABLE)}")
    recipe = common.thawed(path, overrides)
    task = tasks.create(recipe)
    require_environment(recipe.site, task.stage)
    if (owner := common.owner_of_closed(path / "logs")) is not None:
        hint = (
            f"status, verify and collect work; in a job of your own, `hala worker {path}` does if you may write to it"
        )
        raise HalaError(f"this run is {owner}'s, and only they start its workers (logs/ is closed)", hint)
    plan = manifest.read(path / "manifest.parquet")
    note_moved(path, recipe, overrides)
    RunDirectory(path, plan.facts.suffix).create_folders(len(plan))
    if damaged:
        _set_aside(path, task, plan.facts)
    if quarantine is not None:
        _reopen(path, quarantine)
    retried = status.retry_failed(path, recipe.run.attempts, recipe.run.lease_seconds)
    state = status.read(path, recipe.run.lease_seconds, recipe.run.attempts)
    missing = state.shards - state.done or int(state.unassembled)
    if workers is None:
        alive = sum(worker.alive for worker in state.workers)
        workers = min(recipe.run.workers, missing) - max(alive, at_work(path)) if missing else 0
    workers = min(workers, missing)
    jobs = []
    if workers > 0:
        prepare = [data for data in path.glob("prepare/*") if not data.is_symlink()]
        with common.changed([path, *prepare], overrides):
            jobs = [job for one in start(recipe, task, path, workers) for job in one.jobs]
    if json_:
        common.echo_json(
            {"run": str(path), "missing": missing, "retried": retried, "workers": max(workers, 0), "jobs": jobs}
        )
    elif not missing:
        click.echo(f"nothing is missing: hala verify {path} tells whether all of it is whole")
    elif workers <= 0:
        click.echo(f"{plural(missing, 'shard')} missing, and workers are at it or will be (--workers N starts more)")
    else:
        what = f"{plural(workers, 'worker')} for {plural(missing, 'missing shard')}"
        click.echo(f"{what} ({retried} had failed): {', '.join(jobs)}")


def note_moved(path: Path, recipe: "Recipe", overrides: tuple[str, ...]) -> None:
    """Where ``overrides`` say that a run's data moved: note their new places. Raises HalaError for other data."""
    from hala_hpc.config.errors import HalaError
    from hala_hpc.data import moved
    from hala_hpc.run import manifest

    if not any(word.startswith(MOVED) for word in overrides):
        return
    facts = manifest.read(path / "manifest.parquet").facts
    if facts.unit != "rows" or not any(Path(source["path"]).is_absolute() for source in facts.sources):
        raise HalaError(f"{MOVED[:-1]}: this run reads no file of it", "leave it out")
    moved.note(path, facts, recipe.data)


def at_work(*paths: Path) -> int:
    """How many workers of some runs are at work or will be, for all that Slurm and this machine tell.

    Raises HalaError where Slurm does not answer: nobody's work is to be doubled.
    """
    from hala_hpc.config.errors import HalaError
    from hala_hpc.slurm import local, queue, record
    from hala_hpc.worker.array import ArrayWorker

    for path in paths:
        record.settle(path, ArrayWorker)
    found = queue.ask(*paths)
    if found.silence:
        raise HalaError(
            f"Slurm does not answer ({found.silence}), so who is at work is not known",
            "try again later; --workers N starts N all the same",
        )
    return found.live + sum(len(local.workers(path)) for path in paths)


def _set_aside(path: Path, task: "Task", facts: "Facts") -> None:
    """Read every output, and say what is not whole."""
    from hala_hpc.run.redo import set_aside_damaged

    with common.counting(f"verifying {path.name}") as counted:
        verdict = set_aside_damaged(path, task.checker(facts), counted)
    for problem in verdict.problems:
        click.echo(problem, err=True)
    if verdict.damaged or verdict.damaged_final:
        which = ", ".join(map(str, verdict.damaged[:8])) + (", …" if len(verdict.damaged) > 8 else "")
        click.echo(
            f"{plural(len(verdict.damaged), 'shard')} set aside in {path}/damaged: {which or 'final/'}", err=True
        )
    else:
        click.echo("no damaged shard", err=True)


def _reopen(path: Path, reason: str) -> None:
    """Take rows out of quarantine, and say how many."""
    from hala_hpc.config.errors import HalaError
    from hala_hpc.data.reopen import reopen

    with common.counting("looking for rows in quarantine") as counted:
        found = reopen(path, reason, counted)
    if found.damaged:
        told = f"not touched: {plural(len(found.damaged), 'damaged shard')}, the first is {found.damaged[0]}"
        click.echo(f"{told} (hala resume {path} --damaged)", err=True)
    if reason and not found.rows:
        held = ", ".join(f"{name} ({count:,})" for name, count in sorted(found.reasons.items()))
        raise HalaError(f"no row is in quarantine for '{reason}'", f"there are: {held or 'none'}")
    click.echo(f"{plural(found.rows, 'row')} of {plural(found.shards, 'shard')} taken out of quarantine", err=True)
