"""Tasks whose shards are items, such as a file to quantize or a benchmark of a model, and the loop that does them.

A worker does one item at a time, those of the same model after each other.
"""

import hashlib
import json
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol, cast

from hala_hpc.config.errors import HalaError
from hala_hpc.data.cut import Cut
from hala_hpc.data.shards import SourceAway
from hala_hpc.engines.base import NoEngine
from hala_hpc.run import appending, status
from hala_hpc.run.files import make_folders, meant_by, remove
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.manifest import Facts, Manifest, Shard, Unit
from hala_hpc.worker.claims import Claim, Claims
from hala_hpc.worker.storage import FULL, StorageAway, fault_of
from hala_hpc.worker.task import ITEMS, Context, Counters, Outcome, Task, say


class Stopped(Exception):
    """The worker was asked to stop, or its shard was taken over: what the item has kept in ``kept`` stays."""


@dataclass(frozen=True)
class Item:
    """One shard as it is handed to an ``ItemWork``.

    ``entry`` is the shard's entry of ``Facts.items``. The result goes to ``place``, which does not exist yet: a file,
    or a folder where the task's suffix is ''. ``kept`` is a folder of this shard alone, which the next attempt finds
    again (on any node): for what is worth keeping when a worker dies. ``check_stop`` raises Stopped; to be called at
    least every half minute. ``tell`` says how far the item is, for ``hala status``. ``worker`` is who does it.
    """

    shard: Shard
    entry: dict[str, Any]
    place: Path
    kept: Path
    check_stop: Callable[[], None]
    tell: Callable[[str], None]
    worker: str = ""


class ItemWork(Protocol):
    """What one worker does its items with. It lives from item to item, and may keep an engine.

    Items that the plan gives the same ``Shard.source`` (a model, as a rule) come after each other.
    """

    def do(self, item: Item) -> Mapping[str, float]:
        """Put the result at ``item.place``; returns numbers for the ledger.

        Raises Stopped (from ``check_stop``), SourceAway for what may come back, HalaError for what another attempt
        would not change, anything else for what it might.
        """

    def close(self) -> None:
        """Let go of engine and memory, if any. After an item that failed the worker starts a new ``ItemWork``."""
        return


class ItemTask(Task, Protocol):
    """A task with ``loop = ITEMS``. Its plan may fill ``Facts.items``, one entry a shard. Most leave a folder each."""

    loop: str = ITEMS
    suffix: str = ""

    def open(self, run: RunDirectory, plan: Manifest) -> ItemWork:
        """Start working, in the task's environment. Nothing heavy before the first item."""

    def finish(self, run: RunDirectory, plan: Manifest) -> None:
        """Whatever is left to do when all shards are published, a whole model from its files for example; else nothing.

        One worker at a time, and again after a kill: the result must be whole or not there.
        """
        del run, plan


@dataclass(frozen=True)
class PlannedItem:
    """An item of a plan: its entry, with a ``name``; the model that it needs; and what it costs, in bytes or so.

    ``known``: what the result depends on, in JSON, for the shard's digest; None: the entry.
    """

    entry: Mapping[str, Any]
    source: Path
    cost: int = 1
    known: Any = None


def cut_items(
    kind: str,
    unit: Unit,
    items: Sequence[PlannedItem],
    sources: Sequence[Mapping[str, Any]],
    *,
    texts: int = 0,
    notes: Mapping[str, int] = MappingProxyType({}),
    assembled: bool = False,
) -> Cut:
    """A plan of a shard an item, in their order (see ``Facts``). Raises HalaError for two items of one name."""
    names = [str(item.entry["name"]) for item in items]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise HalaError(f"task: two {unit} would be called '{twice}'", "give the models other labels")
    shards = []
    for number, item in enumerate(items):
        known = item.entry if item.known is None else item.known
        digest = hashlib.blake2b(json.dumps(known, sort_keys=True).encode(), digest_size=16).hexdigest()
        shards.append(Shard(number, kind, str(item.source), 0, number, 1, 0, item.cost, digest))
    total = sum(item.cost for item in items)
    read, entries = list(map(dict, sources)), [dict(item.entry) for item in items]
    facts = Facts("", len(items), texts, 0, total, read, notes=dict(notes), unit=unit, items=entries)
    return Cut(shards, replace(facts, assembled=assembled))


