"""Who is at which shard.

Each worker has one *beacon* file, ``leases/workers/<worker>``, that its heartbeat touches. A lease is a hard link to
the beacon, ``leases/<folder>/<shard>.<attempt>``: made by an atomic link, so only one worker gets it, and kept alive
by the beacon, so a heartbeat costs one touch however many shards are held. A lease whose beacon was not touched for
``ttl`` seconds, by the file server's clock, is stale; whoever links the next attempt takes the shard over. Attempts
only count up while a shard is unfinished, so nobody ever has to remove another's lease, and a worker that slept
through its own funeral sees the higher number. Even if it does not look, publishing (see ``publish``) lets one
worker win.
"""

import contextlib
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hala_hpc.config.errors import HalaError
from hala_hpc.run import layout
from hala_hpc.run.files import link, make_again, rename, touched_now
from hala_hpc.run.layout import RunDirectory

FAILED = ".failed"
"""Suffix of a lease whose worker gave the shard up with an error: it counts as an attempt and blocks nobody."""
_LEASE = re.compile(r"([0-9]{6,})\.([0-9]+)(\.failed)?")
BEATS = 6
"""Heartbeats per lease time."""
LAST, START, END, COLLECT = "last", "start", "end", "collect"
"""Folders of the leases on what is done by one at a time: the last step of a run, which makes one thing of all shards;
starting its workers, and cancelling them; saying that it has come to its end; collecting its rows for other runs."""
AT = {START: "starts or cancels its workers", END: "announces its end", COLLECT: "collects its rows"}
"""What whoever has such a lease does."""
ALONE_SECONDS = 0.3
"""Between two looks whether what is done by one at a time is free."""
REOPENED = "reopened"
"""File in ``leases/`` that is touched when outputs are taken away, so that workers look again where all was done."""


@dataclass(frozen=True)
class Lease:
    """The right to work on a shard, as long as ``Leases.holds`` says so."""

    shard: int
    attempt: int
    path: Path


@dataclass(frozen=True)
class Held:
    """One lease file as seen in a listing."""

    attempt: int
    failed: bool
    path: Path


