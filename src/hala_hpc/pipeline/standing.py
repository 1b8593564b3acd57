"""How far a run or a grid is, and what became of its workers: from its folder and from Slurm, for a decision."""

import os
import pwd
import re
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from hala_hpc.config import frozen
from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Recipe
from hala_hpc.pipeline import lookup
from hala_hpc.pipeline.decision import UNSET_SEQUENCES, Resources, Situation, Standing
from hala_hpc.pipeline.planning import on_its_nodes
from hala_hpc.run import decisions, ledger
from hala_hpc.run.decisions import Noted
from hala_hpc.run.endings import TAIL_BYTES
from hala_hpc.run.status import Status
from hala_hpc.slurm import commands, held, local, queue, record
from hala_hpc.slurm.queue import OUT_OF_MEMORY, Queue, TaskEnd
from hala_hpc.tasks.train import checkpoints, paths
from hala_hpc.worker import registry
from hala_hpc.worker.array import ArrayWorker
from hala_hpc.worker.job import TOO_SLOW

GPU_MEMORY: Final = re.compile(r"(CUDA|HIP|GPU)\S*( error)?:? out of memory|OutOfMemoryError", re.IGNORECASE)
"""What torch, vLLM and drivers say."""
MAIN_MEMORY: Final = re.compile(r"\bMemoryError\b|Cannot allocate memory|std::bad_alloc")
MOST_ERRORS: Final = 3
ERROR_CHARACTERS: Final = 300
DAY: Final = 86_400.0
LATE_SECONDS: Final = (1.0, 2.0, 4.0)
"""Waits for accounting, which learns of an end some seconds after the queue."""


@dataclass(frozen=True)
class Runs:
    """A run, or the runs of a grid, as they are now. ``noted``: what was decided about all of them together."""

    folder: Path
    paths: Sequence[Path]
    states: Sequence[Status]
    noted: Sequence[Noted]

    @property
    def cancelled(self) -> list[Path]:
        """Runs that a person cancelled, together or alone, and nobody started since."""
        of_all = list(self.noted)

        def history(path: Path) -> list[Noted]:
            own = decisions.read(path) if path != self.folder else []
            return sorted([*of_all, *own], key=lambda item: item.at)

        return [path for path in self.paths if decisions.is_cancelled(history(path))]

    @cached_property
    def unfinished(self) -> list[tuple[Path, Status]]:
        """Those that are not finished and that nobody cancelled."""
        cancelled = self.cancelled
        pairs = zip(self.paths, self.states, strict=True)
        return [(path, state) for path, state in pairs if not state.finished and path not in cancelled]

    @property
    def recipe(self) -> Recipe:
        """Of the first that is left; all of a grid ask for the same resources."""
        return lookup.thawed(self.unfinished[0][0] if self.unfinished else self.paths[0])


def read_runs(folder: Path) -> Runs:
    """Raises HalaError for what is not a run, or cannot be read."""
    paths = lookup.runs_of(folder)
    return Runs(folder, paths, [lookup.state_of(path) for path in paths], decisions.read(folder))


def left(state: Status) -> int:
    """Shards of a run that are not done; 1 where only its last step is."""
    return state.shards - state.done or int(state.unassembled)


def prepared(run: Path) -> list[Path]:
    """The runs that prepare a training's data."""
    return [path.resolve() for path in sorted((run / "prepare").glob("[!.]*"))]


def standing(runs: Runs) -> Standing:
    """How far all of it is."""
    before = dict.fromkeys(path for run in runs.paths for path in prepared(run))
    states = [*runs.states, *(lookup.state_of(path) for path in before)]
    steps = [checkpoints.newest_step(run / paths.CHECKPOINTS) for run in runs.paths]
    done = sum(state.done for state in states) + sum(state.finished for state in states)
    return Standing(done, sum(state.rows_done for state in states), sum(max(0, step) for step in steps))


