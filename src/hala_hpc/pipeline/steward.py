"""The steward of a run or a grid: a small job that Slurm starts when a worker's job has ended, however it ended.

It reads how far the run is, decides (``decision``), does what it decided, writes it down, and tells the next one what
to wait for (``succession``).
"""

import contextlib
import os
import pkgutil
import re
import secrets
import shlex
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from hala_hpc.config import frozen
from hala_hpc.config.errors import HalaError
from hala_hpc.pipeline import ending, lookup, standing, starting, succession
from hala_hpc.pipeline.decision import Decision, Situation, decide
from hala_hpc.pipeline.planning import PlannedRun
from hala_hpc.pipeline.standing import Runs
from hala_hpc.pipeline.succession import MINUTES, Wait, follows
from hala_hpc.run import decisions, lease, status
from hala_hpc.run.decisions import Noted
from hala_hpc.run.files import share
from hala_hpc.slurm import commands, held, queue, record
from hala_hpc.slurm.record import Submission
from hala_hpc.worker import unpickle

FIRST_PAUSE, LONGEST_PAUSE = 5.0, 120.0
"""Seconds before a steward looks again; each time twice as long."""
BUSY_SECONDS: Final = 600
"""After which a steward looks again where workers are not in Slurm's queue, so that it can wait for none."""
AGAIN_SECONDS: Final = 60
"""The same, where a task that it waited for has ended, and yet nothing is to be done."""
TAIL_SECONDS: Final = 60.0
"""So long a steward stays where nobody need be replaced: the last workers mostly end soon after the first (ours)."""
PATIENCE_SECONDS: Final = 60.0
"""For another one that starts or cancels workers, and for what was away for a moment when nothing got done."""
MOST_PROBLEMS: Final = 6
"""Looks in a row at a run that cannot be read; then a steward ends."""
_FULL: Final = re.compile(r"submit limit|MaxSubmit|this user may have|JobCount", re.IGNORECASE)
"""Refusals that pass: the user's or the cluster's queue is full."""


@dataclass(frozen=True)
class Steward:
    """As submitit's job; ``run`` is the folder of a run or a grid."""

    run: str

    def __call__(self) -> str:
        from hala_hpc.slurm.allocation import StopFlag, requeue
        from hala_hpc.worker.job import job_name, linger
        from hala_hpc.worker.task import Outcome, say

        stop, action = StopFlag(), "stopped"
        if problem := guard(Path(self.run)):
            say(f"no steward follows should this one be killed: {problem}")
        for decision in tend(Path(self.run), stop):
            action = decision.action
            say(f"{action}: {decision}")
        if stop.signal == signal.SIGUSR2:  # its time is over, and it still waits
            requeue(job_name())
            time.sleep(PATIENCE_SECONDS)
        linger(stop, Outcome.STOPPED)
        return action

    def checkpoint(self) -> object:
        """As for workers: the folder knows the rest."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@dataclass(frozen=True)
class Started:
    """Runs that were given workers, and the arrays in their order: the last is the one that does the runs.

    ``steward`` is the job that follows them; ``problem`` why there is none where there should be one.
    """

    folder: Path
    runs: Sequence[PlannedRun]
    submissions: Sequence[Submission] = ()
    steward: str = ""
    problem: str = ""

    @property
    def jobs(self) -> list[str]:
        return [job for submission in self.submissions for job in submission.jobs]


def start(
    folder: Path,
    runs: Sequence[PlannedRun],
    workers: Mapping[Path, int] | None = None,
    by: str = decisions.PERSON,
    besides: Decision | None = None,
) -> Started:
    """Start workers (see ``starting.start``) and, where the site allows it, a steward that follows them.

    The steward comes first, so that one follows whatever becomes of us. How far the runs are is written down before.
    ``besides``: what was decided where the new workers take the place of some, while others work on. Raises HalaError
    where Slurm refuses the workers.
    """
    now = standing.read_runs(folder)
    arrays, known = len(record.submitted(folder)), record.steward_jobs(folder)
    extra = {"instead_of": list(besides.instead_of)} if besides else {}
    far = asdict(standing.standing(now))
    decisions.note(folder, decisions.STARTING, by=by, standing=far, arrays=arrays, **extra)
    steward, problem = "", ""
    try:
        steward = succession.hand_in(folder, runs[0].recipe, Steward)
    except HalaError as error:
        problem = error.message
    try:
        submissions = starting.start(folder, runs, workers)
    except BaseException as error:
        # Without an answer it is not known whether there are workers: the steward will see.
        if steward and steward not in known and not commands.is_silence(str(error)):
            succession.withdraw([steward])
        raise
    if steward:
        tasks = [task for entry in record.submitted(folder)[arrays:] for task in entry.tasks]
        others = queue.ask(folder, *now.paths).tasks if arrays else ()
        tasks = list(dict.fromkeys([*tasks, *(task.job for task in others if task.may_work)]))
        is_any = standing.is_shared_out(runs[0].recipe) and sum(map(standing.left, now.states)) > len(tasks)
        succession.tell(steward, Wait(tasks, is_any, besides.seconds if besides else 0))
    return Started(folder, runs, submissions, steward, problem)


def guard(folder: Path) -> str:
    """Have a steward follow the one that we are, should we be killed. Why there is none; empty where there is."""
    try:
        succession.hand_in(folder, standing.read_runs(folder).recipe, Steward)
    except (HalaError, OSError) as error:
        return str(error)
    return ""


def scrontab(folder: Path) -> list[str]:
    """Lines for ``scrontab -e``, by which a steward looks every ten minutes."""
    words = shlex.join([sys.executable, "-m", "hala_hpc.cli", "steward", str(folder)])
    options = f"#SCRON --time={MINUTES} --job-name=hala-steward"
    return [options, f"*/10 * * * * {words}".replace("%", r"\%")]


def alone(
    folder: Path, patience: float = PATIENCE_SECONDS, what: str = lease.START
) -> contextlib.AbstractContextManager[Callable[[], bool]]:
    """Nobody else starts or cancels workers of a run meanwhile, or of the grid that it belongs to.

    Raises HalaError where another does for longer than ``patience`` seconds. ``what`` may be ``lease.END``.
    """
    shared = next(iter(record.grid_of(folder)), folder)
    ttl = frozen.settings(lookup.runs_of(folder)[0]).lease_seconds
    who = f"steward-{os.uname().nodename}-{secrets.token_hex(4)}"
    return lease.alone(shared, what, who, ttl, patience)


def look(folder: Path) -> tuple[Runs, Situation, Decision]:
    """What would be decided now. Raises HalaError for what is not a run."""
    runs = standing.read_runs(folder)
    now = standing.situation(runs)
    return runs, now, decide(now)


def tend(folder: Path, should_stop: Callable[[], bool] = lambda: False, *, watch: float = 0.0) -> Iterator[Decision]:
    """Decide and act until it has come to an end, or another steward is in the queue for what comes next.

    Decisions that differ from the one before are yielded. ``watch``: stay to the end, and look every so many seconds.
    Raises HalaError or OSError where the run cannot be read for a while.
    """
    began, pause, problems = time.monotonic(), FIRST_PAUSE, 0
    while not should_stop():
        try:
            decision, is_new = once(folder)
            problems = 0
        except (HalaError, OSError) as error:
            if (problems := problems + 1) >= MOST_PROBLEMS:
                raise
            decision, is_new = Decision("wait", f"it looks again: {error}"), problems == 1
        if is_new:
            yield decision
        if decision.is_end or (not watch and _is_followed(folder, decision, is_new, time.monotonic() - began)):
            return
        rest(watch or pause, should_stop)
        pause = min(2 * pause, LONGEST_PAUSE)


def rest(seconds: float, should_stop: Callable[[], bool]) -> None:
    """Wait, and look twice a second whether to stop."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and not should_stop():
        time.sleep(min(left, 0.5))