class Leases:
    """The leases of one worker: claims, keeps and gives back."""

    def __init__(self, run: RunDirectory, worker: str, ttl: float, attempts: int, *, of_dead: bool = False) -> None:
        """``of_dead``: give back what another worker held that is known to be dead, instead of waiting for it."""
        self.run = run
        self.ttl = ttl
        self.attempts = attempts
        self.beacon = run.workers / worker
        began = time.monotonic()
        make_again(self.beacon.parent)
        self.beacon.touch(exist_ok=of_dead)
        about = self.beacon.stat()
        self._inode = about.st_ino
        self._beaten = about.st_mtime  # when our last heartbeat was, by the file server's clock
        self._back = about.st_mtime if time.monotonic() - began > ttl / 2 else -math.inf  # our last after a silence
        self.doubtful: dict[int, int] = {}
        """Attempts by shard of claims that broke off: they may be ours all the same."""
        self.given_up: set[int] = set()
        """Shards that this worker was the last to fail at: they are set aside until `hala resume`."""

    def claim(self, shard: int, attempt: int = 1) -> Lease | None:
        """Take the shard at this attempt; None where somebody else did or it is finished."""
        path = self.run.lease_folder(shard) / f"{shard:06d}.{attempt}"
        self.doubtful[shard] = attempt
        lease = self._checked(Lease(shard, attempt, path)) if self._link(path) else None
        del self.doubtful[shard]
        return lease

    def _checked(self, lease: Lease) -> Lease | None:
        # Looked at again after the lease is taken: since it was listed, which may be hours ago, the shard may have been
        # finished, or this attempt failed and others gone beyond it.
        if self.run.shard_output(lease.shard).exists() or not self.holds(lease):
            self.release(lease)
            return None
        return lease

    def holds(self, lease: Lease) -> bool:
        """False once another worker took the shard over, whatever became of it there."""
        later = range(lease.attempt + 1, self.attempts + 1)
        names = [f"{lease.shard:06d}.{attempt}" for attempt in later]
        beyond = [*names, *(f"{lease.shard:06d}.{attempt}{FAILED}" for attempt in (lease.attempt, *later))]
        return self._is_ours(lease.path) and not any(lease.path.with_name(name).exists() for name in beyond)

    def release(self, lease: Lease) -> None:
        """Give the shard back unfinished, without counting an attempt against it."""
        if self._is_ours(lease.path):
            lease.path.unlink(missing_ok=True)

    def fail(self, lease: Lease) -> None:
        """Give the shard back with an attempt counted against it."""
        if self._is_ours(lease.path):
            with contextlib.suppress(FileNotFoundError):  # somebody removed ``leases/`` this moment
                rename(lease.path, lease.path.with_name(lease.path.name + FAILED))
            if lease.attempt >= self.attempts:
                self.given_up.add(lease.shard)

    def give_up(self, lease: Lease) -> None:
        """Set the shard aside, because another attempt would end the same: only `hala resume` takes it up again.

        Attempt by attempt: the next is free as long as nobody has taken the shard over, and who did has to see himself.
        """
        while lease.attempt < self.attempts:
            following = self.claim(lease.shard, lease.attempt + 1)
            self.release(lease)
            if following is None:
                return
            lease = following
        self.fail(lease)

    def renew(self, lease: Lease) -> Lease:
        """Count attempts anew, because the shard got further since: only those without progress are to count.

        At every moment one of our two links is the highest attempt, so nobody else can take the shard meanwhile.
        """
        first = lease.path.with_name(f"{lease.shard:06d}.1")
        if lease.attempt == 1:
            return lease
        if not self._is_ours(first):  # else it is by a try whose answer was lost
            if not self.holds(lease):
                return lease
            for held in listed(self.run, layout.folder_of(lease.shard)).get(lease.shard, []):
                if held.attempt < lease.attempt:
                    held.path.unlink(missing_ok=True)
            if not self._link(first):  # of a worker with an old listing, which sees our attempt and takes it back
                return lease
        self.release(lease)
        return Lease(lease.shard, 1, first)

    def claim_alone(self, what: str = LAST) -> Lease | None:
        """Take the last step of the run, START or END; None while another has it that may be alive."""
        held = listed(self.run, what).get(0, [])
        age = age_of(held, self.now())
        if age is not None and age <= self.ttl:
            return None
        attempt = max((lease.attempt for lease in held), default=0) + 1
        lease = Lease(0, attempt, self.run.leases / what / f"{0:06d}.{attempt}")
        return lease if self._link(lease.path) else None

    def clear_alone(self, what: str = LAST) -> None:
        """Drop all leases on the last step, START or END, also those of the dead: it is done."""
        for held in listed(self.run, what).get(0, []):
            held.path.unlink(missing_ok=True)

    def holds_alone(self, lease: Lease) -> bool:
        """Whether what ``claim_alone`` gave is still ours: nobody took us for dead."""
        later = listed(self.run, lease.path.parent.name).get(0, [])
        return self._is_ours(lease.path) and all(held.attempt <= lease.attempt for held in later)

    def last_beat(self) -> float:
        """When whoever has the last step had a heartbeat, by the file server's clock."""
        now = self.now()
        return now - (age_of(listed(self.run, LAST).get(0, []), now) or 0.0)

    def clear(self, shard: int) -> None:
        """Drop all leases of a finished shard, also those of dead workers."""
        for held in listed(self.run, layout.folder_of(shard)).get(shard, []):
            held.path.unlink(missing_ok=True)

    def held(self) -> list[Lease]:
        """Leases of this worker on unfinished shards, as they stand on the disk."""
        return [
            Lease(shard, item.attempt, item.path)
            for folder in layout.listing(self.run.leases)
            for shard, leases in unfinished(self.run, folder).items()
            for item in leases
            if not item.failed and self._is_ours(item.path)
        ]

    def now(self) -> float:
        """The file server's time; touching the beacon for it is a heartbeat as well."""
        try:
            now = touched_now(self.beacon)
        except FileNotFoundError:
            self._light_again()
            now = touched_now(self.beacon)
        if now - self._beaten > self.ttl / 2:
            self._back = now
        self._beaten = now
        return now

    def until_stale(self, age: float, now: float) -> float:
        """Seconds until a holder whose heartbeat has this age is dead to us; below 0 where it is already.

        If we had no heartbeat ourselves, a file server that hung may have kept everybody from it: others get the lease
        time anew before they are judged, for until then our client may believe what it has cached of them.
        """
        return max(self.ttl - age, self._back + self.ttl - now)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # one that stays grows old
            self.beacon.unlink()

    def _link(self, path: Path) -> bool:
        """False where the lease is taken."""
        try:
            return link(self.beacon, path)
        except FileNotFoundError:
            make_again(path.parent)
            if not self.beacon.exists():
                self._light_again()
            return link(self.beacon, path)

    def _light_again(self) -> None:
        """Somebody removed ``leases/``: go on with a new beacon. What we held is lost to us, as to everybody."""
        make_again(self.beacon.parent)
        self.beacon.touch()
        self._inode = self.beacon.stat().st_ino

    def _is_ours(self, path: Path) -> bool:
        try:
            return path.stat().st_ino == self._inode
        except FileNotFoundError:
            return False


