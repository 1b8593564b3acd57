"""The loop of a training: one launcher in a job, which starts the ranks on all its nodes and sees them through.

It claims the shard, finishes the preparation of the data, looks at the nodes, starts the ranks, watches them, starts
them again after a crash, and publishes the model. What was done is in the checkpoints, so any other launcher can go on
from there.
"""

import contextlib
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from hala_hpc.config.errors import HalaError, plural
from hala_hpc.data import templates
from hala_hpc.run import status
from hala_hpc.run.files import read_json, write_durably
from hala_hpc.run.ledger import Ledger
from hala_hpc.slurm import allocation as slurm
from hala_hpc.slurm.allocation import STOP_SIGNALS
from hala_hpc.tasks.train import checkpoints, options, paths
from hala_hpc.tasks.train import task as train
from hala_hpc.tasks.train.launch import fitness, signs, stacks, step
from hala_hpc.tasks.train.launch.fitness import Bad
from hala_hpc.tasks.train.launch.signs import DIVERGED, PLANNED, REFUSED, STOPPED, TRAINED, End
from hala_hpc.tasks.train.launch.step import Allocation, Step, allocation
from hala_hpc.tasks.train.options import Options, Watchdog
from hala_hpc.tasks.train.order import index
from hala_hpc.tasks.train.order.packing import Prepared
from hala_hpc.worker.claims import Claim, Claims
from hala_hpc.worker.job import job_name, work_until
from hala_hpc.worker.task import Context, Outcome, say

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


class Watched:
    """The ranks of one launch, from their start to their end."""

    def __init__(self, run: Path, name: str, where: Allocation, watch: Watchdog, ledger: Ledger) -> None:
        self._run, self._name, self._where, self._watch, self._ledger = run, name, where, watch, ledger
        words = ["-u", "-m", "hala_hpc.tasks.train.launch.keepers", "rank", RANK, str(run)]
        self._step: Step = step.start(where, name, words, where.ranks_per_node)
        self._looked = self._since = time.monotonic()
        self._grown = 0
        self._heard: dict[int, tuple[float, float]] = {}  # by rank: time in its heartbeat, and ours when that was new

    def watch(self, should_stop: Callable[[], bool], is_ours: Callable[[], bool], tend: Callable[[], None]) -> Ended:
        """Until all ranks ended, by themselves or because something is wrong with them. ``tend`` is called often."""
        is_asked = is_killed = False
        while (code := self._step.ended()) is None:
            time.sleep(POLL_SECONDS)
            if not is_ours():
                return self._kill(Ended(How.LOST, "another launcher took over"))
            if should_stop() and not is_asked:
                is_asked = True
                self._step.signal(signal.SIGUSR2)
            if time.monotonic() - self._looked < LOOK_SECONDS:
                continue
            tend()
            if (trouble := self._trouble()) is not None:
                return self._hung(*trouble)
            if not is_killed and _crashed(signs.ends_so_far(self._run, self._name)):
                is_killed = True  # srun ends the other ranks too, but not before KillWait is over
                self._step.kill()
        return self._judge(code, should_stop())

    # --- hung -----------------------------------------------------------------------------------------------------

    def _trouble(self) -> tuple[str, dict[int, float]] | None:
        """What looks like a hung training, if it does, and for how many seconds which ranks are silent."""
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

    def _hung(self, what: str, silent: dict[int, float]) -> Ended:
        """Find out who is to blame, leave stacks and word of it, and end all ranks."""
        where = self._where
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
    return [end for end in ends if end.code not in PLANNED and -end.code not in STOP_SIGNALS]


def _failure(run: Path, default: str = "the ranks stopped for good") -> str:
    failure = read_json(run / paths.FAILURE)
    if "reason" not in failure:
        return default
    return f"step {failure['step']}: {failure['reason']}" if "step" in failure else str(failure["reason"])


ASK_AGAIN_SECONDS = 5.0
"""While others finish shards of a preparation that trainings share."""


def work(context: Context) -> Outcome:
    """The entry that ``worker.job`` calls."""
    with Claims(context) as claims:
        for claim in claims.each():
            outcome = Launcher(context, claims, claim).work()
            if outcome is not Outcome.FINISHED:
                return outcome
    return Outcome.STOPPED if context.should_stop() else Outcome.FINISHED