MOST_FAILURES = 3
"""Different items in a row that failed in this worker: then the node or the code is at fault, not they."""
LOOK_SECONDS = 1.0
"""Between two looks whether the worker that is at the last step is alive."""
UNASSEMBLED: Final = "all items are done, but the whole could not be put together"
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 60.0
"""Seconds before anything else is tried when a file or folder was out of reach; each time twice as long."""


class ItemLoop:
    """State of one worker. ``work`` runs until nothing is left or a signal came."""

    def __init__(self, context: Context, task: ItemTask) -> None:
        self._context, self._task = context, task
        self._worker = context.leases.beacon.name
        self._claims = Claims(context)
        self._source = ""  # of the item done last: its engine is still there
        self._work: ItemWork | None = None
        self._counters = Counters()
        self._failing: set[int] = set()
        self._spared = 0
        self._pause = FIRST_PAUSE
        self._busy, self._since = 0.0, 0.0  # seconds at earlier items, and since when at one; 0: at none

    def work(self) -> Outcome:
        """Raises HalaError after too many failures in a row; whatever is begun is given back before."""
        with self._claims:
            try:
                for claim in self._claims.each(self._alike):
                    self._attempt(claim)
                if self._context.should_stop():
                    return Outcome.STOPPED
                self._close()  # a device is free before anything is put together
                if not status.missing(self._context.run.path):
                    self._finish()
                return Outcome.FINISHED
            finally:
                self._close()

    def _finish(self) -> None:
        """The last step, by one worker at a time; another takes it over from one that died, or tries again later."""
        run, leases = self._context.run, self._context.leases
        if not self._context.plan.facts.assembled:
            return
        storage = self._claims.storage
        first_seen = storage(leases.last_beat)
        while not storage(run.final.exists):
            if (lease := storage(leases.claim_alone)) is not None:
                break
            if storage(leases.last_beat) > first_seen or not self._context.rest(LOOK_SECONDS):
                return  # a live worker is at it
        else:
            return

        def put_together() -> None:
            for path in run.path.iterdir():
                if meant_by(path.name) == run.final.name != path.name:
                    remove(path)  # of a worker that died at it, or of our own last try
            self._task.finish(run, self._context.plan)

        try:
            storage(put_together)
            storage(leases.clear_alone)
        except StorageAway as error:
            raise StorageAway(f"{UNASSEMBLED}: {error.message}", error.hint) from error
        except OSError as error:
            raise HalaError(f"{UNASSEMBLED}: {error}", f"mend that, then `hala resume {run.name}`") from error
        finally:
            storage(lambda: leases.release(lease))

    def _alike(self) -> list[int]:
        """Shards of the model that is loaded."""
        return [shard for shard, source in enumerate(self._claims.sources) if source == self._source]

    def _attempt(self, claim: Claim) -> None:
        claims = self._claims
        try:
            claims.storage(lambda: self._do_cleanly(claim), FULL)
        except Stopped:
            claims.give_back(claim, "lost" if claim.lost else "released")
        except SourceAway as error:
            claims.missed(claim, error)
        except NoEngine as error:
            claims.give_back(claim, error=str(error))
            raise
        except StorageAway:
            claims.give_back(claim)
            raise
        except Exception as error:  # noqa: BLE001 (another item may well succeed; see MOST_FAILURES)
            fault = fault_of(error, self._context.run.path)
            if fault is None or self._spared >= MOST_FAILURES:
                self._fail(claim, error)
                return
            self._spared += 1  # though it may be one file of the run that cannot be read, and for good
            claims.give_back(claim, error=str(error))
            self._close()
            claims.storage.wait(fault)
        except BaseException:
            claims.end(claim, self._context.leases.fail)
            raise
        finally:
            self._clear(claim)

    def _do_cleanly(self, claim: Claim) -> None:
        """``_do``; where there was no room, nothing is left of it but what was kept."""
        try:
            self._do(claim)
        except (OSError, HalaError) as error:
            if (fault := fault_of(error, self._context.run.path)) is not None and fault.errno in FULL:
                self._close()
                self._clear(claim)
            raise

    def _clear(self, claim: Claim) -> None:
        with suppress(OSError):  # the next attempt does it
            remove(self._place(claim))

    def _do(self, claim: Claim) -> None:
        context, shard, place = self._context, self._context.plan[claim.shard], self._place(claim)
        kept = appending.kept_folder(context.run, claim.shard)
        make_folders(kept)
        self._progress(claim, "")
        if self._work is None:
            self._work = self._task.open(context.run, context.plan)
        began = time.monotonic()

        def check_stop() -> None:
            if context.should_stop() or claim.lost:
                raise Stopped

        entry = items[claim.shard] if (items := context.plan.facts.items) else {}
        item = Item(shard, entry, place, kept, check_stop, lambda text: self._progress(claim, text), self._worker)
        self._since = time.monotonic()
        try:
            numbers: dict[str, Any] = {"done": shard.rows, **self._work.do(item)}
        finally:
            self._busy, self._since = self._busy_seconds(), 0.0
        self._source = shard.source
        self._failing.clear()
        self._spared = 0
        self._pause = FIRST_PAUSE
        self._claims.reached(claim)
        self._claims.publish(claim, place, began, **numbers)
        self._counters["rows"] += shard.rows
        self._counters["quarantined"] += numbers.get("errors", 0)
        self._counters["prompt_tokens"] += numbers.get("prompt_tokens", 0)
        self._progress(None, "")

    def _fail(self, claim: Claim, error: Exception) -> None:
        """Leave the item to another attempt, or to a person where that would change nothing."""
        say(f"shard {claim.shard} failed:\n{''.join(traceback.format_exception(error))}")
        self._claims.note("failed", claim, error=f"{type(error).__name__}: {error}"[:2_000])
        is_away = _is_away(error, self._context.plan[claim.shard].source)
        leases = self._context.leases
        self._claims.end(claim, leases.give_up if isinstance(error, HalaError) and not is_away else leases.fail)
        self._close()
        self._failing.add(claim.shard)
        if len(self._failing) >= MOST_FAILURES:
            raise HalaError(f"{MOST_FAILURES} items in a row failed, the last: {error}") from error
        if is_away:
            self._context.rest(self._pause)
            self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _close(self) -> None:
        work, self._work, self._source = self._work, None, ""
        if work is not None:
            work.close()

    def _progress(self, claim: Claim | None, doing: str) -> None:
        at = {str(claim.shard): 0} if claim else {}
        busy = round(self._busy_seconds(), 3)
        sums = {**self._counters, **self._claims.published}
        self._context.ledger.write("progress", **sums, busy=busy, working_on=at, doing=doing)

    def _busy_seconds(self) -> float:
        return self._busy + (time.monotonic() - self._since if self._since else 0.0)

    def _place(self, claim: Claim) -> Path:
        return appending.temporary_output(self._context.run, claim.shard, self._worker)


def work(context: Context) -> Outcome:
    """The entry that ``worker.job`` calls for every task whose ``loop`` is ``items``."""
    return ItemLoop(context, cast(ItemTask, context.task)).work()


def _is_away(error: BaseException, source: str) -> bool:
    """Whether a file or folder is out of reach, which may pass, instead of the item itself being at fault."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return True
        cause = cause.__cause__
    return source.startswith("/") and not Path(source).exists()
