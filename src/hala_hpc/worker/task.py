"""The contract of a task, whatever its shards are."""

from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from hala_hpc.config.schema import Data, Model
from hala_hpc.data.cut import Cut, Watch
from hala_hpc.run.manifest import Facts
from hala_hpc.run.verify import CheckShard

ROWS: Final = "hala_hpc.worker.rows.loop"
ITEMS: Final = "hala_hpc.worker.items.loop"


class Task(Protocol):
    """Knows how its shards are planned and checked, and which loop of the worker does them."""

    stage: str
    """The environment that it runs in, as a site names them: serve or work."""
    loop: str
    """The module whose ``work`` does its shards on the worker: ``ROWS``, ``ITEMS``, or one that a task brings."""
    suffix: str
    """Ends the name of a shard's output: '' for a folder."""

    def plan(self, folder: Path, watch: Watch) -> Cut:
        """Cut the work into shards; ``folder`` is the run directory in the making. Raises HalaError on bad input."""

    def checker(self, facts: Facts) -> CheckShard:
        """How one published output is checked against the manifest."""


@runtime_checkable
class PerCore(Protocol):
    """A task whose shard keeps one core busy: a worker then works as so many processes as it has cores."""

    one_per_core: bool


@runtime_checkable
class NeedsHub(Protocol):
    """A task that reads more from the hub than the recipe's own ``model`` and ``data``; ``hala prefetch`` asks it."""

    def models_on_hub(self) -> list[Model]:
        """Models by name; those that are folders or runs do no harm."""

    def data_on_hub(self) -> list[Data]:
        """Datasets; those without ``hub`` do no harm."""
