"""What a worker holds: shards are claimed, kept alive by a heartbeat, published or given back, and all of it is noted.

Shards whose source is out of reach are waited for, as an engine is, with no attempt counted against them; and so is the
run's own folder.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hala_hpc.config.errors import HalaError
from hala_hpc.data.shards import SourceAway
from hala_hpc.run import appending, publishing
from hala_hpc.run.endings import ERRONEOUS, SHARDS
from hala_hpc.run.finder import Finder
from hala_hpc.run.lease import BEATS, Heartbeat, Lease
from hala_hpc.run.publishing import Write
from hala_hpc.worker.storage import Storage
from hala_hpc.worker.task import Context

PATIENCE_SECONDS = 600.0
"""A file server that starts again takes minutes; a file that is gone for good should not keep a GPU for hours."""
FIRST_WAIT, LONGEST_WAIT = 2.0, 60.0
"""Seconds before a source is tried again; each time twice as long."""
LOOK_SECONDS, LEAST_PAUSE = 1.0, 0.05
"""Between two looks for work where there was none; each time twice as long, up to a heartbeat, and never two workers
at the same time: at the end of a run there may be a thousand that look."""
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
        self._finder = Finder(context.leases, len(context.plan), seed=context.leases.beacon.name)
        self._held: dict[int, Claim] = {}
        self._lock = threading.Lock()
        self._heartbeat = Heartbeat(context.leases, self._look)
        self.storage = Storage(
            context.run.path,
            context.leases.beacon,
            context.rest,
            lambda said: context.ledger.write("unreachable", error=said),
        )
        self.sources: list[str] = context.plan.column("source")
        self._due: dict[str, float] = {}  # by source that is out of reach: when it is tried again
        self._waits: dict[str, float] = {}
        self._in_a_row = 0
        self._rest_until = 0.0
        self._since: float | None = None
        self._why = ""
        self._pause = LOOK_SECONDS
        self.published = {SHARDS: 0, ERRONEOUS: 0}
        """Sums over what was published, by the words of the ledger."""

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
        began = time.monotonic()
        if (lease := self.storage(lambda: self._finder.next(preferred, avoided=self))) is None:
            if self._rest_until < began:  # shards of what was due are done, by others
                self._due = {source: due for source, due in self._due.items() if due >= began}
            return None
        self._pause = LOOK_SECONDS
        claim = self._held[lease.shard] = Claim(lease)
        return claim

    def wait(self) -> bool:
        """Nothing to claim: wait a moment, where a silent worker's shard or a source may soon be had. False: leave.

        Raises HalaError where a source was away for too long.
        """
        if (seconds := self._seconds_to_wait()) is None:
            return False
        self._context.rest(min(seconds, self._pause) * random.uniform(0.5, 1.0) + LEAST_PAUSE)
        self._pause = min(2 * self._pause, max(LOOK_SECONDS, self._leases.ttl / BEATS))
        return True

    def note(self, event: str, claim: Claim, **fields: Any) -> None:
        """An event of a shard, for the ledger."""
        self._context.ledger.write(event, shard=claim.shard, attempt=claim.lease.attempt, **fields)

    def __contains__(self, shard: object) -> bool:
        """Whether a shard is left alone for now, because its source is out of reach."""
        due = max(self._rest_until, self._due.get(self.sources[shard], 0.0)) if isinstance(shard, int) else 0.0
        return time.monotonic() < due

    def reached(self, claim: Claim) -> None:
        """The shard's source was read."""
        for by_source in (self._due, self._waits):
            by_source.pop(self.sources[claim.shard], None)
        self._in_a_row = 0
        self._since = None

    def missed(self, claim: Claim, error: SourceAway) -> None:
        """Give a shard back whose source is out of reach; the ledger has each source once."""
        now, source = time.monotonic(), self.sources[claim.shard]
        if source not in self._waits:
            self.note("unreachable", claim, error=f"{error}: waited for, no shard counts it")
            self._in_a_row += 1
            if self._in_a_row % MOST_NEW == 0:
                self._rest_until = now + FIRST_WAIT
        self.end(claim, self._leases.release)
        self._since, self._why = self._since or now, str(error)
        self._waits[source] = min(2 * self._waits.get(source, FIRST_WAIT / 2), LONGEST_WAIT)
        self._due[source] = now + self._waits[source]

    def give_back(self, claim: Claim, event: str = "released", **fields: Any) -> None:
        """Let another worker have the shard; COUNTED events count an attempt against it."""
        self.end(claim, self._leases.fail if event in COUNTED else self._leases.release)
        self.note(event, claim, **fields)

    def end(self, claim: Claim, how: Callable[[Lease], None]) -> None:
        """End a claim without a word: by ``release``, ``fail`` or ``give_up`` of the leases."""
        self._held.pop(claim.shard, None)
        self.storage(lambda: how(claim.lease))

    def renew(self, claim: Claim) -> None:
        """The shard got further: attempts before that do not count any more."""

        def renewed() -> None:
            with self._lock:
                claim.lease = self._leases.renew(claim.lease)

        self.storage(renewed)

    def publish(
        self,
        claim: Claim,
        place: Path,
        began: float,
        write: Write | None = None,
        *,
        done: int,
        errors: int = 0,
        **numbers: Any,
    ) -> bool:
        """Give the result at ``place``, which ``write`` may make, its final name; False where another was first.

        What was kept of the shard is no longer needed then, by whomever. ``began``: on the monotonic clock. Raises
        OSError where the storage fails a result that is made already, for only its maker can make it again.
        """
        again = self.storage if write is not None else publishing.once
        won = publishing.publish(self._context.run, claim.shard, place, write, again)
        self._held.pop(claim.shard, None)
        if won:
            seconds = round(time.monotonic() - began, 3)
            sums = {SHARDS: self.published[SHARDS] + 1, ERRONEOUS: self.published[ERRONEOUS] + errors}
            self.published = sums  # at once: another thread may be about to write it down
            self.note("published", claim, done=done, errors=errors, seconds=seconds, **numbers, **sums)
        else:
            self.note("lost", claim, done=done, errors=errors)
        self.storage(lambda: appending.drop(self._context.run, claim.shard))
        self.storage(lambda: self._leases.clear(claim.shard))
        return won

    def _look(self) -> None:
        """In the heartbeat's thread."""
        for claim in list(self._held.values()):
            with self._lock:
                claim.lost = claim.lost or not self._leases.holds(claim.lease)

    def _seconds_to_wait(self) -> float | None:
        """Until a silent worker's shard may be taken, or a source is tried again. None: nothing to wait for."""
        silent = self.storage(self._finder.wait_for)
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
