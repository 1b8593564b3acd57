"""Workers are submitted through submitit: one ``sbatch`` for the whole array, as far as the site's limits allow."""

import contextlib
import io
import itertools
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hala_hpc.config.errors import HalaError, plural
from hala_hpc.config.schema import Recipe, Site
from hala_hpc.slurm import commands, local, pickles
from hala_hpc.slurm.commands import Limits, limits
from hala_hpc.slurm.record import MOST_REQUEUES, WORKERS, Intent, Job, Submission, adopt, in_queue, intend, record
from hala_hpc.slurm.script import Launch, SbatchRequest, job_text, launch, parameters, rank_variables

ENTRY = "hala_hpc.worker.unpickle"
"""What a job runs to load its pickle, in place of submitit's own module."""


def without_gpus(site: Site) -> Site:
    """The site as jobs see it that need no GPU: what ``slurm_cpu`` says of them, on one node."""
    cpu = site.slurm_cpu
    return replace(
        site, slurm=replace(cpu, account=cpu.account or site.slurm.account, gpus_per_worker=0, nodes_per_worker=1)
    )


def submit_each(
    recipe: Recipe,
    run: Path,
    environment: str,
    jobs: Sequence[Job],
    *,
    ranks: int | None = None,
    after: Sequence[str] = (),
    kind: str = WORKERS,
) -> Submission:
    """Start one worker for each of ``jobs``. Raises HalaError where Slurm refuses.

    Parameters
    ----------
    run : the directory for its ``logs`` and ``ledger``.
    ranks : those of a training on each node: the worker is then a launcher on the first of ``nodes_per_worker`` nodes.
    after : Slurm jobs that must have ended before, however they ended.
    kind : as what they are on record (see ``record``).
    """
    started = launch(recipe.site, environment)
    if recipe.site.executor == "slurm":
        request = parameters(recipe, started, ranks, after, starts_again=kind == WORKERS and ranks is None)
        return _submit_slurm(run, recipe, request, started.python, jobs, kind)
    if recipe.site.executor == "local":
        return Submission("local", _submit_local(recipe, run, started, jobs, ranks), len(jobs))
    jobs[0]()  # debug: here and now, where a debugger can follow
    submission = Submission(recipe.site.executor, [str(os.getpid())], 1)
    record(run, submission)
    return submission


def preview(recipe: Recipe, run: Path, environment: str, workers: int, ranks: int | None = None) -> str:
    """The sbatch file that ``submit_each`` would hand in."""
    started, logs = launch(recipe.site, environment), run / "logs"
    command = f"{started.python} -u -m {ENTRY} {shlex.quote(str(logs))}"
    return job_text(parameters(recipe, started, ranks, starts_again=ranks is None), command, logs, workers)


def would_take(request: SbatchRequest) -> None:
    """Ask Slurm whether it would take such a job, without submitting it. Raises HalaError with its refusal."""
    with tempfile.TemporaryDirectory() as folder, commands.outside_any_job(request.options):
        script = Path(folder, "test.sbatch")
        script.write_text(job_text(request, "true", Path(folder)))
        commands.run("sbatch", "--test-only", str(script))


def chunks(workers: int, limits: Limits, queued: int = 0) -> list[int]:
    """Sizes of the arrays that so many workers need; fewer workers where the user may not submit as many."""
    allowed = min(workers, limits.jobs, (limits.submit - queued) if limits.submit is not None else workers)
    if allowed < 1:
        raise HalaError(
            f"this user may have {plural(limits.submit or 0, 'job')} and has {queued}", "wait for some, or cancel them"
        )
    full, rest = divmod(allowed, limits.array)
    return [limits.array] * full + ([rest] if rest else [])