def once(folder: Path) -> tuple[Decision, bool]:
    """Decide, act and write it down; also whether it is another decision than the last one. Raises HalaError, OSError.

    Where nothing got done for no known reason, whatever was away for a moment may be back a moment later.
    """
    share((before := standing.read_runs(folder)).recipe.is_shared)
    reading = ending.read_again(before)
    with alone(folder) as is_ours:
        runs, now, decision = look(folder)
        decision = reading.applied(decision, folder.name)
        is_later = decision.action == "submit" and now.idle > 0 and not decision.changes
        if not is_later:
            decision, is_new = _act(runs, decision, is_ours)
    if is_later:
        time.sleep(min(frozen.settings(runs.paths[0]).lease_seconds, PATIENCE_SECONDS))
        with alone(folder) as is_ours:
            runs, _, decision = look(folder)
            decision, is_new = _act(runs, decision, is_ours)
    if decision.is_end and ending.is_wanted(folder, runs.recipe):
        # Once, also where another steward comes to this end at the same time.
        with alone(folder, ending.SECONDS + PATIENCE_SECONDS, lease.END):
            ending.announce(folder, runs.recipe, decision)
    return decision, is_new


def _act(runs: Runs, decision: Decision, is_ours: Callable[[], bool]) -> tuple[Decision, bool]:
    """Do what was decided and write it down. Raises HalaError where another was taken for us meanwhile."""
    jobs: list[str] = []
    if decision.action == "submit":
        if not is_ours():
            raise HalaError(f"{runs.folder.name}: this steward was taken for dead", "it looks again")
        decision, jobs = _submit(runs, decision)
    if decision.action == "release":
        held.release(runs.folder, decision.tasks)
        jobs = list(decision.tasks)
    is_new = decision.action in ("submit", "release") or not _is_last(runs.noted, decision)
    if is_new:
        decisions.note(runs.folder, decisions.DECIDED, **decision.as_event(), jobs=jobs)
    if decision.is_end:
        _hand_on(runs)
        with contextlib.suppress(HalaError):  # a silent Slurm: the next one comes to the same end
            succession.withdraw(succession.waiting(runs.folder, Steward))
    return decision, is_new