def situation(runs: Runs) -> Situation:
    """All that a decision depends on. Slurm is asked once; that it gives no answer is part of it."""
    folder = runs.folder
    name = f"{folder.parent.name}/{folder.name}" if record.grid_of(folder) else folder.name
    if all(state.finished for state in runs.states):
        return Situation(name, finished=True)
    if not runs.unfinished:
        return Situation(name, cancelled=True)
    members = list(dict.fromkeys((folder, *runs.paths, *(path for run in runs.paths for path in prepared(run)))))
    unclear = _settled(members)
    recipe, settings = runs.recipe, frozen.settings(runs.unfinished[0][0])
    started = _started(runs)
    whole = [item for item in started if not _instead_of(item)]
    since_whole = started[started.index(whole[-1]) :] if whole else []
    last_tasks = _last_tasks(members, since_whole)
    tasks = _queue(members, last_tasks) if not unclear else Queue()
    errors = _errors([path for path, _ in runs.unfinished] + members, started[-1].at if started else 0.0)
    last = max((n for n, item in enumerate(whole) if item.event.get("by") == decisions.PERSON), default=0)
    alone = whole[last:]  # since a person did something
    since = alone[0].at if alone else None
    idle = _idle(alone, standing(runs))
    ends = Counter(end.state for end in tasks.ends)
    gone, watched = _gone(runs, since_whole, tasks)
    live = [task for task in tasks.tasks if task.may_work]
    if any(MAIN_MEMORY.search(error) for error in errors):
        ends[OUT_OF_MEMORY] += 1
    return Situation(
        run=name,
        missing=sum(left(state) for _, state in runs.unfinished),
        failed=sum(state.failed for _, state in runs.unfinished),
        live=tuple(dict.fromkeys(task.job.partition("_")[0] for task in live)),
        unlaunched=tuple(held.unlaunched(tasks, *members)),
        held=tuple(task.job for task in live) if all(task.is_held for task in live) else (),
        busy=sum(_busy(path, state, tasks) for path, state in zip(runs.paths, runs.states, strict=True)),
        unclear=unclear or (f"Slurm does not answer ({tasks.silence})" if tasks.silence else ""),
        by=_canceller(tasks.ends, last_tasks),
        has_progress=idle == 0,
        idle=idle,
        submissions=sum(item.event.get("by") == decisions.STEWARD for item in alone),
        most_submissions=settings.submissions,
        days=(runs.states[0].time - since) / DAY if since is not None else 0.0,
        most_days=settings.days,
        ends=ends,
        too_slow=any(TOO_SLOW in error for error in errors),
        gpu_memory=any(GPU_MEMORY.search(error) for error in errors),
        bad_nodes=tuple(dict.fromkeys((*_failed_nodes(tasks.ends), *_refused_nodes(runs, recipe, since or 0.0)))),
        errors=tuple(errors[-MOST_ERRORS:]),
        gone=gone,
        watched=watched,
        replaced=max(0, len(since_whole) - 1),
        resources=_resources(recipe),
    )


def is_shared_out(recipe: Recipe) -> bool:
    """Whether any worker of a run can do any of its shards; a training is all of its own launcher's."""
    return bool(recipe.task.kind != "train")


def runs_of(folder: Path, tasks: Collection[str]) -> list[Path]:
    """The run of each of some tasks that were handed in for a run or a grid, as it was called then."""
    known = {task: path for entry in record.submitted(folder) for task, path in entry.tasks.items()}
    return [known[task] for task in tasks if task in known]


