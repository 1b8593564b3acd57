"""Workers are submitted through submitit: one ``sbatch`` for the whole array, as far as the site's limits allow."""

import contextlib
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Recipe
from hala_hpc.run import layout, ledger
from hala_hpc.slurm import commands
from hala_hpc.slurm.commands import Limits
from hala_hpc.slurm.launch import Launch, launch, rank_variables

MOST_REQUEUES = 1_000
"""Times that submitit requeues one worker at the time limit; only a run without end would reach it."""


@dataclass(frozen=True)
class Submission:
    """What was handed in. ``jobs`` are array job ids (with Slurm) or process ids (local)."""

    executor: str
    jobs: list[str]
    workers: int


def submit(recipe: Recipe, run: Path, stage: str, workers: int, job: Callable[[], Any]) -> Submission:
    """Start ``workers`` workers, each calling ``job``. Raises HalaError where Slurm refuses."""
    return submit_each(recipe, run, stage, [job] * workers)


def submit_each(
    recipe: Recipe,
    run: Path,
    stage: str,
    jobs: Sequence[Callable[[], Any]],
    *,
    ranks: int | None = None,
    after: Sequence[str] = (),
) -> Submission:
    """Start one worker for each of ``jobs``. Raises HalaError where Slurm refuses.

    Parameters
    ----------
    run : the directory whose ``logs`` and ``ledger`` tell of it.
    ranks : of a training on each node: the worker is then one launcher on the first of ``nodes_per_worker`` nodes.
    after : Slurm jobs that must have ended before, however they ended.
    """
    started, count = launch(recipe.site, stage), len(jobs)
    if recipe.site.executor == "slurm":
        ids = _submit_slurm(run, parameters(recipe, started, ranks, after), started.python, jobs)
    elif recipe.site.executor == "local":
        ids = _submit_local(recipe, run, started, jobs, ranks)
    else:
        jobs[0]()  # debug: here and now, where a debugger can follow
        ids, count = [str(os.getpid())], 1
    submission = Submission(recipe.site.executor, ids, count)
    _record(run, submission)
    return submission


def preview(recipe: Recipe, run: Path, stage: str, workers: int, ranks: int | None = None) -> str:
    """The sbatch file that ``submit`` would hand in."""
    from submitit.slurm.slurm import _make_sbatch_string

    started = launch(recipe.site, stage)
    command = f"{started.python} -u -m submitit.core._submit {run / 'logs'}"
    count = workers if workers > 1 else None
    text: str = _make_sbatch_string(
        command=command, folder=run / "logs", map_count=count, **parameters(recipe, started, ranks)
    )
    return text


def parameters(recipe: Recipe, started: Launch, ranks: int | None = None, after: Sequence[str] = ()) -> dict[str, Any]:
    """What a recipe asks of Slurm, as submitit's parameters. See ``submit_each``."""
    slurm = recipe.site.slurm
    extra = {key.replace("_", "-"): value for key, value in slurm.extra.items()}
    wanted = {
        "job_name": f"hala-{recipe.name}",
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "cpus_per_task": slurm.cpus_per_worker,
        "gres": _gres(slurm.gpus_per_worker, slurm.gpu_type),
        "mem": f"{int(slurm.mem_gb * 1024)}M" if slurm.mem_gb else None,
        "time": slurm.minutes,
        "signal_delay_s": slurm.signal_seconds,
        "array_parallelism": slurm.max_running or max(1, recipe.run.workers),
        "dependency": f"afterany:{':'.join(after)}" if after else None,
        "setup": started.setup,
        # srun does not take --cpus-per-task over from sbatch since Slurm 22.05.
        "srun_args": [f"--cpus-per-task={slurm.cpus_per_worker}", *started.srun],
        "stderr_to_stdout": True,
        "additional_parameters": {"requeue": True} | extra,
    }
    wanted |= _of_a_training(recipe, started, ranks) if ranks is not None else {}
    return {key: value for key, value in wanted.items() if value is not None} | {"wckey": None}


