"""What a worker holds: shards are claimed, kept alive by a heartbeat, published or given back, and all of it is noted.

Shards whose source is out of reach are waited for, as an engine is, with no attempt counted against them.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hala_hpc.config.errors import HalaError
from hala_hpc.data.shards import SourceAway
from hala_hpc.run import partial, publish
from hala_hpc.run.lease import Finder, Heartbeat, Lease
from hala_hpc.worker.context import Context

PATIENCE_SECONDS = 600.0
"""A file server that starts again takes minutes; a file that is gone for good should not keep a GPU for hours."""
FIRST_WAIT, LONGEST_WAIT = 2.0, 60.0
"""Seconds before a source is tried again; each time twice as long."""
MOST_NEW = 3
"""Sources in a row that turn out to be away; then nothing is tried for a moment: the file server or this node is it."""
COUNTED = ("failed", "abandoned")
"""Ways of giving a shard back that count an attempt against it."""


class Claim:
    """A shard that is ours, until ``lost`` says that another worker took it over."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.lost = False

    @property
    def shard(self) -> int:
        return self.lease.shard


class Claims:
    """All claims of one worker. Within ``with`` a heartbeat keeps them, and sees which are lost."""

    def __init__(self, context: Context) -> None:
        self._context, self._leases = context, context.leases
        self._finder = _PatientFinder(context)
        self._held: dict[int, Claim] = {}
        self._lock = threading.Lock()
        self._heartbeat = Heartbeat(context.leases, self._look)

    def __enter__(self) -> "Claims":
        self._heartbeat.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._heartbeat.__exit__()

    def each(self, preferred: Callable[[], Sequence[int]] = tuple) -> Iterator[Claim]:
        """One claim after the other, until a signal comes or nothing is left."""
        while not self._context.should_stop():
            if (claim := self.find(preferred())) is not None:
                self.note("claimed", claim)
                yield claim
            elif not self.wait():
                return

    def find(self, preferred: Sequence[int] = ()) -> Claim | None:
        """Claim a shard, a preferred one where it is free; None where there is none to claim now. See ``note``."""
        if (lease := self._finder.next(preferred)) is None:
            return None
        claim = self._held[lease.shard] = Claim(lease)
        return claim

    def wait(self) -> bool:
        """Nothing to claim: wait a moment, where a silent worker's shard or a source may soon be had. False: leave.

        Raises HalaError where a source was away for too long.
        """
        if (seconds := self._finder.wait_for()) is None:
            return False
        time.sleep(min(seconds, 1.0) + 0.05)
        return True

    def note(self, event: str, claim: Claim, **fields: Any) -> None:
        """An event of a shard, for the ledger."""
        self._context.ledger.write(event, shard=claim.shard, attempt=claim.lease.attempt, **fields)

    def reached(self, claim: Claim) -> None:
        """The shard's source was read."""
        self._finder.reached(claim.shard)

    def missed(self, claim: Claim, error: SourceAway) -> None:
        """Give a shard back whose source is out of reach; the ledger has each source once."""
        self._held.pop(claim.shard, None)
        if self._finder.missed(claim.shard, error):
            self.note("unreachable", claim, error=f"{error}: waited for, no shard counts it")
        self._leases.release(claim.lease)

    def give_back(self, claim: Claim, event: str = "released", **fields: Any) -> None:
        """Let another worker have the shard; COUNTED events count an attempt against it."""
        (self.fail if event in COUNTED else self._release)(claim)
        self.note(event, claim, **fields)

    def fail(self, claim: Claim) -> None:
        """Count an attempt against the shard, without a word."""
        self._held.pop(claim.shard, None)
        self._leases.fail(claim.lease)

    def give_up(self, claim: Claim) -> None:
        """Set the shard aside, because another attempt would end the same; without a word."""
        self._held.pop(claim.shard, None)
        self._leases.give_up(claim.lease)

    def renew(self, claim: Claim) -> None:
        """The shard got further: attempts before that do not count any more."""
        with self._lock:
            claim.lease = self._leases.renew(claim.lease)

    def publish(self, claim: Claim, place: Any, began: float, *, done: int, errors: int = 0, **numbers: Any) -> bool:
        """Give the result at ``place`` its final name; False where another worker was first.

        What was kept of the shard is no longer needed then, by whomever. ``began``: on the monotonic clock.
        """
        won = publish.publish(self._context.run, claim.shard, place)
        self._held.pop(claim.shard, None)
        if won:
            seconds = round(time.monotonic() - began, 3)
            self.note("published", claim, done=done, errors=errors, seconds=seconds, **numbers)
        else:
            self.note("lost", claim)
        partial.drop(self._context.run, claim.shard)
        self._leases.clear(claim.shard)
        return won

    def _release(self, claim: Claim) -> None:
        self._held.pop(claim.shard, None)
        self._leases.release(claim.lease)

    def _look(self) -> None:
        """In the heartbeat's thread."""
        for claim in list(self._held.values()):
            with self._lock:
                claim.lost = claim.lost or not self._leases.holds(claim.lease)


class _PatientFinder:
    """A ``Finder`` that leaves shards alone while their source is out of reach. These are ``in`` it."""

    def __init__(self, context: Context) -> None:
        self._run = context.run.name
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

    def next(self, preferred: Sequence[int]) -> Lease | None:
        began = time.monotonic()
        lease = self._finder.next(preferred, avoided=self)
        if lease is None and self._rest_until < began:  # shards of what was due are done, by others
            self._due = {source: due for source, due in self._due.items() if due >= began}
        return lease

    def wait_for(self) -> float | None:
        """Seconds until a silent worker's shard may be taken, or a source is tried again. None: nothing to wait for.

        For a worker that has nothing else to do. Raises HalaError where it has waited for too long.
        """
        silent = self._finder.wait_for()
        if not self._due:
            return silent
        now = time.monotonic()
        self._since = self._since or now
        if now - self._since > PATIENCE_SECONDS:
            raise HalaError(
                f"out of reach for {now - self._since:.0f} seconds: {self._why}",
                f"`hala resume {self._run}` once it is back; no shard counts it",
            )
        due = max(0.0, max(self._rest_until, min(self._due.values())) - now)
        return due if silent is None else min(due, silent)

    def missed(self, shard: int, error: SourceAway) -> bool:
        """Whether the source of this shard was not known to be out of reach."""
        now, source = time.monotonic(), self._sources[shard]
        if is_new := source not in self._waits:
            self._in_a_row += 1
            if self._in_a_row % MOST_NEW == 0:
                self._rest_until = now + FIRST_WAIT
        self._since, self._why = self._since or now, str(error)
        self._waits[source] = min(2 * self._waits.get(source, FIRST_WAIT / 2), LONGEST_WAIT)
        self._due[source] = now + self._waits[source]
        return is_new

    def reached(self, shard: int) -> None:
        for known in (self._due, self._waits):
            known.pop(self._sources[shard], None)
        self._in_a_row = 0
        self._since = None
