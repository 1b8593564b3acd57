"""The loop for tasks whose shards are items: one at a time, those of the same model after each other."""

import contextlib
import threading
import time
import traceback
from pathlib import Path
from typing import cast

from hala_hpc.config.errors import HalaError
from hala_hpc.data.shards import SourceAway
from hala_hpc.engines.base import NoEngine
from hala_hpc.run import partial, publish, status
from hala_hpc.run.files import remove_tree
from hala_hpc.run.lease import Heartbeat, Lease
from hala_hpc.worker.context import Context, Counters, Outcome, say
from hala_hpc.worker.items.task import Item, ItemTask, ItemWork, Stopped
from hala_hpc.worker.patience import PatientFinder

MOST_FAILURES = 3
"""Different items in a row that failed in this worker: then the node or the code is at fault, not they."""
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 60.0
"""Seconds before anything else is tried when a file or folder was out of reach; each time twice as long."""


class ItemLoop:
    """State of one worker. ``work`` runs until nothing is left or a signal came."""

    def __init__(self, context: Context, task: ItemTask) -> None:
        self._context, self._task = context, task
        self._worker = context.leases.beacon.name
        self._finder = PatientFinder(context)
        self._sources: list[str] = context.plan.column("source")
        self._source = ""  # of the item done last: its engine is still there
        self._work: ItemWork | None = None
        self._lease: Lease | None = None
        self._lock = threading.Lock()
        self._is_ours = True
        self._counters = Counters()
        self._failing: set[int] = set()
        self._pause = FIRST_PAUSE

    def work(self) -> Outcome:
        """Raises HalaError after too many failures in a row; whatever is begun is given back before."""
        context = self._context
        with Heartbeat(context.leases, self._check_lease):
            try:
                while not context.should_stop():
                    if (lease := self._finder.next(self._alike())) is not None:
                        self._attempt(lease)
                    elif (seconds := self._finder.wait_for()) is not None:
                        time.sleep(min(seconds, 1.0) + 0.05)
                    else:
                        self._close()  # a device is free before anything is put together
                        if not status.missing(context.run.path):
                            self._finish()
                        return Outcome.FINISHED
                return Outcome.STOPPED
            finally:
                self._close()

    def _finish(self) -> None:
        """The last step, by whoever comes to it first; the next worker tries again where it fails."""
        try:
            self._task.finish(self._context.run, self._context.plan)
        except OSError as error:
            raise HalaError(
                f"all items are done, but the whole could not be put together: {error}",
                f"mend that, then `hala resume {self._context.run.name}`",
            ) from error

    def _alike(self) -> list[int]:
        """Shards of the model that is loaded."""
        return [shard for shard, source in enumerate(self._sources) if source == self._source]

    def _attempt(self, lease: Lease) -> None:
        context = self._context
        context.ledger.write("claimed", shard=lease.shard, attempt=lease.attempt)
        with self._lock:
            self._lease, self._is_ours = lease, True
        try:
            self._do(lease)
        except Stopped:
            context.ledger.write("released" if self._is_ours else "lost", shard=lease.shard, attempt=lease.attempt)
            context.leases.release(lease)
        except SourceAway as error:
            self._finder.missed(lease, error)
        except NoEngine as error:
            context.ledger.write("released", shard=lease.shard, attempt=lease.attempt, error=str(error))
            context.leases.release(lease)
            raise
        except Exception as error:  # noqa: BLE001 (another item may well succeed; see MOST_FAILURES)
            self._fail(lease, error)
        except BaseException:
            context.leases.fail(lease)
            raise
        finally:
            with self._lock:
                self._lease = None
            _remove(self._place(lease))

    def _do(self, lease: Lease) -> None:
        context, shard = self._context, self._context.plan[lease.shard]
        kept = partial.kept_folder(context.run, lease.shard)
        kept.mkdir(exist_ok=True)
        _remove(self._place(lease))
        self._tell(lease, "")
        if self._work is None:
            self._work = self._task.open(context.run, context.plan)
        began = time.monotonic()
        asked = items[lease.shard] if (items := context.plan.facts.items) else {}
        place = self._place(lease)
        item = Item(shard, asked, place, kept, self._check_stop, lambda text: self._tell(lease, text), self._worker)
        numbers = self._work.do(item)
        self._source = shard.source
        self._failing.clear()
        self._pause = FIRST_PAUSE
        self._finder.reached(lease.shard)
        won = publish.publish(context.run, lease.shard, item.place)
        self._counters["rows"] += shard.rows
        self._counters["quarantined"] += numbers.get("errors", 0)
        self._counters["prompt_tokens"] += numbers.get("prompt_tokens", 0)
        seconds = round(time.monotonic() - began, 3)
        told = {"done": shard.rows, "errors": 0, "seconds": seconds, **numbers} if won else {}
        context.ledger.write("published" if won else "lost", shard=lease.shard, attempt=lease.attempt, **told)
        partial.drop(context.run, lease.shard)
        context.leases.clear(lease.shard)
        self._tell(None, "")

    def _fail(self, lease: Lease, error: Exception) -> None:
        """Leave the item to another attempt, or to a person where that would change nothing."""
        context = self._context
        say(f"shard {lease.shard} failed:\n{''.join(traceback.format_exception(error))}")
        context.ledger.write(
            "failed", shard=lease.shard, attempt=lease.attempt, error=f"{type(error).__name__}: {error}"[:2_000]
        )
        is_away = _is_away(error, context.plan[lease.shard].source)
        if isinstance(error, HalaError) and not is_away:
            context.leases.give_up(lease)
        else:
            context.leases.fail(lease)
        self._close()
        self._failing.add(lease.shard)
        if len(self._failing) >= MOST_FAILURES:
            raise HalaError(f"{MOST_FAILURES} items in a row failed, the last: {error}") from error
        if is_away:
            until, self._pause = time.monotonic() + self._pause, min(2 * self._pause, LONGEST_PAUSE)
            while time.monotonic() < until and not context.should_stop():
                time.sleep(0.1)

    def _close(self) -> None:
        work, self._work, self._source = self._work, None, ""
        if work is not None:
            work.close()

    def _check_stop(self) -> None:
        if self._context.should_stop() or not self._is_ours:
            raise Stopped

    def _check_lease(self) -> None:
        """In the heartbeat's thread."""
        with self._lock:
            if self._lease is not None and not self._context.leases.holds(self._lease):
                self._is_ours = False

    def _tell(self, lease: Lease | None, doing: str) -> None:
        at = {str(lease.shard): 0} if lease else {}
        self._context.ledger.write("progress", **self._counters, working_on=at, doing=doing)

    def _place(self, lease: Lease) -> Path:
        return partial.temporary_output(self._context.run, lease.shard, self._worker)


def work(context: Context) -> Outcome:
    """The entry that ``worker.job`` calls for every task whose ``loop`` is ``items``."""
    return ItemLoop(context, cast(ItemTask, context.task)).work()


def _is_away(error: BaseException, source: str) -> bool:
    """Whether a file or folder is out of reach, which may pass: no refusal of what the item itself asks for."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return True
        cause = cause.__cause__
    return source.startswith("/") and not Path(source).exists()


def _remove(path: Path) -> None:
    if path.is_dir():
        remove_tree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
