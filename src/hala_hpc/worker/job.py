"""One worker, from its start to its end: read the run, load the engine, work, say how it ended."""

import contextlib
import importlib
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hala_hpc import __version__, engines
from hala_hpc.config import frozen
from hala_hpc.config.compose import thaw
from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Recipe
from hala_hpc.run import ledger, manifest
from hala_hpc.run.files import share
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.lease import Leases
from hala_hpc.slurm import again, allocation, held
from hala_hpc.slurm.allocation import StopFlag
from hala_hpc.worker import earlier, processes, registry, tracking
from hala_hpc.worker.storage import StorageAway, fault_of, refusal
from hala_hpc.worker.task import Context, Outcome, say
from hala_hpc.worker.tracking import Reporter

GRACE_SECONDS = 1800.0
"""Longer than any grace time that a site would give."""


def work_until(path: Path, should_stop: Callable[[], bool], name: str = "") -> Outcome:
    """Work on the run at ``path`` until nothing is left to claim or ``should_stop``.

    ``name`` is that of one of a worker's processes. Raises HalaError for a run that this code cannot do; whatever else
    it raises is a bug or a broken node. Finished rows are kept and shards given back, but where the storage
    is away: at a stop that is no error, the job is to be requeued, and rows since the last flush are done again.
    """
    recipe = thaw(path / "recipe.yaml", registry.options_of)
    run, plan = manifest.open_run(path)
    share(recipe.is_shared)
    run.create_folders(len(plan), recipe.is_shared)
    task = registry.create(recipe)
    worker = name or worker_name()
    leases = Leases(run, worker, recipe.run.lease_seconds, recipe.run.attempts)
    identity = {"host": socket.gethostname(), "executor": executor(), "job": job_name(), "pid": os.getpid()}
    if name:  # what became of a job is for its worker to say
        identity |= {"executor": "", "job": "", "part_of": name.partition("+")[0]}
    if identity["executor"] == "slurm":
        identity |= allocation.given()
        earlier.free_shards(run, worker, job_name(), leases.ttl)
    reporters = tracking.Reporters(_tracked(recipe, run, leases))
    history = ledger.Ledger(run.ledger / f"{worker}.jsonl", tell=reporters.event, **identity, version=__version__)
    loop = processes if task.one_per_core and not name else importlib.import_module(task.loop)
    context = Context(run, recipe, plan, task, leases, history, lambda: engines.start(recipe), should_stop)
    try:
        outcome: Outcome = loop.work(context)
        if outcome is Outcome.FINISHED and leases.given_up:
            outcome = Outcome.GAVE_UP
        history.write("ended", outcome=outcome.value)
    except StorageAway as error:
        history.write("failed", error=str(error))
        if not should_stop():
            raise
        say(str(error))
        outcome = Outcome.STOPPED
    except BaseException as error:
        history.write("failed", error=f"{type(error).__name__}: {error}"[:2_000])
        raise
    finally:
        reporters.close()
        leases.close()
        history.close()
    return outcome


def _tracked(recipe: Recipe, run: RunDirectory, leases: Leases) -> dict[str, Reporter]:
    """The reporters of this worker; of a training it is the first rank that knows numbers."""
    if recipe.task.kind == "train":
        return {}
    try:
        return tracking.of_run(recipe.run.track, run, leases.beacon.name, leases.ttl)
    except BaseException:
        leases.close()
        raise


def linger(stop: StopFlag, outcome: Outcome) -> None:
    """Wait for Slurm to end a preempted job, or one that was put back in the queue.

    Slurm requeues it only if it is still there when the grace time is over: one that exits on SIGTERM by itself counts
    as completed, and nobody would take its place. By now the device is free and the rows are safe.
    """
    if outcome is Outcome.REQUEUED or (stop.signal == signal.SIGTERM and executor() == "slurm"):
        time.sleep(GRACE_SECONDS)


def requeue(path: Path) -> Outcome:
    """Put our own job back in the queue; where that cannot be, say so in the log and in `hala status`, and end."""
    try:
        allocation.requeue(job_name(), lambda reason: say(f"not in the queue yet, trying again: {reason}"))
    except HalaError as error:
        why = "no scontrol here" if "not found" in error.message else error.message
        _not_requeued(path, f"cannot requeue: {why}; hala resume {path.name}")
        return Outcome.STOPPED
    return Outcome.REQUEUED


LOOKERS = 16
"""Of a large array so many workers and less than twice as many look for held tasks: Slurm serves others, too (ours)."""


