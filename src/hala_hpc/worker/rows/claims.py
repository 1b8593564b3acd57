"""Claiming shards of rows, and reading them."""

from hala_hpc.config.errors import HalaError
from hala_hpc.data import shards
from hala_hpc.run.lease import Lease
from hala_hpc.worker.context import Context
from hala_hpc.worker.patience import PatientFinder
from hala_hpc.worker.rows.shard import OpenShard

MOST_FAILURES = 3
"""Different shards in a row that cannot even be read: then something is wrong with this node, not with them."""


class Claims:
    """What a worker may still have; used by its disk thread, for it waits for the file server."""

    def __init__(self, context: Context, worker: str) -> None:
        self._context, self._worker = context, worker
        self._finder = PatientFinder(context)
        self._unreadable: set[int] = set()

    def next(self) -> OpenShard | None:
        """Claim a shard and read it. None when there is none to claim. Raises HalaError after too many failures."""
        context = self._context
        while (lease := self._finder.next()) is not None:
            try:
                given = shards.read_input(context.run.path, context.plan[lease.shard], context.plan.facts)
                shard = OpenShard(context.run, lease, given, self._worker)
            except shards.SourceAway as error:
                self._finder.missed(lease, error)
                continue
            except (HalaError, OSError) as error:
                self._give_up(lease, error)
                continue
            self._unreadable.clear()
            self._finder.reached(lease.shard)
            context.ledger.write("claimed", shard=lease.shard, attempt=lease.attempt, taken_up=shard.taken_up)
            return shard
        return None

    def wait_for(self) -> float | None:
        """See ``PatientFinder.wait_for``."""
        return self._finder.wait_for()

    def _give_up(self, lease: Lease, error: Exception) -> None:
        self._context.ledger.write("failed", shard=lease.shard, attempt=lease.attempt, error=str(error))
        self._context.leases.fail(lease)
        self._unreadable.add(lease.shard)
        if len(self._unreadable) >= MOST_FAILURES:
            raise HalaError(f"{MOST_FAILURES} shards in a row cannot be read: {error}") from error
