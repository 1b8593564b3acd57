"""The loop that tokenizes: each core does a shard, this process claims them, publishes them and tells of them."""

import json
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import cast

from hala_hpc.config.compose import thaw
from hala_hpc.config.errors import HalaError
from hala_hpc.data.arrow import schema as schemas
from hala_hpc.data.chat import templates
from hala_hpc.data.shards import SourceAway
from hala_hpc.run import manifest, partial, publish
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.lease import Heartbeat, Lease
from hala_hpc.tasks.train.prepare import processes
from hala_hpc.tasks.train.prepare import task as prepare
from hala_hpc.tasks.train.prepare.processes import Died, Helper
from hala_hpc.tasks.train.prepare.task import Made
from hala_hpc.worker import registry
from hala_hpc.worker.context import Context, Counters, Outcome
from hala_hpc.worker.patience import PatientFinder

PRELOAD = ("hala_hpc.tasks.train.prepare.loop", "transformers.models.auto.tokenization_auto")
"""Modules that all processes share: imported once."""
PROGRESS_SECONDS = 5.0
"""The ledger tells how far the worker is this often."""
ASK_AGAIN_SECONDS = 5.0
"""After finding nothing to claim, and with shards still at work, look again this much later."""
MOST_FAILURES = 3
"""Different shards in a row that cannot be read: then something is wrong with this node, not with them."""