class Launcher:
    """One training, for as long as this process has its lease."""

    def __init__(self, context: Context, claims: Claims, claim: Claim) -> None:
        self._context, self._claims, self._claim = context, claims, claim
        self._run: Path = context.run.path
        self._options: Options = context.recipe.task
        self._launches = 0
        self._restarts = 0
        self._reached = checkpoints.newest_step(self._run / paths.CHECKPOINTS)
        self._leaving: list[str] = []  # nodes that the job is to go on without

    def work(self) -> Outcome:
        """Train, and publish. Raises HalaError where a person has to look."""
        try:
            outcome = self._prepared_and_trained()
        except BaseException as error:
            leases = self._context.leases
            self._claims.end(self._claim, leases.give_up if isinstance(error, HalaError) else leases.fail)
            raise
        if outcome is Outcome.FINISHED:
            return outcome
        self._claims.give_back(self._claim)
        if outcome is Outcome.REQUEUED:
            say(f"back into the queue, without {', '.join(self._leaving)}")
            slurm.requeue_without(job_name(), self._leaving)
        return outcome

    # --- before the ranks start -----------------------------------------------------------------------------------

    def _prepared_and_trained(self) -> Outcome:
        if (self._run / paths.EXPORTED).is_dir():
            return self._publish()
        if not self._prepare():
            return Outcome.STOPPED
        self._build_index()
        where, watch, should_stop = allocation(self._context.recipe), self._options.watch, self._context.should_stop
        (self._run / paths.RANK_LOGS).mkdir(parents=True, exist_ok=True)
        if watch.preflight:
            bad = fitness.check(self._run, self._next_name(), where, watch.slowest, should_stop)
            if bad and self._goes_without(where, bad):
                return Outcome.REQUEUED
        return self._train(where)

    def _prepare(self) -> bool:
        """Finish the data, where the array that was to do it did not. False where a signal came before the end."""
        context = self._context
        for run in train.prepare_runs(self._run, context.recipe):
            settings = context.recipe.run
            while missing := status.missing(run):
                say(f"preparing {run.name}: {plural(len(missing), 'shard')} missing")
                if work_until(run, context.should_stop) is Outcome.STOPPED:
                    return False
                left = status.read(run, settings.lease_seconds, settings.attempts)
                if left.failed:
                    reason = left.errors[-1].get("error", "") if left.errors else ""
                    raise HalaError(f"{run.name}: {plural(left.failed, 'shard')} could not be prepared: {reason}")
                if not left.finished:
                    context.rest(ASK_AGAIN_SECONDS)
        return not context.should_stop()

    def _build_index(self) -> None:
        recipe = self._context.recipe
        config = templates.model_config(recipe.model)
        can_pack = options.can_pack(config, on_gpu=recipe.site.slurm.gpus_per_worker > 0)
        prepared = Prepared(train.prepare_runs(self._run, recipe))
        order = index.build(prepared, self._options, can_pack, self._run / paths.INDEX)
        write_durably(self._run / paths.REPORT, (self._run / paths.INDEX / "report.json").read_bytes())
        say(f"{plural(order.steps, 'step')} of {plural(order.batch, 'sequence')}")

    # --- ranks ----------------------------------------------------------------------------------------------------

    def _train(self, where: Allocation) -> Outcome:
        context, watch = self._context, self._options.watch
        while not context.should_stop():
            self._set_failure_aside()
            name = self._next_name()
            context.ledger.write("launched", launch=name, nodes=where.nodes, ranks=where.world)
            say(f"launch {name}: {plural(where.world, 'rank')} on {', '.join(where.nodes)}")
            ranks = Watched(self._run, name, where, watch, context.ledger)
            ended = ranks.watch(context.should_stop, lambda: not self._claim.lost, self._tend)
            say(f"launch {name} {ended.how.value} {ended.reason}".rstrip())
            self._tend()
            if ended.how is How.TRAINED:
                return self._publish()
            if ended.how is How.FAILED:
                raise HalaError(f"the training stopped for good: {ended.reason}", f"hala logs {context.run.name}")
            if ended.how is How.LOST:
                self._claims.give_back(self._claim, "lost")
                return Outcome.FINISHED
            if ended.how is How.STOPPED:
                break
            if self._after_crash(where, name, ended):
                return Outcome.REQUEUED
        return Outcome.STOPPED

    def _after_crash(self, where: Allocation, name: str, ended: Ended) -> bool:
        """Whether the job has to go on elsewhere; otherwise the ranks may start again here. Raises HalaError."""
        if ended.how is How.CRASHED:
            self._context.ledger.write("crashed", launch=name, error=ended.reason, node=ended.node)
        self._restarts += 1
        if self._restarts > self._options.watch.restarts:
            raise HalaError(
                f"{self._restarts} launches without a new checkpoint, the last: {ended.reason}",
                f"hala logs {self._context.run.name}, then hala resume {self._context.run.name}",
            )
        guilty = ended.node is not None and fitness.faults(self._run).get(ended.node, 0) >= fitness.MOST_FAULTS
        if ended.node is not None and where.job is not None and (guilty or ended.how is How.STUCK):
            bad = [Bad(ended.node, ended.reason, is_slow=ended.how is not How.STUCK)]
            if self._goes_without(where, bad):
                return True
        elif ended.how is How.STUCK:
            raise HalaError(ended.reason)
        self._context.rest(min(2.0**self._restarts, 30.0))
        return False

    def _tend(self) -> None:
        """A new checkpoint: attempts and restarts before it no longer count."""
        if (newest := checkpoints.newest_step(self._run / paths.CHECKPOINTS)) <= self._reached:
            return
        self._reached, self._restarts = newest, 0
        self._claims.renew(self._claim)

    # --- the end --------------------------------------------------------------------------------------------------

    def _publish(self) -> Outcome:
        if self._claims.publish(self._claim, self._run / paths.EXPORTED, time.monotonic(), done=1):
            say(f"finished: {self._context.run.shard_output(self._claim.shard)}")
        return Outcome.FINISHED

    def _goes_without(self, where: Allocation, bad: list[Bad]) -> bool:
        """Whether the job has to go on without these nodes. Raises HalaError where it cannot go on at all."""
        is_leaving = fitness.leave_out(where, bad, self._context.ledger)
        self._leaving = [node.node for node in bad] if is_leaving else []
        return is_leaving

    def _next_name(self) -> str:
        """A name for a launch: unique, since only one launcher has the lease, and in the order of time."""
        self._launches += 1
        return f"{time.strftime('%Y%m%d-%H%M%S')}-{self._context.leases.beacon.name}-{self._launches}"

    def _set_failure_aside(self) -> None:
        """It is of a launch before somebody said `hala resume`."""
        failure = self._run / paths.FAILURE
        with contextlib.suppress(FileNotFoundError):
            failure.rename(failure.with_name(f"failure-{int(failure.stat().st_mtime)}.json"))