class Heartbeat:
    """Touches the beacon from a thread.

    A stopped or frozen process stops beating, as it should; ``on_beat`` runs after each touch, in the thread.
    """

    def __init__(self, leases: Leases, on_beat: Callable[[], None]) -> None:
        self._leases = leases
        self._on_beat = on_beat
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=self._leases.ttl)

    def _beat(self) -> None:
        while not self._stop.wait(self._leases.ttl / BEATS):
            # A file server that is away for a moment must not end the heartbeat for good.
            with contextlib.suppress(OSError):
                self._leases.now()
                self._on_beat()


@contextlib.contextmanager
def alone(run: Path, what: str, who: str, ttl: float, patience: float) -> Iterator[Callable[[], bool]]:
    """Be the only one at START, END or COLLECT of a run or a grid; what is yielded says whether we still are.

    Raises HalaError where another is for longer than ``patience`` seconds, or cannot be known to be dead.
    """
    leases = Leases(RunDirectory(run), who, ttl, 1)
    try:
        deadline = time.monotonic() + patience
        while (lease := leases.claim_alone(what)) is None:
            if time.monotonic() > deadline:
                raise HalaError(f"{run.name}: another {AT[what]} right now", "try again in a minute")
            time.sleep(ALONE_SECONDS)
        try:
            with Heartbeat(leases, lambda: None):
                yield lambda: leases.holds_alone(lease)
        finally:
            if leases.holds_alone(lease):
                leases.clear_alone(what)
    finally:
        leases.close()


def outdate(run: RunDirectory, worker: str, ttl: float) -> None:
    """Have a worker's leases be stale at once, for it is known to be dead. If it lives, its next heartbeat undoes that.

    Another user's beacon stays as it is, and grows old.
    """
    beacon = run.workers / worker
    with contextlib.suppress(OSError):
        last = beacon.stat().st_mtime
        os.utime(beacon, (last - ttl, last - ttl))


def reopen(run: RunDirectory) -> None:
    """Have workers forget which folders are finished, since outputs in them are taken away."""
    make_again(run.workers)
    (run.leases / REOPENED).touch()


def reopened_at(run: RunDirectory) -> int:
    """When outputs were last taken away, in nanoseconds by the file server's clock; 0 where they never were."""
    try:
        return (run.leases / REOPENED).stat().st_mtime_ns
    except (FileNotFoundError, NotADirectoryError):
        return 0


def listed(run: RunDirectory, folder: str) -> dict[int, list[Held]]:
    """All lease files of one fan-out folder, by shard; names that are not ours are passed over."""
    by_shard: dict[int, list[Held]] = {}
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(run.leases / folder) as entries:
        for entry in entries:
            if (name := _LEASE.fullmatch(entry.name)) is not None and entry.is_file():
                held = Held(int(name[2]), name[3] is not None, Path(entry.path))
                by_shard.setdefault(int(name[1]), []).append(held)
    return by_shard


def unfinished(run: RunDirectory, folder: str) -> dict[int, list[Held]]:
    """Leases of shards that are not finished, in one fan-out folder."""
    held = listed(run, folder)  # before the outputs: a shard finished in between is then seen as finished
    done = layout.finished(run, folder)
    return {shard: leases for shard, leases in held.items() if shard not in done}


def age_of(held: list[Held], now: float) -> float | None:
    """Seconds since the holder's last heartbeat; None where nobody holds the shard."""
    if not held or (last := max(held, key=lambda lease: lease.attempt)).failed:
        return None
    try:
        return now - last.path.stat().st_mtime
    except FileNotFoundError:
        return 0.0  # given back or finished this moment: somebody is at it