class PrepareLoop:
    """State of one worker. ``work`` runs until nothing is left or a signal came."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._worker = context.leases.beacon.name
        self._finder = PatientFinder(context)
        self._cores = processes.usable_cores(context.recipe.site.slurm.cpus_per_worker)
        self._idle: list[Helper] = []
        self._at_work: dict[Helper, Lease] = {}
        self._counters = Counters()
        self._unreadable: set[int] = set()
        self._deaths = 0
        self._ask_again = 0.0
        self._told = time.monotonic()
        templates.expect_no_torch()

    def work(self) -> Outcome:
        """Raises whatever is a bug or a broken disk, after giving everything back."""
        with Heartbeat(self._context.leases, lambda: None):
            try:
                while not self._context.should_stop():
                    self._claim()
                    if not self._at_work and not self._wait_for_the_silent():
                        return Outcome.FINISHED
                    self._collect()
                return Outcome.STOPPED
            finally:
                self._end()

    def _claim(self) -> None:
        """Keep all cores busy."""
        while len(self._at_work) < self._cores and time.monotonic() >= self._ask_again:
            if (lease := self._finder.next()) is None:
                self._ask_again = time.monotonic() + ASK_AGAIN_SECONDS
                return
            helper = self._idle.pop() if self._idle else Helper(_start, [self._context.run.path, self._worker], PRELOAD)
            self._at_work[helper] = lease
            self._context.ledger.write("claimed", shard=lease.shard, attempt=lease.attempt)
            try:
                helper.ask(lease.shard)
            except Died as error:
                del self._at_work[helper]
                self._bury(helper, lease, error)

    def _wait_for_the_silent(self) -> bool:
        """Nothing to claim: go, unless a silent worker's shard may soon be ours, or a source may be back."""
        seconds = self._finder.wait_for()
        self._ask_again = 0.0
        if seconds is not None:
            time.sleep(min(seconds, 1.0) + 0.05)
            return True
        self._claim()  # one last look: a shard may have been given back since
        return bool(self._at_work)

    def _collect(self) -> None:
        """Publish what is done within a moment."""
        ready = wait([helper.connection for helper in self._at_work], timeout=0.2)
        for helper in [helper for helper in self._at_work if helper.connection in ready]:
            self._settle(helper)
        if time.monotonic() - self._told >= PROGRESS_SECONDS:
            self._tell()

    def _settle(self, helper: Helper) -> None:
        """Take a process's answer. Raises what is a bug; the shard is then given back with an attempt against it."""
        lease = self._at_work.pop(helper)
        try:
            made = helper.answer()
        except Died as error:
            self._bury(helper, lease, error)
            return
        except Exception as error:  # noqa: BLE001 (_give_up raises what is a bug)
            self._idle.append(helper)
            self._give_up(lease, error)
            return
        self._idle.append(helper)
        if made is None:
            self._give_back(lease)
        else:
            self._publish(lease, made)

    def _publish(self, lease: Lease, made: Made) -> None:
        context = self._context
        won = publish.publish(context.run, lease.shard, self._target(lease))
        self._deaths = 0
        self._unreadable.clear()
        self._finder.reached(lease.shard)
        self._counters["rows"] += made.rows
        self._counters["quarantined"] += made.dropped
        self._counters["prompt_tokens"] += made.tokens
        numbers = {"done": made.rows - made.dropped, "errors": made.dropped, "tokens": made.tokens} if won else {}
        context.ledger.write("published" if won else "lost", shard=lease.shard, attempt=lease.attempt, **numbers)
        partial.drop(context.run, lease.shard)
        context.leases.clear(lease.shard)

    def _give_up(self, lease: Lease, error: Exception) -> None:
        if isinstance(error, SourceAway):
            self._finder.missed(lease, error)
            return
        self._context.ledger.write("failed", shard=lease.shard, attempt=lease.attempt, error=str(error))
        self._context.leases.fail(lease)
        if not isinstance(error, HalaError | OSError):
            raise error
        self._unreadable.add(lease.shard)
        if len(self._unreadable) >= MOST_FAILURES:
            raise HalaError(f"{MOST_FAILURES} shards in a row cannot be prepared: {error}") from error

    def _give_back(self, lease: Lease) -> None:
        self._target(lease).unlink(missing_ok=True)
        self._context.ledger.write("released", shard=lease.shard, attempt=lease.attempt)
        self._context.leases.release(lease)

    def _bury(self, helper: Helper, lease: Lease, error: Died) -> None:
        """A process is dead, and what it was at may have killed it: that shard counts an attempt, no other does."""
        helper.close()
        if self._context.should_stop():  # of the same signal as we: no fault of the shard
            self._give_back(lease)
            return
        self._context.ledger.write("crashed", error=str(error), shards=[lease.shard])
        self._context.leases.fail(lease)
        self._deaths += 1
        if self._deaths > self._context.recipe.run.attempts:  # more than one poisoned shard can cost
            raise error

    def _target(self, lease: Lease) -> Path:
        return partial.temporary_output(self._context.run, lease.shard, self._worker)

    def _tell(self) -> None:
        self._told = time.monotonic()
        at = {str(lease.shard): 0 for lease in self._at_work.values()}
        self._context.ledger.write("progress", **self._counters, working_on=at)

    def _end(self) -> None:
        """Have the processes stop between two rows; publish what is done, give back what is not."""
        for helper in self._at_work:
            helper.stop()
        try:
            for helper in list(self._at_work):
                self._settle(helper)
        finally:
            for lease in self._at_work.values():
                self._context.leases.release(lease)
            for helper in [*self._idle, *self._at_work]:
                helper.close()
            self._at_work.clear()
            self._tell()


def work(context: Context) -> Outcome:
    """The entry that ``worker.job`` calls."""
    return PrepareLoop(context).work()


def _start(run: Path, worker: str) -> processes.Do:
    """In a process of its own, once: read the plan and the tokenizer."""
    recipe = thaw(run / "recipe.yaml", registry.options_of)
    plan = manifest.read(run / "manifest.parquet")
    facts = plan.facts
    directory = RunDirectory(run, facts.suffix)
    tokens = cast(prepare.Prepare, registry.create(recipe)).work_on(run, schemas.load(facts.schema))

    def make(shard: int, should_stop: Callable[[], bool]) -> Made | None:
        made_by = json.dumps(facts.made_by | {"worker": worker, "shard": shard}).encode()
        target = partial.temporary_output(directory, shard, worker)
        return prepare.make(run, plan[shard], facts, tokens, target, made_by, should_stop)

    return make