def _of_a_training(recipe: Recipe, started: Launch, ranks: int) -> dict[str, Any]:
    """The job has a task for each rank, but srun starts one launcher, which starts the ranks as a step of its own."""
    slurm = recipe.site.slurm
    each = max(1, slurm.cpus_per_worker // ranks)
    environment = recipe.site.environments.get("work")
    # The GPUs are for the ranks' step. In a container there may be no srun, and the launcher has to start them itself.
    gpus = [] if environment is not None and environment.container is not None else ["--gres=none"]
    alone = ["--nodes=1", "--ntasks=1", "--ntasks-per-node=1", "--overlap", *gpus, f"--cpus-per-task={each * ranks}"]
    return {
        "nodes": slurm.nodes_per_worker,
        "ntasks_per_node": ranks,
        "cpus_per_task": each,
        "setup": [*started.setup, *rank_variables(recipe.site, started, ranks)],
        "srun_args": [*alone, *started.srun],
    }


def chunks(workers: int, limits: Limits, queued: int = 0) -> list[int]:
    """Sizes of the arrays that so many workers need; fewer workers where the user may not submit as many."""
    allowed = min(workers, limits.jobs, (limits.submit - queued) if limits.submit is not None else workers)
    if allowed < 1:
        raise HalaError(f"this user may have {limits.submit} jobs and has {queued}", "wait for some, or cancel them")
    full, rest = divmod(allowed, limits.array)
    return [limits.array] * full + ([rest] if rest else [])


def submitted(run: Path) -> list[Submission]:
    """All that was ever handed in for a run, oldest first."""
    files = sorted((run / "ledger").glob("submit-*.jsonl"))
    events = [event for file in files for event in ledger.read(file) if event["event"] == "submitted"]
    return [Submission(event["executor"], event["jobs"], event["workers"]) for event in events]


def slurm_jobs(run: Path) -> list[str]:
    """Slurm's arrays for a run: those submitted here, and those that workers started by hand tell of."""
    jobs = [job for one in submitted(run) if one.executor == "slurm" for job in one.jobs]
    started = map(ledger.first, sorted((run / "ledger").glob("*.jsonl")))
    names = [str(worker["job"]) for worker in started if worker.get("executor") == "slurm"]
    # Of an array whose other tasks are at other runs only our own; a job without tasks is somebody's interactive one.
    shared = (run.parent / layout.GRID).is_file()
    jobs += [name if shared else name.partition("_")[0] for name in names if "_" in name]
    return list(dict.fromkeys(jobs))


def _submit_slurm(run: Path, wanted: dict[str, Any], python: str, jobs: Sequence[Callable[[], Any]]) -> list[str]:
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    limits = commands.limits()
    queued = len(commands.parse_states(_queued_by_us())) if limits.submit is not None else 0
    # submitit copies what sbatch says to standard error; our own error says it, in one line.
    with commands.outside_any_job(), contextlib.redirect_stderr(io.StringIO()):
        executor = submitit.SlurmExecutor(run / "logs", max_num_timeout=MOST_REQUEUES, python=python)
        executor.update_parameters(**wanted)
        ids: list[str] = []
        left = list(jobs)
        for size in chunks(len(jobs), limits, queued):
            try:
                handed_in = executor.submit_array(left[:size])
            except (FailedJobError, FailedSubmissionError) as error:
                if not ids:
                    raise HalaError(f"sbatch: {_said(error)}", "see `hala doctor --site …`") from error
                break  # what could be submitted works; the rest may follow with `hala resume`
            ids.append(handed_in[0].job_id.partition("_")[0])
            del left[:size]
    return ids


def _submit_local(
    recipe: Recipe, run: Path, started: Launch, jobs: Sequence[Callable[[], Any]], ranks: int | None
) -> list[str]:
    import submitit

    gpus = recipe.site.slurm.gpus_per_worker
    setup = [*started.setup, *(rank_variables(recipe.site, started, ranks) if ranks is not None else [])]
    executor = submitit.LocalExecutor(run / "logs", max_num_timeout=MOST_REQUEUES, python=started.python)
    ids = []
    for number, job in enumerate(jobs):
        executor.update_parameters(
            timeout_min=recipe.site.slurm.minutes,
            signal_delay_s=recipe.site.slurm.signal_seconds,
            gpus_per_node=gpus,
            visible_gpus=list(range(number * gpus, (number + 1) * gpus)),
            setup=setup,
            stderr_to_stdout=True,
        )
        with _outliving_us(run / "logs" / "local.log"):
            ids.append(str(executor.submit(job).job_id))
    return ids


@contextlib.contextmanager
def _outliving_us(log: Path) -> Iterator[None]:
    """Have processes started herein survive a logout, and not hold on to our output: `hala submit | tee` must end."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [(number, os.dup(number)) for number in (0, 1, 2)]
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what is ignored stays so in a child
    try:
        with log.open("ab") as out, Path(os.devnull).open("rb") as nothing:
            for number, file in ((0, nothing), (1, out), (2, out)):
                os.dup2(file.fileno(), number)
            yield
    finally:
        for number, copy in kept:
            os.dup2(copy, number)
            os.close(copy)
        signal.signal(signal.SIGHUP, hangup)


def _queued_by_us() -> str:
    return commands.run("squeue", "--noheader", "--array", "--me", "--format=%i|%T|%r")


def _gres(gpus: int, kind: str | None) -> str | None:
    return f"gpu:{kind}:{gpus}" if gpus and kind else f"gpu:{gpus}" if gpus else None


def _said(error: Exception) -> str:
    """Slurm's own words, out of what submitit wraps them in."""
    lines = [line.strip() for line in str(error).splitlines() if "error:" in line] or str(error).splitlines()
    return lines[-1].replace("sbatch: error: ", "") if lines else type(error).__name__


def _record(run: Path, submission: Submission) -> None:
    name = f"submit-{time.time_ns()}.jsonl"
    history = ledger.Ledger(run / "ledger" / name)
    history.write("submitted", executor=submission.executor, jobs=submission.jobs, workers=submission.workers)
    history.close()
