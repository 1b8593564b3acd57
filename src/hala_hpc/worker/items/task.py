"""Tasks whose shards are items: a file to quantize, a weight to merge with, a benchmark of a model."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hala_hpc.config.errors import HalaError
from hala_hpc.data.cut import Cut
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.manifest import Facts, Manifest, Shard, Unit
from hala_hpc.worker.task import Task


class Stopped(Exception):
    """The worker was asked to stop, or its shard was taken over: what the item has kept in ``kept`` stays."""


@dataclass(frozen=True)
class Item:
    """One shard as it is handed to an ``ItemWork``.

    ``asked`` is the shard's entry of ``Facts.items``. The result goes to ``place``, which does not exist yet: a file,
    or a folder where the task's suffix is ''. ``kept`` is a folder of this shard alone, which the next attempt finds
    again (on any node): for what is worth keeping when a worker dies. ``check_stop`` raises Stopped; to be called at
    least every half minute. ``tell`` says how far the item is, for ``hala status``. ``worker`` is who does it.
    """

    shard: Shard
    asked: dict[str, Any]
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
        """Let go of engine and memory. After an item that failed the worker starts a new ``ItemWork``."""


class ItemTask(Task, Protocol):
    """A task with ``loop = ITEMS``. Its plan may fill ``Facts.items``, one entry a shard."""

    def open(self, run: RunDirectory, plan: Manifest) -> ItemWork:
        """Start working, in the stage's environment. Nothing heavy before the first item."""

    def finish(self, run: RunDirectory, plan: Manifest) -> None:
        """Whatever is left to do when all shards are published: a whole model from its files, for example.

        Several workers may come here at once, and again after a kill: the result must be whole or not there.
        """


@dataclass(frozen=True)
class Planned:
    """An item of a plan: what is asked, with a ``name``; the model that it needs; and what it costs, in bytes or so.

    ``known``: what the result depends on, in JSON, for the shard's digest; None: all that is asked.
    """

    asked: Mapping[str, Any]
    source: Path
    cost: int = 1
    known: Any = None


def cut(
    kind: str,
    unit: Unit,
    items: Sequence[Planned],
    sources: Sequence[Mapping[str, Any]],
    texts: int = 0,
    assembled: bool = False,
) -> Cut:
    """A plan of a shard an item, in their order. Raises HalaError for two items of one name."""
    names = [str(item.asked["name"]) for item in items]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise HalaError(f"task: two {unit} would be called '{twice}'", "give the models other labels")
    shards = []
    for number, item in enumerate(items):
        known = item.asked if item.known is None else item.known
        digest = hashlib.blake2b(json.dumps(known, sort_keys=True).encode(), digest_size=16).hexdigest()
        shards.append(Shard(number, kind, str(item.source), 0, number, 1, 0, item.cost, digest))
    total = sum(item.cost for item in items)
    entries = [dict(item.asked) for item in items]
    facts = Facts(
        "", len(items), texts, 0, total, list(map(dict, sources)), unit=unit, items=entries, assembled=assembled
    )
    return Cut(shards, facts)
