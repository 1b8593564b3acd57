"""The loop of a training: one launcher in a job, which starts the ranks on all its nodes and sees them through.

It claims the shard, finishes the preparation of the data, looks at the nodes, starts the ranks, starts them again
after a crash, and publishes the model. What was done is in the checkpoints, so any other launcher can go on from there.
"""

import contextlib
import time
from pathlib import Path

from hala_hpc.config.errors import HalaError
from hala_hpc.config.words import plural
from hala_hpc.data.chat import templates
from hala_hpc.run import status
from hala_hpc.run.files import write_durably
from hala_hpc.slurm import allocation as slurm
from hala_hpc.tasks.train import options, paths
from hala_hpc.tasks.train import task as train
from hala_hpc.tasks.train.checkpoint import checkpoints
from hala_hpc.tasks.train.launch import fitness
from hala_hpc.tasks.train.launch.fitness import Bad
from hala_hpc.tasks.train.launch.launcher import Ended, How, Orders, Watched
from hala_hpc.tasks.train.launch.step import Allocation, allocation
from hala_hpc.tasks.train.options import Options
from hala_hpc.tasks.train.order import index
from hala_hpc.tasks.train.order.prepared import Prepared
from hala_hpc.worker.claims import Claim, Claims
from hala_hpc.worker.context import Context, Outcome, say
from hala_hpc.worker.job import job_name, work_until

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
        except HalaError:
            self._claims.end(self._claim, self._context.leases.give_up)
            raise
        except BaseException:
            self._claims.end(self._claim, self._context.leases.fail)
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
        where = allocation(self._context.recipe)
        bad = self._preflight(where) if self._options.watch.preflight else []
        if bad and fitness.leave_out(where, bad, self._context.ledger):
            return self._leave(bad)
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
                    time.sleep(ASK_AGAIN_SECONDS)
        return not context.should_stop()

    def _build_index(self) -> None:
        recipe = self._context.recipe
        config = templates.model_config(recipe.model)
        can_pack = options.can_pack(config, on_gpu=recipe.site.slurm.gpus_per_worker > 0)
        prepared = Prepared(train.prepare_runs(self._run, recipe))
        order = index.build(prepared, self._options, can_pack, self._run / paths.INDEX)
        write_durably(self._run / paths.REPORT, (self._run / paths.INDEX / "report.json").read_bytes())
        say(f"{plural(order.steps, 'step')} of {plural(order.batch, 'sequence')}")

    def _preflight(self, where: Allocation) -> list[Bad]:
        (self._run / paths.RANK_LOGS).mkdir(parents=True, exist_ok=True)
        watch = self._options.watch
        return fitness.check(self._run, self._next_name(), where, watch.slowest, self._context.should_stop)

    # --- ranks ----------------------------------------------------------------------------------------------------

    def _train(self, where: Allocation) -> Outcome:
        context, watch = self._context, self._options.watch
        (self._run / paths.RANK_LOGS).mkdir(parents=True, exist_ok=True)
        orders = Orders(context.should_stop, lambda: not self._claim.lost, self._tend)
        while not context.should_stop():
            self._set_failure_aside()
            name = self._next_name()
            context.ledger.write("launched", launch=name, nodes=where.nodes, ranks=where.world)
            say(f"launch {name}: {plural(where.world, 'rank')} on {', '.join(where.nodes)}")
            ended = Watched(self._run, name, where, watch, context.ledger).watch(orders)
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
            if fitness.leave_out(where, bad, self._context.ledger):
                self._leave(bad)
                return True
        elif ended.how is How.STUCK:
            raise HalaError(ended.reason)
        time.sleep(min(2.0**self._restarts, 30.0))
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

    def _leave(self, bad: list[Bad]) -> Outcome:
        self._leaving = [node.node for node in bad]
        return Outcome.REQUEUED

    def _next_name(self) -> str:
        """A name for a launch: unique, since only one launcher has the lease, and in the order of time."""
        self._launches += 1
        return f"{time.strftime('%Y%m%d-%H%M%S')}-{self._context.leases.beacon.name}-{self._launches}"

    def _set_failure_aside(self) -> None:
        """It is of a launch before somebody said `hala resume`."""
        failure = self._run / paths.FAILURE
        with contextlib.suppress(FileNotFoundError):
            failure.rename(failure.with_name(f"failure-{int(failure.stat().st_mtime)}.json"))
