"""Tasks whose shards are items: a file to quantize, a weight to merge with, a benchmark of a model."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.manifest import Manifest, Shard
from hala_hpc.worker.task import Task


class Stopped(Exception):
    """The worker was asked to stop, or its shard was taken over: what the item has kept in ``kept`` stays."""


@dataclass(frozen=True)
class Item:
    """One shard as it is handed to an ``ItemWork``.

    ``asked`` is the shard's entry of ``Facts.items``. The result goes to ``place``, which does not exist yet: a file,
    or a folder where the task's suffix is ''. ``kept`` is a folder of this shard alone, which the next attempt finds
    again (on any node): for what is worth keeping when a worker dies. ``check_stop`` raises Stopped; to be called at
    least every half minute. ``tell`` says how far the item is, for ``hala status``.
    """

    shard: Shard
    asked: dict[str, Any]
    place: Path
    kept: Path
    check_stop: Callable[[], None]
    tell: Callable[[str], None]


class ItemWork(Protocol):
    """What one worker does its items with. It lives from item to item, and may keep an engine.

    Items that the plan gives the same ``Shard.source`` (a model, as a rule) come after each other.
    """

    def do(self, item: Item) -> dict[str, Any]:
        """Put the result at ``item.place``; returns numbers for the ledger.

        Raises Stopped (from ``check_stop``), HalaError for what another attempt would not change, anything else for
        what it might.
        """

    def close(self) -> None:
        """Let go of engine and memory. After an item that failed the worker starts a new ``ItemWork``."""


class ItemTask(Task, Protocol):
    """A task with ``loop = ITEMS``. Its plan fills ``Facts.items``, one entry a shard."""

    def open(self, run: RunDirectory, plan: Manifest) -> ItemWork:
        """Start working, in the stage's environment. Nothing heavy before the first item."""

    def finish(self, run: RunDirectory, plan: Manifest) -> None:
        """Whatever is left to do when all shards are published: a whole model from its files, for example.

        Several workers may come here at once, and again after a kill: the result must be whole or not there.
        """
