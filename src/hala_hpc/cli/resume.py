"""``hala resume``: workers for what is missing."""

from pathlib import Path

import click

from hala_hpc.cli import common
from hala_hpc.cli.submit import show_started
from hala_hpc.config.errors import HalaError
from hala_hpc.config.words import plural
from hala_hpc.data.reopen import reopen
from hala_hpc.pipeline import lookup, starting
from hala_hpc.run import manifest
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.redo import set_aside_damaged
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
    if folder := lookup.find_grid(run):
        if damaged or quarantine is not None:
            raise HalaError(f"{run} is a grid", f"--damaged and --quarantine are for one of its runs: {run}/CELL")
        if (started := starting.resume(folder, overrides)) is None:
            click.echo(f"nothing to start: all is done or at work (hala status {folder})")
        else:
            show_started(started, json_)
        return
    path = lookup.find(run)
    planned = starting.thawed(path, overrides)
    if (owner := common.owner_of_closed(path / "logs")) is not None:
        hint = f"status, verify and collect work; in a job of your own `hala worker {path}` does if you may write to it"
        raise HalaError(f"this run is {owner}'s, and only they start its workers (logs/ is closed)", hint)
    plan = manifest.read(path / "manifest.parquet")
    starting.note_moved(planned, overrides)
    RunDirectory(path, plan.facts.suffix).create_folders(len(plan))
    if damaged:
        _set_aside(path, planned.task, plan.facts)
    if quarantine is not None:
        _reopen(path, quarantine)
    state, retried = starting.retry(planned)
    missing = state.shards - state.done or int(state.unassembled)
    if workers is None:
        workers = min(planned.recipe.run.workers, missing) - max(state.alive, starting.at_work(path)) if missing else 0
    workers = max(0, min(workers, missing))
    jobs = []
    if workers:
        prepare = [data for data in path.glob("prepare/*") if not data.is_symlink()]
        with lookup.changed([path, *prepare], overrides):
            jobs = [job for array in starting.start(path, [planned], workers) for job in array.jobs]
    shards = plural(missing, "missing shard")
    line = f"{plural(workers, 'worker')} for {shards} ({retried} had failed): {', '.join(jobs)}"
    if not missing:
        line = f"nothing is missing: hala verify {path} checks that all of it is whole"
    elif not workers:
        line = f"{plural(missing, 'shard')} missing, and workers are at it or will be (--workers N starts more)"
    record = {"run": str(path), "missing": missing, "retried": retried, "workers": workers, "jobs": jobs}
    common.show(record, json_, [line])


def _set_aside(path: Path, task: Task, facts: manifest.Facts) -> None:
    """Read every output, and say what is not whole."""
    with common.counting(f"verifying {path.name}") as counted:
        verdict = set_aside_damaged(path, task.checker(facts), counted)
    count = f"{plural(len(verdict.damaged), 'shard')} set aside in {path}/damaged"
    some = f"{count}: {common.few(verdict.damaged, 8) or 'final/'}"
    for line in (*verdict.problems, some if verdict.damaged or verdict.damaged_final else "no damaged shard"):
        click.echo(line, err=True)


def _reopen(path: Path, reason: str) -> None:
    """Take rows out of quarantine, and say how many."""
    with common.counting("looking for rows in quarantine") as counted:
        reopened = reopen(path, reason, counted)
    if reopened.damaged:
        count = f"not touched: {plural(len(reopened.damaged), 'damaged shard')}, the first is {reopened.damaged[0]}"
        click.echo(f"{count} (hala resume {path} --damaged)", err=True)
    if reason and not reopened.rows:
        held = ", ".join(f"{name} ({count:,})" for name, count in sorted(reopened.reasons.items()))
        raise HalaError(f"no row is in quarantine for '{reason}'", f"there are: {held or 'none'}")
    click.echo(
        f"{plural(reopened.rows, 'row')} of {plural(reopened.shards, 'shard')} taken out of quarantine", err=True
    )