def _submit_slurm(
    run: Path, recipe: Recipe, request: SbatchRequest, python: str, jobs: Sequence[Job], kind: str
) -> Submission:
    limit = limits(recipe.site.slurm)
    ids: list[str] = []
    left = list(jobs)
    for size in chunks(len(jobs), limit, len(commands.own_tasks()) if limit.submit is not None else 0):
        try:
            ids.append(_submit_array(run, request, python, left[:size], kind))
        except HalaError:
            if not ids:
                raise
            break  # what could be submitted works; the rest may follow with `hala resume`
        del left[:size]
    return Submission("slurm", ids, len(jobs) - len(left))


def _submit_array(run: Path, request: SbatchRequest, python: str, jobs: Sequence[Job], kind: str) -> str:
    """One array: on record before Slurm is asked, and found again in the queue where its answer is lost."""
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    minutes = request.parameters.get("time")
    intent = intend(run, [job.run for job in jobs], minutes if isinstance(minutes, int) else None, kind)
    # submitit copies what sbatch says to standard error; our own error says it, in one line.
    with commands.outside_any_job(request.options), contextlib.redirect_stderr(io.StringIO()):
        try:
            executor = _executor(submitit.SlurmExecutor)(run / "logs", max_num_timeout=MOST_REQUEUES, python=python)
            executor.update_parameters(**request.known_as(intent.token).for_submitit)
            job = str(executor.submit_array(jobs)[0].job_id).partition("_")[0]
        except (FailedJobError, FailedSubmissionError) as error:
            return _after_failure(run, intent, jobs, f"sbatch: {_words(error)}", error)
    intent.took(job)
    return job


def _after_failure(run: Path, intent: Intent, jobs: Sequence[Job], words: str, error: Exception) -> str:
    """The array's id where Slurm took it all the same. Raises HalaError."""
    if not commands.is_silence(words):
        intent.refused(words)
        raise HalaError(words, f"the run is made, not submitted: hala resume {run.name} [site.…=…]") from error
    with contextlib.suppress(HalaError):
        if (job := in_queue(intent.token, os.getuid())) is not None:
            adopt(run, intent, job, jobs)
            return job
    hint = f"the run is made; hala resume {run.name} first asks whether Slurm took it after all"
    raise HalaError(words, hint) from error


def _executor(kind: Any) -> Any:
    """One of submitit's executors, whose jobs load their pickle with ``ENTRY``. Its name says which one it is."""
    pickles.guard()

    def command(self: Any) -> str:
        return f"{self.python} -u -m {ENTRY} {shlex.quote(str(self.folder))}"

    return type(kind.__name__, (kind,), {"_submitit_command_str": property(command)})


def _submit_local(recipe: Recipe, run: Path, started: Launch, jobs: Sequence[Job], ranks: int | None) -> list[str]:
    import submitit

    gpus = recipe.site.slurm.gpus_per_worker
    setup = [*started.setup, *(rank_variables(recipe.site, started, ranks) if ranks is not None else [])]
    executor = _executor(submitit.LocalExecutor)(run / "logs", max_num_timeout=MOST_REQUEUES, python=started.python)
    free = free_gpus({number for gpus in local.live(run).values() for number in gpus})
    ids = []
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
        with _outliving_us(run / "logs" / f"local-{os.getuid()}.log"):
            pid = str(executor.submit(job).job_id)
        record(run, Submission("local", [pid], 1, gpus=[mine]))
        ids.append(pid)
    return ids


def free_gpus(taken: Collection[int]) -> Iterator[int]:
    """Numbers of GPUs that no worker has, lowest first."""
    return (number for number in itertools.count() if number not in taken)


@contextlib.contextmanager
def _outliving_us(log: Path) -> Iterator[None]:
    """Let processes started herein survive a logout, and not hold on to our output: `hala submit | tee` must end."""
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


def _words(error: Exception) -> str:
    """Slurm's own words, out of what submitit wraps them in."""
    lines = [line.strip() for line in str(error).splitlines() if "error:" in line] or str(error).splitlines()
    return lines[-1].replace("sbatch: error: ", "") if lines else type(error).__name__
