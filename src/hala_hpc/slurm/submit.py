"""Workers are submitted through submitit: one ``sbatch`` for the whole array, as far as the site's limits allow."""

import contextlib
import io
import itertools
import os
import re
import secrets
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Recipe, Slurm
from hala_hpc.slurm import commands
from hala_hpc.slurm.commands import Limits
from hala_hpc.slurm.launch import Launch, cpus_per_rank, launch, rank_variables
from hala_hpc.slurm.record import Submission, is_alive, recording, start_time, submitted

MOST_REQUEUES = 1_000
"""Times that submitit requeues one worker at the time limit; only a run without end would reach it."""


OWN_OPTIONS = ("array", "output", "error", "open-mode", "signal", "dependency")
"""Options of sbatch without which workers would not work, be stopped or be found."""
GPU_OPTIONS = ("gres", "gpus", "gpus_per_node", "gpus_per_task")
OPTION = re.compile(r"[a-z][a-z0-9-]*")


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
    started = launch(recipe.site, stage)
    if recipe.site.executor == "slurm":
        return _submit_slurm(recipe, run, parameters(recipe, started, ranks, after), started.python, jobs)
    if recipe.site.executor == "local":
        return _submit_local(recipe, run, started, jobs, ranks)
    submission = Submission(recipe.site.executor, [str(os.getpid())], 1)
    with recording(run) as record:
        record("submitted", submission)
    jobs[0]()  # debug: here and now, where a debugger can follow
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
    """What a recipe asks of Slurm, as submitit's parameters. See ``submit_each``.

    Raises HalaError for options in ``site.slurm.extra`` that cannot be.
    """
    slurm = recipe.site.slurm
    extra = _extra(slurm)
    cpus = slurm.cpus_per_worker
    wanted: dict[str, Any] = {
        "job_name": f"hala-{recipe.name}",
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "cpus_per_task": cpus,
        "mem": None if slurm.mem_gb is None else f"{int(slurm.mem_gb * 1024)}M" if slurm.mem_gb else "0",
        "time": slurm.minutes,
        "signal_delay_s": slurm.signal_seconds,
        "array_parallelism": slurm.max_running or max(1, recipe.run.workers),
        "dependency": f"afterany:{':'.join(after)}" if after else None,
        "setup": started.setup,
        "stderr_to_stdout": True,
    }
    # srun does not take --cpus-per-task over from sbatch since Slurm 22.05.
    told = extra.get("cpus_per_task", cpus)
    wanted["srun_args"] = [*([f"--cpus-per-task={told}"] if told else []), *started.srun]
    wanted |= _of_a_training(recipe, started, ranks) if ranks is not None else {}
    given = {"requeue": True, **_gpus(slurm, extra)} | extra
    kept = {key: value for key, value in wanted.items() if value is not None and key not in extra}
    additional = {key: value for key, value in given.items() if value is not None and value is not False}
    return kept | {"additional_parameters": additional, "wckey": None}


def _of_a_training(recipe: Recipe, started: Launch, ranks: int) -> dict[str, Any]:
    """The job has a task for each rank, but srun starts one launcher, which starts the ranks as a step of its own."""
    slurm = recipe.site.slurm
    each = cpus_per_rank(slurm, ranks)
    environment = recipe.site.environments.get("work")
    # The GPUs are for the ranks' step. In a container there may be no srun, and the launcher has to start them itself.
    gpus = [] if environment is not None and environment.container is not None else ["--gres=none"]
    cpus = [f"--cpus-per-task={each * ranks}"] if each is not None else []
    alone = ["--nodes=1", "--ntasks=1", "--ntasks-per-node=1", "--overlap", *gpus, *cpus]
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


def _submit_slurm(
    recipe: Recipe, run: Path, wanted: dict[str, Any], python: str, jobs: Sequence[Callable[[], Any]]
) -> Submission:
    """One array after the other. Each is on record before it is asked for, and again as soon as Slurm took it."""
    limits = commands.limits(recipe.site.slurm)
    queued = len(commands.parse_states(_queued_by_us())) if limits.submit is not None else 0
    said = {key.replace("_", "-"): value for key, value in (wanted | wanted["additional_parameters"]).items()}
    ids: list[str] = []
    left = list(jobs)
    with commands.outside_any_job(said):
        for size in chunks(len(jobs), limits, queued):
            try:
                ids.append(_submit_array(run, wanted, python, left[:size]))
            except HalaError:
                if not ids:
                    raise
                break  # what could be submitted works; the rest may follow with `hala resume`
            del left[:size]
    return Submission("slurm", ids, len(jobs) - len(left))


