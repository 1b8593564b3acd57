"""Faults on purpose: a run's own workers in Slurm are killed, stopped, drained and requeued, by a seed.

Only workers' tasks are hurt that are on the run's record and this user's; stewards are not.
What lasts (a stopped worker, a drained node) is undone a while later, and in any case at the end.
"""

import os
import random
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final

from hala_hpc.config import frozen
from hala_hpc.config.errors import HalaError
from hala_hpc.pipeline import lookup
from hala_hpc.run import manifest
from hala_hpc.run.ledger import Ledger
from hala_hpc.slurm import again, allocation, commands, queue, record

KILL, STOP, DRAIN, REQUEUE = "kill", "stop", "drain", "requeue"
KINDS: Final = {
    KILL: f"kill -9 of a worker, which starts again in its job, {again.MOST} times; after that the job fails",
    STOP: "SIGSTOP, and SIGCONT after longer than a lease",
    DRAIN: "its node takes no jobs for as long, and the worker is requeued; only requeued where you may not drain",
    REQUEUE: "scontrol requeue",
}
LEASES: Final = 1.5
"""For so many leases a worker is stopped, or a node drained: by then another must have taken over."""
LOOK_SECONDS: Final = 0.5
AGAIN_SECONDS, TRIES = 5.0, 6
"""Until what could not be undone is tried again, and how often in the end."""
REASON: Final = "hala-chaos"
"""Of our drains, by which we know them again."""
AT_WORK: Final = ("IDLE", "MIXED", "ALLOCATED")
"""States of a node that is nobody's to mend."""


@dataclass(frozen=True)
class Target:
    """A task of Slurm in which a worker runs. ``steps``: by Slurm's names, without the batch script's own."""

    job: str
    node: str
    steps: tuple[str, ...]


@dataclass(frozen=True)
class Fault:
    """What was done to a task, ``seconds`` after the first look. ``refused``: why Slurm did not do it; else empty.

    ``lasts``: seconds until it is undone, 0 for what cannot be.
    """

    kind: str
    job: str
    node: str
    seconds: float
    lasts: float = 0.0
    refused: str = ""


