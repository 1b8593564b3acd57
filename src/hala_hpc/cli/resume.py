"""``hala resume``: workers for what is missing."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hala_hpc.cli import common
from hala_hpc.config.words import plural
from hala_hpc.pipeline import lookup

if TYPE_CHECKING:
    from hala_hpc.run.manifest import Facts
    from hala_hpc.worker.task import Task


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
    from hala_hpc.cli.views import grid as views
    from hala_hpc.config.errors import HalaError
    from hala_hpc.pipeline import grid, starting
    from hala_hpc.run import manifest, status
    from hala_hpc.run.layout import RunDirectory
    from hala_hpc.slurm.script import require_environment
    from hala_hpc.worker import registry

    if folder := grid.find(run):
        if damaged or quarantine is not None:
            raise HalaError(f"{run} is a grid", f"--damaged and --quarantine are for one of its runs: {run}/CELL")
        views.show_started(grid.resume(folder, overrides), str(folder), json_)
        return
    path = lookup.find(run)
    starting.refuse_frozen(overrides)
    recipe = lookup.thawed(path, overrides)
    task = registry.create(recipe)
    require_environment(recipe.site, task.stage)
    if (owner := common.owner_of_closed(path / "logs")) is not None:
        hint = (
            f"status, verify and collect work; in a job of your own, `hala worker {path}` does if you may write to it"
        )
        raise HalaError(f"this run is {owner}'s, and only they start its workers (logs/ is closed)", hint)
    plan = manifest.read(path / "manifest.parquet")
    starting.note_moved(path, recipe, overrides)
    RunDirectory(path, plan.facts.suffix).create_folders(len(plan))
    if damaged:
        _set_aside(path, task, plan.facts)
    if quarantine is not None:
        _reopen(path, quarantine)
    retried = status.retry_failed(path, recipe.run.attempts, recipe.run.lease_seconds)
    state = status.read(path, recipe.run.lease_seconds, recipe.run.attempts)
    missing = state.shards - state.done or int(state.unassembled)
    if workers is None:
        workers = min(recipe.run.workers, missing) - max(state.alive, starting.at_work(path)) if missing else 0
    workers = min(workers, missing)
    jobs = []
    if workers > 0:
        prepare = [data for data in path.glob("prepare/*") if not data.is_symlink()]
        with lookup.changed([path, *prepare], overrides):
            jobs = [job for one in starting.start(recipe, task, path, workers) for job in one.jobs]
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
