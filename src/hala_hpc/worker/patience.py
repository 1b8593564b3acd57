"""Sources that are out of reach for a while: waited for, as an engine is, with no attempt counted against a shard."""

import time
from collections.abc import Sequence

from hala_hpc.config.errors import HalaError
from hala_hpc.data.shards import SourceAway
from hala_hpc.run.lease import Finder, Lease
from hala_hpc.worker.context import Context

PATIENCE_SECONDS = 600.0
"""A file server that starts again takes minutes; a file that is gone for good should not keep a GPU for hours."""
FIRST_WAIT, LONGEST_WAIT = 2.0, 60.0
"""Seconds before a source is tried again; each time twice as long."""
MOST_NEW = 3
"""Sources in a row found to be away: then nothing is tried for a moment, for it is the file server or this node."""


class PatientFinder:
    """A ``Finder`` that leaves shards alone while their source is out of reach. These are ``in`` it."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._finder = Finder(context.leases, len(context.plan), seed=context.leases.beacon.name)
        self._sources: list[str] = context.plan.column("source")
        self._due: dict[str, float] = {}  # by source that is out of reach: when it is tried again
        self._waits: dict[str, float] = {}
        self._in_a_row = 0
        self._rest_until = 0.0
        self._since: float | None = None
        self._why = ""

    def __contains__(self, shard: object) -> bool:
        due = max(self._rest_until, self._due.get(self._sources[shard], 0.0)) if isinstance(shard, int) else 0.0
        return time.monotonic() < due

    def next(self, preferred: Sequence[int] = ()) -> Lease | None:
        """Claim a shard, a preferred one where it is free; None where there is none to claim now."""
        began = time.monotonic()
        lease = self._finder.next(preferred, avoided=self)
        if lease is None and self._rest_until < began:  # shards of what was due are done, by others
            self._due = {source: due for source, due in self._due.items() if due >= began}
        return lease

    def wait_for(self) -> float | None:
        """Seconds until a silent worker's shard may be taken, or a source is tried again. None: nothing to wait for.

        To be asked by a worker that has nothing else to do. Raises HalaError where it has waited for too long.
        """
        silent = self._finder.wait_for()
        if not self._due:
            return silent
        now = time.monotonic()
        self._since = self._since or now
        if now - self._since > PATIENCE_SECONDS:
            raise HalaError(
                f"out of reach for {now - self._since:.0f} seconds: {self._why}",
                f"`hala resume {self._context.run.name}` once it is back; no shard counts it",
            )
        due = max(0.0, max(self._rest_until, min(self._due.values())) - now)
        return due if silent is None else min(due, silent)

    def missed(self, lease: Lease, error: SourceAway) -> None:
        """Give a shard back whose source is out of reach; the ledger tells of each source once."""
        now, source = time.monotonic(), self._sources[lease.shard]
        if source not in self._waits:
            told = f"{error}: waited for, no shard counts it"
            self._context.ledger.write("unreachable", shard=lease.shard, attempt=lease.attempt, error=told)
            self._in_a_row += 1
            if self._in_a_row % MOST_NEW == 0:
                self._rest_until = now + FIRST_WAIT
        self._context.leases.release(lease)
        self._since, self._why = self._since or now, str(error)
        self._waits[source] = min(2 * self._waits.get(source, FIRST_WAIT / 2), LONGEST_WAIT)
        self._due[source] = now + self._waits[source]

    def reached(self, shard: int) -> None:
        """A shard was read."""
        for known in (self._due, self._waits):
            known.pop(self._sources[shard], None)
        self._in_a_row = 0
        self._since = None
