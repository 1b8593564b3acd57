"""One start of all ranks of a training, watched to its end."""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from hala_hpc.run.ledger import Ledger
from hala_hpc.tasks.train import paths
from hala_hpc.tasks.train.launch import signs, stacks, step
from hala_hpc.tasks.train.launch.place import DIVERGED, PLANNED, REFUSED, SIGNALS, STOPPED, TRAINED
from hala_hpc.tasks.train.launch.signs import End
from hala_hpc.tasks.train.launch.step import Allocation, Step
from hala_hpc.tasks.train.options import Watch
from hala_hpc.worker.context import say

RANK: Final = "hala_hpc.tasks.train.rank"
"""The program that each rank runs."""
POLL_SECONDS = 0.5
LOOK_SECONDS = 2.0
"""How often heartbeats are read."""
SLEPT_SECONDS = 15.0
"""Between two looks: then nothing can be said about the time between."""
STACKS_SECONDS = 60.0
BLAMED: Final = (signal.SIGBUS, signal.SIGKILL, signal.SIGSEGV)
"""Ends of a rank that speak against its node: memory, a driver."""


class How(Enum):
    """How a launch ended."""

    TRAINED = "trained"
    STOPPED = "stopped"  # on request; there is a checkpoint, or there was no time for one
    FAILED = "failed"  # for good
    CRASHED = "crashed"  # to go on from the last checkpoint
    HUNG = "hung"  # crashed in this way; stacks and the culprit are on record
    STUCK = "stuck"  # hung, and a process is left that no signal ends
    LOST = "lost"  # another launcher took the training over


@dataclass(frozen=True)
class Ended:
    """``node`` is the one at fault, where one is."""

    how: How
    reason: str = ""
    node: str | None = None


@dataclass(frozen=True)
class Orders:
    """What is called while the ranks are watched."""

    should_stop: Callable[[], bool]
    is_ours: Callable[[], bool]
    tend: Callable[[], None]  # now and then


Trouble = tuple[str, dict[int, float]]
"""What is wrong, and the ranks that are silent, with for how many seconds."""


