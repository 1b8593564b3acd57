"""The run's own folder out of reach: what failed is done again once it is back, and no shard counts an attempt.

A file server that starts again, a quota in which somebody makes room, a mount that comes back: all take minutes. Rows
that are finished meanwhile stay in memory. Where it takes too long, one line says what, where, and what to do.
"""

import errno
import os
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final, TypeVar

from hala_hpc.config.errors import HalaError
from hala_hpc.data.shards import SourceAway
from hala_hpc.run.files import beside, fsync
from hala_hpc.worker.task import say

Result = TypeVar("Result")
PATIENCE_SECONDS = 600.0
"""As for sources (``worker.claims``): then a GPU waits no longer."""
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
"""Seconds before it is tried again; each time twice as long."""
SERVER: Final = "see whether the file system of the run answers (`df`, `ls`), and tell the site"
CURES: Final = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some of your quota, or have more",
    errno.EROFS: "the file system was mounted read-only, as after a fault of its disk: tell the site",
} | dict.fromkeys(
    (
        errno.EIO,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ECONNREFUSED,
        errno.ECONNABORTED,
        errno.ECONNRESET,
        errno.ENOTCONN,
        errno.ESHUTDOWN,
        errno.EREMOTEIO,
        errno.ENODEV,
        errno.ENXIO,
    ),
    SERVER,
)
"""What to do, by the error: those of a file system as a whole, which may pass."""


FULL: Final = frozenset((errno.ENOSPC, errno.EDQUOT))
"""A file system that has no room for what was written, and yet takes a few bytes: only the write itself shows it."""


class StorageAway(HalaError):
    """The storage of the run was away for too long."""


def fault_of(error: BaseException, run: Path) -> OSError | None:
    """What the storage of a run said, where it is at fault; None for a fault of a row, or of somebody else's file."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, SourceAway):
        if isinstance(cause, OSError) and cause.errno in CURES:
            name = cause.filename
            return cause if not isinstance(name, str) or Path(name).is_relative_to(run) else None
        cause = cause.__cause__
    return None


def refusal(run: Path, error: OSError, seconds: float | None = None) -> StorageAway:
    """One line for a person. ``seconds``: it was waited for so long."""
    where = f" ({error.filename})" if isinstance(error.filename, str) else ""
    reason = (os.strerror(error.errno) if error.errno else str(error)).lower()
    waited = "" if seconds is None else f", for {seconds:.0f} seconds"
    hint = f"{CURES.get(error.errno or 0, SERVER)}; then `hala resume {run.name}`: no shard counts it"
    return StorageAway(f"{run}: {reason}{where}{waited}", hint)


class Storage:
    """The storage of one worker's run. Called with what to do, from any thread.

    ``beacon``: a name beside which a try to write may stand. ``rest``: as ``Context.rest``. ``note`` gets what is said
    of an outage, once, for the ledger.
    """

    def __init__(self, run: Path, beacon: Path, rest: Callable[[float], bool], note: Callable[[str], None]) -> None:
        self._run, self._beacon, self._rest, self._note = run, beacon, rest, note
        self._lock = threading.Lock()
        self._since: float | None = None  # when it began to fail
        self._is_given_up = False

    def __call__(self, do: Callable[[], Result], only: Collection[int] = CURES.keys()) -> Result:
        """Do it, and again as long as the storage is away. ``only``: errors that are waited for; others are raised.

        Raises StorageAway where that is too long, or a stop was asked for, and from then on at once.
        """
        wait = FIRST_WAIT
        while True:
            try:
                result = do()
            except (OSError, HalaError) as error:
                if isinstance(error, StorageAway) or (fault := fault_of(error, self._run)) is None:
                    raise
                if fault.errno not in only:
                    raise
                self.after(fault, wait)
                wait = min(2 * wait, LONGEST_WAIT)
            else:
                self.back()
                return result

    def wait(self, error: OSError) -> None:
        """Until it can be written to again. Raises StorageAway as above."""
        self.after(error, FIRST_WAIT)
        self(self._try_to_write)

    def _try_to_write(self) -> None:
        probe = beside(self._beacon)
        try:
            probe.write_bytes(b"hala")
            fsync(probe)
        finally:
            probe.unlink(missing_ok=True)

    def after(self, error: OSError, seconds: float) -> None:
        """Wait for so long before it is tried again. Raises StorageAway as above."""
        now = time.monotonic()
        with self._lock:
            is_news, since = self._since is None, self._since or now
            self._since = since
            refused = refusal(self._run, error, now - since)
            if self._is_given_up or now - since > PATIENCE_SECONDS:
                self._is_given_up = True
                raise refused from error
        if is_news:
            said = f"{refusal(self._run, error).message}: waited for, no shard counts it"
            say(said)
            self._note(said)
        if not self._rest(seconds):
            self._is_given_up = True
            raise refused from error

    def back(self) -> None:
        """It was done: from now on an outage is another one."""
        if self._since is None:
            return
        with self._lock:
            since, self._since = self._since, None
        if since is not None:
            say(f"{self._run}: back after {time.monotonic() - since:.0f} seconds")
