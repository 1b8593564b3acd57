"""``hala resume``, ``worker``, ``logs`` and ``cancel``: a run's workers, from more of them to none."""

import contextlib
import os
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import click

from hala_hpc.cli import common
from hala_hpc.cli.plan import follower, show_begun, show_started
from hala_hpc.cli.views import steward as steward_view
from hala_hpc.config.errors import HalaError, few, plural
from hala_hpc.data.outputs.quarantine import reopen
from hala_hpc.pipeline import lookup, starting, steward, submitting
from hala_hpc.pipeline.steward import Started
from hala_hpc.run import decisions, ledger, manifest
from hala_hpc.run.files import share
from hala_hpc.run.layout import PIPELINE
from hala_hpc.run.verify import set_aside_damaged
from hala_hpc.slurm import commands, local
from hala_hpc.slurm import record as records
from hala_hpc.worker.job import main
from hala_hpc.worker.task import Task


@click.command()
@common.run_argument
@common.overrides_argument
@click.option("--workers", type=click.IntRange(min=1), help="How many to start. [run.workers, less those that run]")
@click.option("--damaged", is_flag=True, help="First move what `hala verify` refuses to RUN/damaged, to be done again.")
@click.option(
    "--quarantine",
    is_flag=False,
    flag_value="",
    metavar="[REASON]",
    help="First take rows out of quarantine, to be tried again: those of one reason, or all.",
)
@common.as_json
def resume_command(
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
    if folder := lookup.find_pipeline(run):
        if damaged or quarantine is not None or workers or overrides:
            raise HalaError(f"{run} is a pipeline", f"options and keys are for one of its runs: {run}/STAGE")
        from hala_hpc.pipeline import conductor

        show_begun(conductor.resume(folder), json_)
        return
    if folder := lookup.find_grid(run):
        if damaged or quarantine is not None:
            raise HalaError(f"{run} is a grid", f"--damaged and --quarantine are for one of its runs: {run}/CELL")
        show_started(submitting.resume(folder, overrides), json_)
        return
    path = lookup.find(run)
    planned = starting.thawed(path, overrides)
    if (owner := common.owner_of_closed(path / "logs")) is not None:
        hint = f"status, verify and collect work; in a job of your own `hala worker {path}` does if you may write to it"
        raise HalaError(f"this run is {owner}'s, and only they start its workers (logs/ is closed)", hint)
    directory, plan = manifest.open_run(path)
    starting.note_moved(planned, overrides)
    directory.create_folders(len(plan), planned.recipe.is_shared)
    if damaged:
        _set_aside(path, planned.task, plan.facts)
    if quarantine is not None:
        _reopen(path, quarantine)
    started = Started(path, [])
    with steward.alone(path):
        # Slurm need not answer where nothing is left, or who asks says how many.
        busy = starting.at_work(path) if workers is None and not lookup.state_of(path).finished else 0
        state, retried = starting.retry(planned)
        missing = state.shards - state.done or int(state.unassembled)
        if workers is None:
            most = min(planned.recipe.run.workers, missing)
            workers = most - max(state.alive, busy) if missing else 0
        workers = max(0, min(workers, missing))
        if workers:
            prepare = [data for data in path.glob("prepare/*") if not data.is_symlink()]
            with lookup.changed([path, *prepare], overrides):
                started = steward.start(path, [planned], {path: workers})
    if missing and not workers:
        started = steward.keep_followed(path, [planned])
    shards = plural(missing, "missing shard")
    line = f"{plural(workers, 'worker')} for {shards} ({retried} had failed): {', '.join(started.jobs)}"
    if not missing:
        line = f"nothing is missing: hala verify {path} checks that all of it is whole"
    elif not workers:
        line = f"{plural(missing, 'shard')} missing, and workers are at it or will be (--workers N starts more)"
    record = {"run": str(path), "missing": missing, "retried": retried, "workers": workers, "jobs": started.jobs}
    record |= {"steward": started.steward} if started.steward else {}
    common.show(record, json_, [line, *follower(started)])


def _set_aside(path: Path, task: Task, facts: manifest.Facts) -> None:
    """Read every output, and say what is not whole."""
    with common.counting(f"verifying {path.name}") as counted:
        verdict = set_aside_damaged(path, task.checker(facts), counted)
    count = f"{plural(len(verdict.damaged), 'shard')} set aside in {path}/damaged"
    some = f"{count}: {few(verdict.damaged, 8) or 'final/'}"
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


LOCAL_SECONDS = 5.0
"""How long a local worker may take to end what it does."""


@click.command()
@common.run_argument
@common.as_json
def cancel_command(run: str, json_: bool) -> None:
    r"""End the workers of a run. What they finished is kept: `hala resume` goes on from there.

    \b
    hala cancel translate-openorca
    """
    paths = lookup.members(run)
    with contextlib.suppress(HalaError, OSError):  # cancelled it is all the same
        share(lookup.thawed(paths[-1], ()).is_shared)
    # The runs that prepare the data of a training, unless others share them.
    within = [data for path in paths for data in path.glob("prepare/*") if not data.is_symlink()]
    is_finished, is_pipeline = _is_finished(paths[0]), (paths[0] / PIPELINE).is_file()
    workers, still, unnoted = 0, 0, ""
    try:
        with _nobody_starts(paths[0]):
            workers, still = _end_local(paths)
            arrays, tasks = _cancel_slurm([*paths, *within])
            # Not before: workers whose cancelling nobody took would be left without a steward, as cancelled ones are.
            unnoted = "" if is_finished else _note_cancelled(paths[0])
            for folder in lookup.stage_folders(paths[0]).values() if is_pipeline else ():
                if not all(map(_is_finished, lookup.runs_of(folder))):
                    unnoted = unnoted or _note_cancelled(folder)
    except HalaError as error:
        also = f" (cancelled: {plural(workers, 'local worker')})" if workers else ""
        raise HalaError(f"not cancelled{also}: {error.message}", error.hint or f"hala status {paths[0]}") from error
    line = f"cancelled {plural(len(arrays), 'Slurm array')} and {plural(workers, 'local worker')}"
    if tasks is None:
        line = f"{line}; Slurm took that, and does not say yet whether they ended (hala status {paths[0]})"
    counts = {"task": tasks, "local worker": still}
    if left := " and ".join(plural(count, noun) for noun, count in counts.items() if count):
        line = f"{line}; not ended yet: {left} (hala status {paths[0]})"
    if not arrays and not workers:
        here = f"nobody works on it here ({os.uname().nodename})"
        line = "finished: nothing is left to cancel" if is_finished else here
    record = {"run": str(paths[0]), "arrays": arrays, "still": tasks, "workers": workers, "still_local": still}
    common.show(record, json_, [line, *([common.Problem(unnoted)] if unnoted else [])])


def _is_finished(run: Path) -> bool:
    """False also for a grid, and for what cannot be read: its workers are cancelled all the same."""
    with contextlib.suppress(HalaError, OSError):
        return (run / "recipe.yaml").is_file() and lookup.state_of(run).finished
    return False


def _note_cancelled(folder: Path) -> str:
    """Have no steward start workers again; why that could not be written down, or nothing."""
    try:
        decisions.note(folder, decisions.CANCELLED, by=decisions.PERSON)
    except OSError as error:
        return f"not written down ({error.strerror}): a steward may start workers again, if one is in the queue"
    return ""


STARTING_SECONDS = 15.0
"""For a steward that is just handing in workers: then they are on record, and cancelled too."""


@contextlib.contextmanager
def _nobody_starts(folder: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(HalaError, OSError):  # cancelled it is all the same
            if (folder / PIPELINE).is_file():
                from hala_hpc.pipeline import conductor, stages

                _note_cancelled(folder)  # whoever plans a stage right now starts no other one
                stack.enter_context(conductor.alone(stages.load(folder), STARTING_SECONDS))
            else:
                stack.enter_context(steward.alone(folder, STARTING_SECONDS))
        yield


def _cancel_slurm(paths: list[Path]) -> tuple[list[str], int | None]:
    """Arrays that were cancelled, and how many of their tasks have not begun to end; None: Slurm does not say.

    Raises HalaError where Slurm did not take it.
    """
    jobs = []
    for path in paths:
        for intent in records.unanswered(path):
            if (job := records.in_queue(intent.token, intent.file.stat().st_uid)) is not None:
                intent.took(job)
            elif (wait := intent.time + records.LATE_SECONDS - time.time()) > 0:
                workers = plural(len(intent.runs), "worker")
                problem = f"Slurm did not answer when {workers} came in, and may yet take them"
                raise HalaError(problem, f"cancel again in {wait:.0f} s")
        jobs += records.slurm_jobs(path)
    stewards = [job for path in paths for job in records.steward_jobs(path)]
    jobs = list(dict.fromkeys(jobs))
    live = [task.job for task in commands.states([*jobs, *stewards]) if task.may_work]
    names = {name for task in live for name in (task, task.partition("_")[0])}
    arrays = [job for job in jobs if job in names]
    left = commands.cancel([*(job for job in stewards if job in names), *arrays])
    return arrays, None if left is None else len(left)


def _end_local(paths: list[Path]) -> tuple[int, int]:
    """How many local workers were asked to stop, and how many of them have not yet."""
    count = sum(len(local.workers(path)) for path in paths)
    known: dict[Path, set[int]] = {path: set() for path in paths}
    deadline = time.monotonic() + LOCAL_SECONDS
    while True:
        left = 0
        for path in paths:
            now = local.end(path, known[path])
            known[path] |= now
            left += len(now)
        if not left or time.monotonic() > deadline:
            return count, sum(len(local.workers(path)) for path in paths)
        time.sleep(0.2)


@click.command()
@common.run_argument
@click.argument("shard", type=int, required=False)
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="Lines from the end of each log; 0: all.",
)
@click.option(
    "--rank", type=click.IntRange(min=1), help="A rank of a training's last launch; rank 0 is in the run's own log."
)
def logs_command(run: str, shard: int | None, lines: int, rank: int | None) -> None:
    r"""Show the end of each worker's log; with SHARD, its history and the logs of the workers that were at it.

    \b
    hala logs translate-openorca
    hala logs translate-openorca 17 --lines 0
    hala logs sft-9b --rank 3
    """
    path = lookup.find(run)
    count = len(manifest.read(path / "manifest.parquet"))
    if shard is not None and not 0 <= shard < count:
        raise HalaError(f"{path.name} has no shard {shard}", f"its shards are 0 to {count - 1}")
    if (owner := common.owner_of_closed(path / "logs")) is not None:
        raise HalaError(
            f"the logs of this run are closed: it is {owner}'s", f"`hala status {path}` shows its last errors"
        )
    if rank is not None:
        ranks = path / "logs" / "ranks"
        if not (logs := sorted(ranks.glob(f"*.{rank}.log"))):  # names of launches are in the order of time
            raise HalaError(f"no log of rank {rank} in {ranks}", "trainings have ranks, once they started")
        _show(logs[-1], lines)
        return
    jobs: set[str] = set()
    decided = steward_view.history(decisions.read(path)) if shard is None else []
    for line in decided:
        click.echo(line)
    shown = bool(decided)
    for file in sorted((path / "ledger").glob("*.jsonl")):
        events = [event for event in ledger.read(file) if shard is not None and event.get("shard") == shard]
        for event in events:
            rest = " ".join(f"{key}={value}" for key, value in event.items() if key not in ("event", "time", "shard"))
            click.echo(f"{file.stem}: {event['event']} {rest}")
            shown = True
        if events and (job := ledger.first(file).get("job")):
            jobs.add(str(job))
    for log in sorted((path / "logs").glob("*.out")):
        if log.is_file() and (shard is None or any(log.name.startswith(f"{job}_") for job in jobs)):
            _show(log, lines)
            shown = True
    if not shown:
        of = "" if shard is None else f" of shard {shard}"
        click.echo(f"no logs{of}: no worker has written one yet, or they were removed (hala status {path})", err=True)


def _show(log: Path, lines: int) -> None:
    click.secho(f"==> {log} <==", bold=True)
    with log.open(errors="replace") as text:
        click.echo("".join(deque(text, lines or None)), nl=False)


@click.command()
@common.run_argument
def worker_command(run: str) -> None:
    r"""Work on a run in this process and environment until nothing is left. sbatch/translate_array.sbatch calls it.

    \b
    srun hala worker runs/translate-openorca
    """
    raise click.exceptions.Exit(main([str(lookup.find(run))]))