def _gone(runs: Runs, started: Sequence[Noted], tasks: Queue) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tasks whose place is free while others live, and those to be watched (see ``Situation``).

    ``started``: since all workers were last handed in. What somebody cancelled by Slurm's own means stays away, as
    long as others work.
    """
    if not tasks.live or not started or not is_shared_out(runs.recipe):
        return (), ()
    submitted = record.submitted(runs.folder)
    known = {task: path.name for entry in submitted for task, path in entry.tasks.items()}
    ours = [task for entry in submitted[started[0].event["arrays"] :] for task in entry.tasks]
    live = {task.job for task in tasks.tasks if task.may_work}
    open_ = {task for run in (runs.folder, *runs.paths) for task in record.open_tasks(run)}
    silent = [task for task in ours if task in open_ - live - _replaced(started)]
    ends = [*(queue.ends(silent, 0.0) or ()), *map(queue.end_of, tasks.tasks)]
    cancelled = {end.job for end in ends if end is not None and end.state == "CANCELLED"}
    gone: list[str] = []
    watched: list[str] = []
    for path, state in runs.unfinished:
        at_it = [task for task in live if known.get(task) == path.name]
        free = left(state) - state.failed - len(at_it)
        places = [task for task in silent if known[task] == path.name and task not in cancelled][: max(0, free)]
        gone += places
        watched += sorted(at_it) if free > len(places) else []
    return tuple(gone), tuple(watched)


def _settled(members: Sequence[Path]) -> str:
    """Why it is not known what Slurm has; empty where it is."""
    try:
        for path in members:
            record.settle(path, ArrayWorker)
    except HalaError as error:
        return str(error)
    return ""


def _queue(members: Sequence[Path], last_tasks: Collection[str]) -> Queue:
    """What Slurm says. Accounting may be some seconds late with the ends of tasks, of which the queue knows less."""
    silent = set(last_tasks) & {task for run in members for task in record.open_tasks(run)}
    for late in (*LATE_SECONDS, 0.0):
        tasks = queue.with_ends(queue.ask(*members), members)
        known = {end.job for end in tasks.ends} | {task.job for task in tasks.tasks if task.may_work}
        if tasks.silence or not late or silent <= known:
            break
        time.sleep(late)
    late_ends = [queue.end_of(task) for task in tasks.tasks if task.job in silent - known]
    return replace(tasks, ends=[*tasks.ends, *(end for end in late_ends if end is not None)])


def _busy(path: Path, state: Status, tasks: Queue) -> int:
    """Workers with a heartbeat that may be alive: those of jobs that Slurm says are over are not, however fresh it is.

    Of this machine's own workers its processes say more than their heartbeats.
    """
    ended = queue.ended_workers(path, tasks)
    executors = {file.stem: worker.get("executor", "") for file, worker in ledger.openings(path / "ledger")}
    here = local.workers(path)
    others = 0
    for worker in state.workers:
        is_ours = executors.get(worker.worker) == "local" and worker.host == os.uname().nodename
        others += worker.alive and not worker.part_of and worker.worker not in ended and not is_ours
    return others + len(here)


def _started(runs: Runs) -> list[Noted]:
    """When workers were handed in; what Slurm refused, or never got, is left out."""
    starting = [item for item in runs.noted if item.kind == decisions.STARTING]
    arrays = [item.event.get("arrays", 0) for item in starting] + [len(record.submitted(runs.folder))]
    return [item for item, before, after in zip(starting, arrays, arrays[1:], strict=False) if after > before]


def _idle(started: Sequence[Noted], now: Standing) -> int:
    """Submissions in a row, the last included, since which nothing got done."""
    known = [Standing(**item.event["standing"]) for item in started if "standing" in item.event]
    idle = 0
    for before, after in zip(reversed(known), (now, *reversed(known)), strict=False):
        if after.is_beyond(before):
            break
        idle += 1
    return idle


def _errors(runs: Sequence[Path], since: float) -> list[str]:
    """What workers that wrote since then last said went wrong, oldest first, each once."""
    events = []
    for run in dict.fromkeys(runs):
        for file in (run / "ledger").glob("*.jsonl"):
            if file.stat().st_mtime >= since:
                events += [event for event in ledger.read(file, TAIL_BYTES) if event["event"] in ("failed", "crashed")]
    words = (" ".join(str(event.get("error", "")).split()) for event in sorted(events, key=lambda e: float(e["time"])))
    return list(dict.fromkeys(text[:ERROR_CHARACTERS] for text in words if text))


def _canceller(ends: Sequence[TaskEnd], tasks: Collection[str]) -> str:
    """Who cancelled all tasks of the last submissions by scancel; empty where nobody did, or not all."""
    cancelled = {end.job: end.by for end in ends if end.state == "CANCELLED"}
    if not tasks or not cancelled.keys() >= set(tasks):
        return ""
    user = next(number for job, number in cancelled.items() if job in tasks)
    if user is None:
        return "somebody"
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"


def _last_tasks(runs: Sequence[Path], started: Sequence[Noted]) -> set[str]:
    """The tasks of the array that was handed in last for all, and those that took the place of some of them."""
    of_slurm = [entry for run in runs for entry in record.submitted(run) if entry.executor == "slurm" and entry.jobs]
    last = sorted(of_slurm, key=lambda entry: int(entry.jobs[0]))[-max(1, len(started)) :]
    return {task for entry in last for task in entry.tasks} - _replaced(started)


def _replaced(started: Sequence[Noted]) -> set[str]:
    """Tasks whose place others took."""
    return {task for item in started for task in _instead_of(item)}


def _instead_of(item: Noted) -> list[str]:
    """Tasks whose place the workers took that were started then; none where they were all that there are."""
    tasks: Any = item.event.get("instead_of", ())
    return list(tasks)


def _failed_nodes(ends: Sequence[TaskEnd]) -> list[str]:
    """Nodes that failed under jobs of a single node; of larger ones Slurm does not say which it was."""
    failed = [end.job for end in ends if end.state in ("NODE_FAIL", "BOOT_FAIL")]
    return [nodes[0] for job in failed if len(nodes := queue.nodes_of(job)) == 1]


def _refused_nodes(runs: Runs, recipe: Recipe, since: float) -> list[str]:
    """Nodes that trainings left out, by a preflight or because ranks died there."""
    if recipe.task.kind != "train":
        return []
    files = (file for run in runs.paths for file in (run / "ledger").glob("*.jsonl") if file.stat().st_mtime >= since)
    events = (event for file in files for event in ledger.read(file) if event["event"] == "excluded")
    return [str(event["node"]) for event in events if event.get("node")]


def _resources(recipe: Recipe) -> Resources:
    """What the next workers would ask for."""
    task = registry.create(recipe)
    section = "site.slurm" if on_its_nodes(recipe, task).site == recipe.site else "site.slurm_cpu"
    slurm = recipe.site.slurm if section == "site.slurm" else recipe.site.slurm_cpu
    names = {str(key).replace("_", "-") for key, value in slurm.extra.items() if value is not None}
    fixed = {"mem"} if names & {"mem", "mem-per-cpu", "mem-per-gpu"} else set()
    excluded = str(slurm.extra.get("exclude") or "")
    sequences = None
    if recipe.engine.kind == "vllm" and recipe.task.kind != "train":
        sequences = recipe.engine.max_num_seqs or UNSET_SEQUENCES
    return Resources(
        section=section,
        mem_gb=slurm.mem_gb,
        minutes=slurm.minutes,
        most_minutes=_most_minutes(recipe, slurm.partition),
        fixed=frozenset(fixed | ({"time"} if "time" in names else set())),
        sequences=sequences,
        excluded=tuple(excluded.split(",")) if excluded else (),
    )


def _most_minutes(recipe: Recipe, partition: str | None) -> int | None:
    """The time limit of the partition, where there is one and Slurm says so."""
    if recipe.site.executor != "slurm":
        return None
    try:
        return commands.most_minutes(partition)
    except HalaError:
        return None
