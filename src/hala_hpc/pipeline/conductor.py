"""Conducting a pipeline: planning and starting each stage once what it takes is there, and running its commands.

With Slurm it is a small job, handed in by the steward of a stage that came to its end; it does what can be done now
and ends. Without, it is a process that stays until the end, and is the steward of all runs meanwhile.
"""

import contextlib
import itertools
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from hala_hpc.config.errors import HalaError, few, plural
from hala_hpc.config.schema import Environment
from hala_hpc.pipeline import ending, lookup, planning, stages, starting, steward, submitting, succession
from hala_hpc.pipeline.decision import Decision
from hala_hpc.pipeline.stages import Pipeline, opened
from hala_hpc.pipeline.succession import Wait, follows
from hala_hpc.pipeline.survey import StageStatus, Survey, survey
from hala_hpc.run import decisions, lease
from hala_hpc.run.files import remove_tree
from hala_hpc.run.layout import GRID, PIPELINE
from hala_hpc.slurm import commands, local
from hala_hpc.slurm.submit import submit_each, without_gpus
from hala_hpc.worker import registry

PATIENCE_SECONDS: Final = 1800.0
"""For another one that plans stages, which may read much data (ours)."""
PAUSE_SECONDS: Final = 3.0
"""Between two looks of a process that stays (ours)."""
AGAIN_SECONDS: Final = 600
"""After which another job looks again, where something was away or a run besides the pipeline's own is waited for."""
MOST_CHARACTERS: Final = 500
"""Of what a command said when it failed."""
_PASSES: Final = re.compile(r"submit limit|MaxSubmit|this user may have|JobCount|right now", re.IGNORECASE)
"""Refusals that are no fault of a stage: the queue is full, or somebody else starts workers."""