class Watched:
    """The ranks of one launch, from their start to their end."""

    def __init__(self, run: Path, name: str, where: Allocation, watch: Watch, ledger: Ledger) -> None:
        self._run, self._name, self._where, self._watch, self._ledger = run, name, where, watch, ledger
        words = ["-u", "-m", "hala_hpc.tasks.train.launch.keepers", "rank", RANK, str(run)]
        self._step: Step = step.start(where, name, words, where.ranks_per_node)
        self._looked = self._since = time.monotonic()
        self._grown = 0
        self._heard: dict[int, tuple[float, float]] = {}  # by rank: time in its heartbeat, and ours when that was new

    def watch(self, orders: Orders) -> Ended:
        """Until all ranks ended, by themselves or because something is wrong with them."""
        is_asked = is_killed = False
        while (code := self._step.ended()) is None:
            time.sleep(POLL_SECONDS)
            if not orders.is_ours():
                return self._kill(Ended(How.LOST, "another launcher took over"))
            if orders.should_stop() and not is_asked:
                is_asked = True
                self._step.signal(signal.SIGUSR2)
            if time.monotonic() - self._looked < LOOK_SECONDS:
                continue
            orders.tend()
            if (trouble := self._trouble()) is not None:
                return self._hung(trouble)
            if not is_killed and _crashed(signs.ends_so_far(self._run, self._name)):
                is_killed = True  # srun ends the other ranks too, but not before KillWait is over
                self._step.kill()
        return self._judge(code, orders.should_stop())

    # --- hung -----------------------------------------------------------------------------------------------------

    def _trouble(self) -> Trouble | None:
        """What looks like a hung training, if it does."""
        now, before = time.monotonic(), self._looked
        self._looked = now
        if now - before > SLEPT_SECONDS:  # it is we who slept: a suspended job, a file server that was away
            self._since, self._heard = now, {rank: (sent, now) for rank, (sent, _) in self._heard.items()}
        heartbeats = signs.heartbeats(self._run, self._name)
        for rank, heartbeat in heartbeats.items():
            if rank not in self._heard or self._heard[rank][0] != heartbeat.time:
                self._heard[rank] = (heartbeat.time, now)
        if (grown := signs.steps_ended(self._run, self._name)) != self._grown:
            self._grown, self._since = grown, now
        quiet = {rank: now - at for rank, (_, at) in self._heard.items()}
        # A file server that is away makes all ranks quiet: only one that is more so than others is at fault.
        silent = {r: s for r, s in quiet.items() if s - min(quiet.values()) > self._watch.stall_seconds}
        if silent:
            return f"no heartbeat of rank {max(silent, key=lambda r: silent[r])}", silent
        latest = signs.step_seconds(self._run, self._name)
        patience = signs.patience(self._watch, latest, [heartbeat.phase for heartbeat in heartbeats.values()])
        if now - self._since > patience:
            return f"no step has ended for {now - self._since:.0f} s", silent
        return None

    def _hung(self, trouble: Trouble) -> Ended:
        """Find out who is to blame, leave stacks and word of it, and end all ranks."""
        (what, silent), where = trouble, self._where
        words = ["-m", "hala_hpc.tasks.train.launch.stacks", str(self._run)]
        log = self._run / paths.RANK_LOGS / f"{self._name}.stacks.log"
        step.finish(step.start(where, self._name, words, 1, log), STACKS_SECONDS)
        seen = [rank for node in range(len(where.nodes)) for rank in stacks.read(self._run, self._name, node)]
        rank, why = stacks.culprit(seen, silent, where.world)
        node = where.node_of(rank) if rank is not None else None
        reason = f"{what}; rank {rank} on {node}: {why}" if rank is not None else f"{what}; {why}"
        self._ledger.write("stalled", launch=self._name, rank=rank, node=node, error=reason)
        say(f"the training hangs: {reason}; stacks: {self._run / paths.STACKS / self._name}-*.txt")
        return self._kill(Ended(How.HUNG, reason, node))

    def _kill(self, ended: Ended) -> Ended:
        self._step.kill()
        if step.finish(self._step, step.KILL_SECONDS) is None:
            return Ended(How.STUCK, f"{ended.reason}; a process could not be ended", ended.node)
        return ended

    # --- ended ----------------------------------------------------------------------------------------------------

    def _judge(self, code: int, should_stop: bool) -> Ended:
        where, run = self._where, self._run
        ends = signs.ends(run, self._name, where.world) if code == 0 else signs.ends_so_far(run, self._name)
        codes = [end.code for end in ends]
        if DIVERGED in codes:
            return Ended(How.FAILED, _failure(run))
        if codes == [TRAINED] * where.world:
            return Ended(How.TRAINED)
        if should_stop:
            return Ended(How.STOPPED)
        if codes and codes[0] == REFUSED:
            return Ended(How.FAILED, _failure(run, "a rank refused to start: see the log"))
        if not (first := next(iter(_crashed(ends)), None)):
            if STOPPED in codes:  # before the end of the job, or by a signal that we did not get
                return Ended(How.STOPPED)
            return Ended(How.CRASHED, f"the ranks' step ended with exit code {code}")
        node = where.node_of(first.rank)
        how = f"was ended by {signal.Signals(-first.code).name}" if first.code < 0 else f"ended with {first.code}"
        if error := signs.error_of(run, self._name, first.rank):
            how += f" ({error})"
        log = "the run's log" if first.rank == 0 else f"{paths.RANK_LOGS}/{self._name}.{first.rank}.log"
        return Ended(
            How.CRASHED, f"rank {first.rank} on {node} {how}; see {log}", node if -first.code in BLAMED else None
        )


def _crashed(ends: list[End]) -> list[End]:
    """Ranks that ended the others: srun sends SIGTERM to the rest when one crashes: those did not crash."""
    return [end for end in ends if end.code not in PLANNED and -end.code not in SIGNALS]


def _failure(run: Path, default: str = "the ranks stopped for good") -> str:
    failure = paths.read_json(run / paths.FAILURE) or {}
    if "reason" not in failure:
        return default
    return f"step {failure['step']}: {failure['reason']}" if "step" in failure else str(failure["reason"])
