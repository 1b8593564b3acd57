"""Finds a shard to claim, and knows when there is none, at few directory listings: they are what a file server feels.

A folder is listed for outputs once; what is finished then is never looked for again, unless outputs were taken away
(``lease.REOPENED``). After that a look lists the leases of each unfinished folder, and nothing of the others.
"""

import random
import zlib
from collections.abc import Container, Iterator, Sequence
from typing import Final

from hala_hpc.run import layout
from hala_hpc.run.lease import Held, Lease, Leases, age_of, listed, reopened_at

MOST_WATCHED: Final = 64
"""Leases whose age one worker looks at. With more there are more workers, and each watches others."""
LISTED_AGAIN: Final = 16
"""Shards without a lease of which a folder's outputs are listed again, instead of asking for each output."""


class Finder:
    """Finds a shard to claim: fresh ones first, then those that dead or failing workers left.

    Workers start at different places, so they seldom ask for the same shard, and a poisoned shard comes last.
    """

    def __init__(self, leases: Leases, shards: int, seed: str) -> None:
        self._leases = leases
        self._run = leases.run
        self._shards = shards
        self._seed = seed
        names = layout.folders(shards)
        first = random.Random(seed).randrange(len(names)) if names else 0
        self._all = names[first:] + names[:first]
        self._random = random.Random(seed)
        self._fresh: Iterator[int] = iter(())
        self._left = list(self._all)
        self._unfinished = dict.fromkeys(self._all)  # folders, in our order
        self._open: dict[str, set[int]] = {}  # by folder that was listed: shards that had no output then
        self._reopened: int | None = None  # when outputs were taken away, before our first look
        self._first_seen: dict[int, float] = {}  # by shard: its holder's last heartbeat when we ran out of work
        self._watched: dict[int, float] | None = None  # the same, of the last look

    def next(self, preferred: Sequence[int] = (), avoided: Container[int] = ()) -> Lease | None:
        """Claim a shard, a preferred one where it is free, and none of those to avoid.

        None: all others are finished, set aside, or held by the living.
        """
        if self._reopened is None:
            self._reopened = reopened_at(self._run)
        if lease := self._doubtful() or self._next_of(preferred) or self._next_fresh(avoided) or self._rescan(avoided):
            self._first_seen.clear()
        return lease

    def wait_for(self) -> float | None:
        """Seconds until the first lease goes stale whose worker has had no heartbeat since we have nothing to do.

        None once all have: a live worker needs no help, and a GPU should not idle for it. So a worker leaves one
        heartbeat after the last claim, or takes up what a dead one left: nobody has to resume for the last shards.
        It goes by what ``next`` has just seen; a second call looks anew.
        """
        if self._watched is None:
            self._rescan(avoided=range(self._shards))
        watched, self._watched = self._watched or {}, None
        silent = [
            beat
            for shard, beat in watched.items()
            if beat <= self._first_seen.setdefault(shard, beat) and not self._run.shard_output(shard).exists()
        ]
        if not silent:
            return None
        now = self._leases.now()
        return max(0.0, self._leases.until_stale(now - min(silent), now))

    def _doubtful(self) -> Lease | None:
        """A claim that broke off, made again: it would look as if a living worker had the shard, for it is ours."""
        for shard, attempt in list(self._leases.doubtful.items()):
            if lease := self._leases.claim(shard, attempt):
                return lease
        return None

    def _next_of(self, preferred: Sequence[int]) -> Lease | None:
        """Claim a shard of these that nobody has begun."""
        by_folder: dict[str, list[int]] = {}
        for shard in preferred:
            by_folder.setdefault(layout.folder_of(shard), []).append(shard)
        for folder, shards in by_folder.items():
            held = self._look(folder)
            for shard in shards:
                is_free = held is not None and shard in self._open[folder] and shard not in held
                if is_free and (lease := self._leases.claim(shard)):
                    return lease
        return None

    def _next_fresh(self, avoided: Container[int]) -> Lease | None:
        while True:
            for shard in self._fresh:
                if shard not in avoided and (lease := self._leases.claim(shard)):
                    return lease
            if not self._left:
                return None
            folder = self._left.pop(0)
            held = self._look(folder) or {}
            candidates = sorted(self._open[folder] - held.keys())
            turn = self._random.randrange(len(candidates)) if candidates else 0
            self._fresh = iter(candidates[turn:] + candidates[:turn])

    def _rescan(self, avoided: Container[int]) -> Lease | None:
        """Everything unfinished once more: released shards, then those of stale leases, and then those that failed."""
        self._heed_reopening()
        held, failed = dict[int, list[Held]](), dict[int, list[Held]]()
        for folder in tuple(self._unfinished):
            in_folder = self._look(folder, again=True)
            if in_folder is None:
                continue
            for shard in sorted(self._open[folder]):
                leases = in_folder.get(shard, [])
                if leases:
                    is_failed = max(leases, key=lambda lease: lease.attempt).failed
                    (failed if is_failed else held)[shard] = leases
                elif shard not in avoided and (lease := self._leases.claim(shard)):
                    return lease
        if (lease := self._rescan_held(held, avoided)) is not None:
            return lease
        claims = (self._claim(shard, leases) for shard, leases in failed.items() if shard not in avoided)
        return next(filter(None, claims), None)

    def _rescan_held(self, held: dict[int, list[Held]], avoided: Container[int]) -> Lease | None:
        """Of shards that somebody holds, claim one whose holder is silent; else note when holders were heard of."""
        now, beats = self._leases.now(), dict[int, float]()
        shards = held if len(held) <= MOST_WATCHED else sorted(held, key=self._turn)[:MOST_WATCHED]
        for shard in shards:
            age = age_of(held[shard], now)
            if age is None or self._attempt_after(held[shard]) is None:
                continue
            is_silent = self._leases.until_stale(age, now) < 0
            if is_silent and shard not in avoided and (lease := self._claim(shard, held[shard])):
                return lease
            if not is_silent or shard in avoided:
                beats[shard] = now - age
        self._watched = beats
        return None

    def _look(self, folder: str, *, again: bool = False) -> dict[int, list[Held]] | None:
        """The leases on a folder's shards; None where all of them are finished. ``_open`` then has those that are not.

        ``again``: outputs that came to be since they were listed are looked for where a shard has no lease.
        """
        was_listed = folder in self._open
        if not was_listed:
            self._open[folder] = set(self._ids(folder)) - layout.finished(self._run, folder)
        held = listed(self._run, folder) if self._open[folder] else {}
        if again and was_listed:
            without = self._open[folder] - held.keys()
            if len(without) > LISTED_AGAIN:
                self._open[folder] -= layout.finished(self._run, folder)
            else:
                self._open[folder] -= {shard for shard in without if self._run.shard_output(shard).exists()}
        if not self._open[folder]:
            self._unfinished.pop(folder, None)
            return None
        return held

    def _claim(self, shard: int, held: list[Held]) -> Lease | None:
        """Claim a shard at the attempt after its leases; one that was finished meanwhile is not open any more."""
        if (attempt := self._attempt_after(held)) is None:
            return None
        if held and self._run.shard_output(shard).exists():  # of a worker that died before it had cleared them
            self._open[layout.folder_of(shard)].discard(shard)
            return None
        return self._leases.claim(shard, attempt)

    def _attempt_after(self, held: list[Held]) -> int | None:
        """The attempt at which a shard may be claimed; None when too many failed."""
        last = max((lease.attempt for lease in held), default=0)
        return last + 1 if last < self._leases.attempts else None

    def _heed_reopening(self) -> None:
        if (time := reopened_at(self._run)) != self._reopened:
            self._reopened = time
            self._open.clear()
            self._unfinished = dict.fromkeys(self._all)

    def _turn(self, shard: int) -> int:
        """Which shards are watched, where they are many: others in each worker, the same in each look."""
        return zlib.crc32(f"{self._seed} {shard}".encode())

    def _ids(self, folder: str) -> range:
        first = int(folder) * layout.FAN_OUT
        return range(first, min(first + layout.FAN_OUT, self._shards))