@dataclass(frozen=True)
class Conductor:
    """As submitit's job; ``run`` is the folder of a pipeline."""

    run: str

    def __call__(self) -> str:
        from hala_hpc.slurm.allocation import StopFlag, requeue
        from hala_hpc.worker.job import executor, job_name, linger
        from hala_hpc.worker.task import Outcome, say

        again = signal.getsignal(signal.SIGUSR2)
        stop, folder = StopFlag(), Path(self.run)
        for line in tend(folder, stop):
            say(line)
        if stop.signal == signal.SIGUSR2:  # its time is over
            if executor() == "slurm":
                requeue(job_name())
                time.sleep(steward.PATIENCE_SECONDS)
            elif callable(again):
                again(signal.SIGUSR2, None)  # does not return
        linger(stop, Outcome.STOPPED)
        return "conducted"

    def checkpoint(self) -> object:
        """As for workers: the folder knows the rest."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@dataclass(frozen=True)
class Begun:
    """What came of starting a pipeline: how it stands, what went wrong, and the job or process that goes on."""

    survey: Survey
    problems: list[str]
    job: str = ""


def submit(pipeline: Pipeline, site: str) -> Begun:
    """Write a pipeline down, in place of an earlier definition, and start what can be started. Raises HalaError."""
    lookup.refuse_forgotten_site(site, pipeline.recipe.site.executor)
    if lookup.pipeline_of(pipeline.folder):
        raise HalaError(f"{pipeline.folder} lies in another pipeline", "choose another run.root")
    if (pipeline.folder / PIPELINE).is_file():
        _refuse_running(pipeline)
    stages.save(pipeline)
    return begin(pipeline.folder)


def begin(folder: Path) -> Begun:
    """Start, or go on with, a pipeline; what failed is tried again. Raises HalaError."""
    pipeline = stages.load(folder)
    decisions.note(folder, decisions.STARTING, by=decisions.PERSON)
    if follows(pipeline.recipe):
        guard = succession.hand_in(folder, pipeline.recipe, Conductor, pipeline.python)
        now, problems = conduct(folder)
        _rest_to_stewards(now, problems, guard)
        return Begun(now, problems, guard if problems else "")
    if pipeline.recipe.site.executor == "slurm":
        now, problems = conduct(folder)
        return Begun(now, problems)
    now = survey(pipeline)
    if now.has_ended:
        _note_end(now)
        return Begun(now, [])
    return Begun(now, [], "" if local.workers(folder) else _start_here(pipeline))


def resume(folder: Path) -> Begun:
    """The same, and have stages whose runs were stopped or cancelled go on. Raises HalaError."""
    for status in survey(stages.load(folder)).in_state("stopped", "cancelled"):
        if status.folder is None:
            continue
        if (status.folder / GRID).is_file():
            submitting.resume(status.folder, ())
        else:
            run = starting.thawed(status.folder, ())
            with steward.alone(status.folder):
                is_busy = starting.at_work(status.folder) > 0
                starting.retry(run)
                if not is_busy:
                    steward.start(status.folder, [run])
    return begin(folder)


def tend(folder: Path, should_stop: Callable[[], bool] = lambda: False, *, watch: float = 0.0) -> Iterator[str]:
    """Conduct, and say what changed. With Slurm it ends once stewards follow all that runs; else it stays to the end.

    ``watch``: stay all the same, and look every so many seconds. Raises HalaError, OSError.
    """
    pipeline = stages.load(folder)
    does_follow = follows(pipeline.recipe) and not watch
    before: dict[str, str] = {}
    while not should_stop():
        guard = succession.hand_in(folder, pipeline.recipe, Conductor, pipeline.python) if does_follow else ""
        now, problems = conduct(folder)
        yield from problems
        states = {status.name: f"{status.state} {status.reason}".strip() for status in now.stages.values()}
        yield from (f"{name}: {state}" for name, state in states.items() if before.get(name) != state)
        before = states
        if does_follow:
            _rest_to_stewards(now, problems, guard)
            if problems or not survey(pipeline := stages.load(folder)).in_state("ready", "planned"):
                return  # whatever ends from now on hands in a conductor of its own
            continue
        if now.has_ended:
            return
        for status in now.in_state("running"):
            with contextlib.suppress(HalaError, OSError):
                steward.once(status.folder or folder)
        steward.rest(watch or PAUSE_SECONDS, should_stop)


def conduct(folder: Path) -> tuple[Survey, list[str]]:
    """Plan, start and run what can be, until nothing is left that can; how all stands then, and what was in the way.

    Raises HalaError where another one does so for longer than ``PATIENCE_SECONDS``, and for a broken definition.
    """
    with alone(stages.load(folder)):
        while True:
            now = survey(stages.load(folder))
            work = [] if now.is_cancelled else _startable(now)
            problems = [problem for status in work if (problem := _do(now, status))]
            if problems or not work:
                _note_end(now)
                return now, problems


def _startable(now: Survey) -> list[StageStatus]:
    """What can be done now. Without Slurm nobody shares out this machine: it is one stage after the other."""
    work = now.in_state("planned", "ready")
    if now.pipeline.recipe.site.executor == "slurm":
        return work
    return [] if now.in_state("running") else work[:1]


def alone(
    pipeline: Pipeline, patience: float = PATIENCE_SECONDS
) -> contextlib.AbstractContextManager[Callable[[], bool]]:
    """Nobody else plans or starts stages meanwhile. Raises HalaError where another does for ``patience`` seconds."""
    who = f"conductor-{os.uname().nodename}-{secrets.token_hex(4)}"
    return lease.alone(pipeline.folder, lease.START, who, pipeline.recipe.run.lease_seconds, patience)


def _do(now: Survey, status: StageStatus) -> str:
    """Do what a stage is ready for. What is its own fault is written down; what may pass is said."""
    folder = now.pipeline.folder
    key = asdict(status.key) if status.key else {}
    try:
        if status.stage.command:
            outcome = _run(now, status)
            decisions.note(folder, decisions.RAN, stage=status.name, key=key, answer=outcome)
            return ""
        target = status.folder
        if target is None:
            target = vacant(now, status)
            remove_tree(target)
            decisions.note(folder, decisions.PLANNING, stage=status.name, version=target.name, key=key)
            planning.plan(status.stage.runs(target, opened(now.place)), target, to_start=True)
            decisions.note(folder, decisions.PLANNED, stage=status.name, version=target.name, key=key)
        submitting.start(target, [starting.thawed(path, ()) for path in lookup.runs_of(target)])
    except (HalaError, OSError) as error:
        if isinstance(error, OSError) or commands.is_silence(error) or _PASSES.search(error.message):
            return f"{status.name}: {error}"
        decisions.note(folder, decisions.FAILED, stage=status.name, key=key, error=str(error))
    return ""


def vacant(now: Survey, status: StageStatus) -> Path:
    """The folder of a new version of a stage. What a killed plan of it left there is nobody's, for it never started.

    Whatever else has the name, such as the ledger or a person's folder, stays: then it is the next name.
    """
    events = [item for item in now.noted if item.event.get("stage") == status.name]
    planned = {item.event["version"] for item in events if item.kind == decisions.PLANNED}
    begun = {item.event["version"] for item in events if item.kind == decisions.PLANNING} - planned
    names = itertools.chain([status.name], (f"{status.name}.{number}" for number in itertools.count(2)))
    folders = (now.pipeline.folder / name for name in names)
    return next(path for path in folders if path.name in begun or not (path.name in planned or path.exists()))


def _run(now: Survey, status: StageStatus) -> dict[str, Any]:
    """Run a command of `hala` in the pipeline's folder, and give what it printed as JSON. Raises HalaError."""
    words = [now.place(word) if word in status.stage.takes else word for word in status.stage.command]
    done = subprocess.run(
        [sys.executable, "-m", "hala_hpc.cli", *words, "--json"],
        cwd=now.pipeline.folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[-MOST_CHARACTERS:]
        raise HalaError(f"hala {' '.join(words)}: exit code {done.returncode}: {said}", "mend it, then hala resume")
    try:
        outcome = json.loads(done.stdout)
    except ValueError as error:
        raise HalaError(f"hala {' '.join(words)}: printed no JSON: {error}") from error
    return outcome if isinstance(outcome, dict) else {"printed": outcome}


def _note_end(now: Survey) -> None:
    """Write the end of a pipeline down, and tell whoever wants to know, once for each end."""
    if not now.has_ended or now.is_cancelled:
        return
    folder = now.pipeline.folder
    halted = now.in_state("failed", "stopped", "cancelled")
    decision = Decision("done", f"{plural(len(now.stages), 'stage')} done")
    if not now.finished:
        reasons = [f"{status.name} {status.state}: {status.reason}" for status in halted]
        decision = Decision("stop", few(reasons, 3, " and {} more"), f"hala resume {folder.name}")
    last = decisions.last_decision(now.noted)
    if last is None or not decision.as_event().items() <= last.event.items():
        decisions.note(folder, decisions.DECIDED, **decision.as_event(), jobs=[])
        ending.announce(folder, now.pipeline.recipe, decision)


def _rest_to_stewards(now: Survey, problems: list[str], guard: str) -> None:
    """Nothing is left to do until a stage ends, whose steward calls. What was away, the guard looks for again."""
    if guard and (problems or now.waits_for):
        succession.tell(guard, Wait(seconds=AGAIN_SECONDS))
    elif guard:
        succession.withdraw([guard])


def _refuse_running(pipeline: Pipeline) -> None:
    """Raises HalaError where a stage works by an earlier definition that the new one would leave to itself."""
    now, after = survey(stages.load(pipeline.folder)), survey(pipeline)
    for status in now.in_state("running"):
        later = after.stages.get(status.name)
        if later is None or later.folder != status.folder:
            raise HalaError(
                f"stage {status.name} is running as {status.folder}, and would be another now",
                f"wait for it, or `hala cancel {pipeline.name}` first",
            )


def _start_here(pipeline: Pipeline) -> str:
    """A process that conducts, and outlives this one."""
    recipe = pipeline.recipe
    environment, site = registry.create(recipe).environment, without_gpus(recipe.site)
    site = replace(site, environments=site.environments | {environment: Environment(python=pipeline.python)})
    ours = replace(recipe, name=pipeline.name, site=site)
    return submit_each(ours, pipeline.folder, environment, [Conductor(str(pipeline.folder))]).jobs[0]