def _submit_array(run: Path, wanted: dict[str, Any], python: str, jobs: Sequence[Callable[[], Any]]) -> str:
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    # submitit copies what sbatch says to standard error; our own error says it, in one line.
    with recording(run) as record, contextlib.redirect_stderr(io.StringIO()):
        mark = f"hala-{secrets.token_hex(6)}"
        additional = wanted["additional_parameters"]
        comment = f"{additional['comment']} {mark}" if additional.get("comment") else mark
        executor = submitit.SlurmExecutor(run / "logs", max_num_timeout=MOST_REQUEUES, python=python)
        executor.update_parameters(**wanted | {"additional_parameters": additional | {"comment": comment}})
        record("submitting", mark=mark, workers=len(jobs))
        try:
            job = executor.submit_array(list(jobs))[0].job_id.partition("_")[0]
        except (FailedJobError, FailedSubmissionError) as error:
            if any(sign in _said(error).lower() for sign in commands.SILENCE):
                job = _lost(run, mark, _said(error))
            else:
                record("refused", error=_said(error))
                raise HalaError(f"sbatch: {_said(error)}", "see `hala doctor --site …`") from error
        record("submitted", Submission("slurm", [job], len(jobs)))
    return job


def _lost(run: Path, mark: str, said: str) -> str:
    """The job that sbatch was asked for and did not tell of. Raises HalaError where there is none, or nobody knows."""
    try:
        jobs = commands.with_comment(mark)
    except HalaError:
        jobs = []
    if jobs:
        return jobs[0]
    raise commands.SlurmSilent(
        f"sbatch: Slurm does not answer: {said}",
        f"the jobs may exist all the same: `hala status {run}` looks for them once Slurm answers",
    )


def _extra(slurm: Slurm) -> dict[str, Any]:
    """A person's own options, named as submitit names them. Raises HalaError for what cannot be an option."""
    found = {}
    for key, value in slurm.extra.items():
        name = str(key).replace("_", "-")
        if not OPTION.fullmatch(name):
            raise HalaError(f"site.slurm.extra: {key!r} is no option of sbatch", "its long name, for example mail-type")
        if name in OWN_OPTIONS:
            raise HalaError(f"site.slurm.extra.{key}: hala sets --{name} itself", "leave it out")
        if isinstance(value, str) and "\n" in value:
            raise HalaError(f"site.slurm.extra.{key}: an option is one line")
        found[name.replace("-", "_")] = value
    return found


def _gpus(slurm: Slurm, extra: Mapping[str, Any]) -> dict[str, str]:
    """How GPUs are asked for; not at all where a person's own options do."""
    if not slurm.gpus_per_worker or slurm.gpu_option == "none" or any(option in extra for option in GPU_OPTIONS):
        return {}
    kind = f"{slurm.gpu_type}:" if slurm.gpu_type else ""
    before = "gpu:" if slurm.gpu_option == "gres" else ""
    return {slurm.gpu_option.replace("-", "_"): f"{before}{kind}{slurm.gpus_per_worker}"}


def _submit_local(
    recipe: Recipe, run: Path, started: Launch, jobs: Sequence[Callable[[], Any]], ranks: int | None
) -> Submission:
    import submitit

    gpus = recipe.site.slurm.gpus_per_worker
    setup = [*started.setup, *(rank_variables(recipe.site, started, ranks) if ranks is not None else [])]
    executor = submitit.LocalExecutor(run / "logs", max_num_timeout=MOST_REQUEUES, python=started.python)
    taken = {gpu for one in submitted(run) for pid, used in one.gpus.items() if is_alive(one, pid) for gpu in used}
    free = (gpu for gpu in itertools.count() if gpu not in taken)
    whole = Submission("local", [], len(jobs))
    for job in jobs:
        mine = list(itertools.islice(free, gpus))
        executor.update_parameters(
            timeout_min=recipe.site.slurm.minutes,
            signal_delay_s=recipe.site.slurm.signal_seconds,
            gpus_per_node=gpus,
            visible_gpus=mine,
            setup=setup,
            stderr_to_stdout=True,
        )
        with recording(run) as record, _outliving_us(run / "logs" / "local.log"):
            pid = str(executor.submit(job).job_id)
            one = Submission("local", [pid], 1, {pid: mine} if mine else {}, {pid: start_time(pid)})
            record("submitted", one)
        whole.jobs.append(pid)
    return whole


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


def _said(error: Exception) -> str:
    """Slurm's own words, out of what submitit wraps them in."""
    lines = [line.strip() for line in str(error).splitlines() if "error:" in line] or str(error).splitlines()
    return lines[-1].replace("sbatch: error: ", "") if lines else type(error).__name__