def release_held(path: Path) -> None:
    """Let tasks of the run go that Slurm holds after a failed launch: while they are held, no steward comes."""
    task, count = (int(os.environ.get(f"SLURM_ARRAY_TASK_{name}", "0")) for name in ("ID", "COUNT"))
    if executor() != "slurm" or task % max(1, count // LOOKERS):
        return
    try:
        for name in held.release_all(path):
            say(f"{name} is let go, which Slurm held after a failed launch")
    except (HalaError, OSError) as error:
        say(f"whether Slurm holds other tasks is not known: {error}")


TOO_SLOW = "nothing got done before the time of its job was over, twice in a row"
"""Words of a worker that does not come back, for it would load its model for ever; a steward asks for more time."""


def is_too_slow(path: Path) -> bool:
    """Whether our job reached its time limit twice in a row without a row of its run to show for it.

    Only for rows: a training and an item keep what they did in their own ways, which ledgers do not count.
    """
    try:
        facts = manifest.read(path / "manifest.parquet").facts
    except (OSError, HalaError):  # the storage is away, which may be why nothing got done
        return False
    if facts.unit != "rows" or facts.items:
        return False
    slurm = frozen.now(path).get("site", {}).get("slurm", {})
    full = 60.0 * slurm.get("minutes", 60) - slurm.get("signal_seconds", 90) - again.EARLY_SECONDS
    ours = [file for file, opening in ledger.openings(path / "ledger") if opening.get("job") == job_name()]
    lives: list[list[ledger.Event]] = []
    for events in sorted((list(ledger.read(file)) for file in ours), key=lambda events: float(events[0]["time"])):
        if lives and events[0].get("life", 1) > 1:
            lives[-1] += events  # a killed worker started again: it is one time that passes
        else:
            lives.append(events)
    idle = [
        events[-1].get("outcome") == Outcome.STOPPED.value
        and events[-1]["time"] - events[0]["time"] >= full
        and not any(event.get("rows") or event["event"] == "published" for event in events)
        for events in lives[-2:]
    ]
    return idle == [True, True]


def note_too_slow(path: Path) -> None:
    """Say that our job is not put back in the queue, in the log and in `hala status`."""
    _not_requeued(path, f"{TOO_SLOW}: hala resume {path.name} site.slurm.minutes=…, more than now")


def _not_requeued(path: Path, message: str) -> None:
    say(message)
    with contextlib.suppress(OSError):
        history = ledger.Ledger(path / "ledger" / f"requeue-{job_name()}-{secrets.token_hex(3)}.jsonl")
        history.write("failed", error=message)
        history.close()


def worker_name() -> str:
    """Unique to this process, and telling: host, job, random."""
    parts = (socket.gethostname(), job_name() or str(os.getpid()), secrets.token_hex(3))
    return "-".join(parts)


def executor() -> str:
    """Who started this worker: slurm, local, or nobody. A local worker may well live inside a Slurm job."""
    return os.environ.get("SUBMITIT_EXECUTOR") or ("slurm" if "SLURM_JOB_ID" in os.environ else "")


def job_name() -> str:
    """The job as its log is named: Slurm's array and task, or submitit's number of a local one."""
    if executor() == "local":
        return os.environ.get("SUBMITIT_LOCAL_JOB_ID", "")
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")


def main(arguments: Sequence[str]) -> int:
    """``python -m hala_hpc.worker RUN [NAME]``; with a name: one of the processes of a worker.

    Exit code 0: nothing is left; 1: so it is, but this worker set shards aside; 85: a signal stopped it (requeue).
    """
    if len(arguments) not in (1, 2):
        sys.stderr.write("usage: python -m hala_hpc.worker RUN\n")
        return 2
    is_part = len(arguments) == 2
    stop = StopFlag(is_silent=is_part)  # its worker says it for all
    if is_part:
        processes.stop_with_parent()
    try:
        outcome = work_until(Path(arguments[0]).resolve(), stop, *arguments[1:])
        stop.ignore()
    except HalaError as error:
        sys.stderr.write(f"hala: error: {error}\n")
        return 2
    except OSError as error:
        path = Path(arguments[0]).resolve()
        if (fault := fault_of(error, path)) is None:
            raise
        sys.stderr.write(f"hala: error: {refusal(path, fault)}\n")
        return 2
    if not is_part:
        linger(stop, outcome)
    return outcome.code