def _hand_on(runs: Runs) -> None:
    """Have the pipeline of which this is a stage go on, in a job of its own. Raises HalaError: it is tried again."""
    if (pipeline := lookup.pipeline_of(runs.folder)) is None or not (pipeline / "ledger").is_dir():
        return
    work = pkgutil.resolve_name(unpickle.CONDUCTOR)
    if job := succession.hand_in(pipeline, runs.recipe, work, lookup.planner_of(pipeline)):
        succession.tell(job, Wait())


def follow(folder: Path, decision: Decision, in_seconds: int = 0) -> str:
    """The job of another steward for what comes next, in the queue already or handed in now; empty where none follows.

    Raises HalaError where Slurm refuses, or does not answer.
    """
    recipe = standing.read_runs(folder).recipe
    if decision.is_end or not follows(recipe):
        return ""
    with alone(folder):
        if decision.action == "submit" and (jobs := succession.waiting(folder, Steward)):
            return jobs[0]  # whoever started the workers told it what to wait for
        job = succession.hand_in(folder, recipe, Steward)
        tasks = decision.watched or decision.after
        succession.tell(job, Wait(tasks, bool(decision.watched), max(in_seconds, decision.seconds)))
        return job


def keep_followed(folder: Path, runs: Sequence[PlannedRun]) -> Started:
    """Hand in a steward where workers are at some runs and none follows, as after a submission that was killed.

    ``Started`` without workers; one without ``runs`` where none is wanted.
    """
    if not runs or not follows(standing.read_runs(folder).recipe):
        return Started(folder, ())
    try:
        decision = look(folder)[2]
        return Started(folder, () if decision.is_end else runs, steward=follow(folder, decision))
    except HalaError as error:
        return Started(folder, runs, problem=error.message)


def _is_followed(folder: Path, decision: Decision, is_new: bool, waited: float) -> bool:
    """Whether this steward may end, for another one is in the queue or none is wanted."""
    patience = (
        0.0 if decision.action == "submit" or decision.watched else TAIL_SECONDS if decision.after else BUSY_SECONDS
    )
    if waited < patience:
        return False
    seconds = BUSY_SECONDS if not decision.after else AGAIN_SECONDS if decision.watched and not is_new else 0
    try:
        return bool(follow(folder, decision, seconds)) or not follows(standing.read_runs(folder).recipe)
    except HalaError:
        return False


def _is_last(noted: Sequence[Noted], decision: Decision) -> bool:
    last = decisions.last_decision(noted)
    return last is not None and decision.as_event().items() <= last.event.items()


def _submit(runs: Runs, decision: Decision) -> tuple[Decision, list[str]]:
    """Hand in workers as decided; what came of it, and the jobs. No refusal of Slurm is raised: it is decided upon."""
    try:
        return _started(runs, decision)
    except HalaError as error:
        if decision.instead_of:
            reason = f"{decision.reason}; refused: {error.message}"
            return replace(decision, action="wait", reason=reason, changes=(), instead_of=()), []
        if commands.is_silence(error) or any(record.unanswered(path) for path in (runs.folder, *runs.paths)):
            return Decision("wait", f"Slurm did not say whether it takes new workers: {error.message}"), []
        if _FULL.search(error.message):
            return Decision("wait", f"Slurm takes no more jobs for now: {error.message}"), []
        if decision.changes and decision.optional:
            as_before = f"{decision.reason}; refused ({error.message}), so as before"
            return _submit(runs, replace(decision, reason=as_before, changes=()))
        hint = f"hala resume {runs.folder.name}, with what Slurm takes"
        return Decision("stop", f"{decision.reason}; refused: {error.message}", hint), []


def _started(runs: Runs, decision: Decision) -> tuple[Decision, list[str]]:
    planned, settings, workers = [], frozen.settings(runs.paths[0]), {}
    gone = Counter(path.name for path in standing.runs_of(runs.folder, decision.instead_of))
    for path, state in runs.unfinished:
        if decision.retries:
            status.retry_failed(path, settings.attempts, settings.lease_seconds)
        shards = standing.left(state) - (0 if decision.retries else state.failed)
        if shards and (gone[path.name] or not decision.instead_of):
            run = starting.thawed(path, decision.changes)
            planned.append(run)
            workers[path] = min(shards, gone[path.name] or run.recipe.run.workers)
    starting.free_shards_of_dead(runs.paths, queue.ask(runs.folder, *runs.paths))
    before = [data for run in planned for data in run.path.glob("prepare/*") if not data.is_symlink()]
    with lookup.changed([*(run.path for run in planned), *before], decision.changes):
        besides = decision if decision.instead_of else None
        started = start(runs.folder, planned, workers, decisions.STEWARD, besides)
    if started.problem:
        decision = replace(decision, reason=f"{decision.reason}; no steward follows: {started.problem}")
    return decision, started.jobs