@dataclass(frozen=True)
class Injector:
    """Who hurts a run, and whom: ``lasting`` are the faults to be undone, by the time (monotonic) when."""

    run: Path
    chance: random.Random
    kinds: Sequence[str]
    lasts: float
    began: float = field(default_factory=time.monotonic)
    lasting: list[tuple[float, Fault]] = field(default_factory=list)
    _bag: list[str] = field(default_factory=list)
    _forbidden: set[str] = field(default_factory=set)

    def strike(self) -> Fault | None:
        """Do the next fault to a worker; None where none is at work that may be hurt. Raises HalaError for silence."""
        if not self._bag:  # each kind once, then again
            self._bag.extend(self.chance.sample(self.kinds, len(self.kinds)))
        place = self.chance.random()
        asleep = {fault.job for _, fault in self.lasting if fault.kind == STOP}
        workers = targets(self.run)
        awake = [target for target in workers if target.job not in asleep]
        if not awake:
            return None
        target = awake[int(place * len(awake))]
        kind = self._bag.pop()
        if kind == STOP and len(asleep & {worker.job for worker in workers}) >= max(1, len(workers) // 2):
            kind = REQUEUE if REQUEUE in self.kinds else KILL if KILL in self.kinds else kind  # somebody has to work
        return self._done(kind, target)

    def _done(self, kind: str, target: Target) -> Fault:
        if kind == DRAIN and not self._drained(target):
            kind = REQUEUE
        fault = self._fault(kind, target)
        if kind == STOP:  # on the list first: whatever comes in between, it is undone
            self._list(fault)
        try:
            if kind in (KILL, STOP):
                commands.run("scancel", f"--signal={kind.upper()}", *target.steps)
            else:
                commands.run("scontrol", "requeue", target.job)
        except HalaError as error:
            return replace(fault, refused=error.message)
        return fault

    def _fault(self, kind: str, target: Target) -> Fault:
        lasts = self.lasts if kind in (STOP, DRAIN) else 0.0
        return Fault(kind, target.job, target.node, round(time.monotonic() - self.began, 1), lasts)

    def _list(self, fault: Fault) -> None:
        self.lasting.append((time.monotonic() + fault.lasts, fault))

    def _drained(self, target: Target) -> bool:
        """Whether we drained a node: not where we may not, nor one that is not plainly at work: that is another's."""
        if DRAIN in self._forbidden or _node(target.node).get("State", "").rstrip("*") not in AT_WORK:
            return False
        self._list(fault := self._fault(DRAIN, target))
        try:
            commands.run("scontrol", "update", f"NodeName={target.node}", "State=DRAIN", f"Reason={REASON}")
        except HalaError as error:
            if commands.is_no(error):  # else it may be drained all the same, which is undone in its time
                self._forbidden.add(DRAIN)
                self.lasting[:] = [(until, lasting) for until, lasting in self.lasting if lasting is not fault]
            return False
        return True

    def undo(self, *, all_: bool = False) -> list[str]:
        """Undo what has lasted long enough, or all; what could not be undone stays listed, and is told a person."""
        problems = []
        for until, fault in list(self.lasting):
            if not all_ and until > time.monotonic():
                continue
            self.lasting.remove((until, fault))
            try:
                _undo(fault)
            except HalaError as error:
                self.lasting.append((time.monotonic() + AGAIN_SECONDS, fault))
                words = f"scontrol update NodeName={fault.node} State=RESUME"
                by_hand = words if fault.kind == DRAIN else f"scancel --signal=CONT {fault.job}"
                problems.append(f"not undone: {fault.kind} of {fault.job}: {error.message}; do: {by_hand}")
        return problems

    def undo_all(self) -> list[str]:
        """Undo all, and try for a while: a controller may be away. What could not be undone."""
        for _ in range(TRIES):
            if not (problems := self.undo(all_=True)):
                break
            time.sleep(AGAIN_SECONDS)
        return problems


def targets(run: Path) -> list[Target]:
    """The tasks of this user at a run that are at work, by name. Raises HalaError where Slurm does not answer."""
    known = set(record.slurm_jobs(run))
    running = {task.job for task in commands.own_tasks() if task.state == "RUNNING"}
    words = ("squeue", "--steps", f"--user={os.getuid()}", "--noheader", "--format=%i|%N")
    steps: dict[str, list[str]] = {}
    nodes = {}
    for name, node in commands.rows(commands.run(*words, seconds=commands.ASK_SECONDS), 2):
        job, _, step = name.rpartition(".")
        if step.isdigit() and job in running and (job in known or job.partition("_")[0] in known):
            steps.setdefault(job, []).append(name)
            nodes[job] = node
    return [Target(job, nodes[job], tuple(steps[job])) for job in sorted(steps)]


def _node(name: str) -> dict[str, str]:
    """What Slurm says of a node; nothing where it does not know it, or it is several."""
    try:
        return allocation.fields(commands.run("scontrol", "show", "node", name, "--oneliner"))
    except HalaError:
        return {}


def _undo(fault: Fault) -> None:
    """Raises HalaError where Slurm refuses, and there is something to undo."""
    if fault.kind == DRAIN:
        node = commands.run("scontrol", "show", "node", fault.node, "--oneliner")
        if allocation.fields(node).get("Reason", "").startswith(REASON):
            commands.run("scontrol", "update", f"NodeName={fault.node}", "State=RESUME")
        return
    try:
        commands.run("scancel", "--signal=CONT", fault.job)
    except HalaError:
        if any(task.may_work for task in commands.states([fault.job])):
            raise


def check(run: Path) -> None:
    """Raises HalaError where there is nothing in Slurm to hurt, or no rows to count."""
    facts = manifest.read(run / "manifest.parquet").facts
    if facts.unit != "rows" or facts.items:
        raise HalaError(
            f"{run.name}: not a run whose shards are rows", "faults are counted in rows: a translation, say"
        )
    if lookup.state_of(run).finished:
        raise HalaError(f"{run.name} is finished: nobody works on it", "start another run to hurt")
    if not record.slurm_jobs(run):
        raise HalaError(f"{run.name} has no workers in Slurm", "only those that Slurm started can be hurt")
    tasks = queue.ask(run)
    if tasks.silence:
        raise HalaError(f"Slurm does not answer ({tasks.silence})", "try again later")
    if not tasks.live:
        raise HalaError(f"{run.name}: none of its workers is in Slurm's queue", f"hala resume {run.name}")


def unleash(
    run: Path,
    seconds: float,
    every: float,
    seed: int,
    kinds: Sequence[str] = tuple(KINDS),
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Fault | str]:
    """A fault ``every`` so many seconds for ``seconds``, or until the run is finished; they are also on its record.

    Yields faults as they are done, and problems as text. Whatever ends it, what lasts is undone.
    """
    lasts = LEASES * frozen.settings(run).lease_seconds
    injector = Injector(run, random.Random(seed), kinds, lasts)
    noted = Ledger(run / "ledger" / f"chaos-{secrets.token_hex(3)}.jsonl", pid=os.getpid(), seed=seed)
    until, due = injector.began + seconds, injector.began + every
    try:
        while not should_stop() and time.monotonic() < until:
            injector.undo()
            if time.monotonic() >= due:
                due += every
                if lookup.state_of(run).finished:
                    return
                try:
                    fault = injector.strike()
                except HalaError as error:
                    yield f"no fault: {error.message}"
                    continue
                if fault is not None:
                    noted.write("fault", **asdict(fault))
                    yield fault
            time.sleep(LOOK_SECONDS)
    finally:
        problems = injector.undo_all()
        noted.write("undone", problems=problems)
        noted.close()
    yield from problems
