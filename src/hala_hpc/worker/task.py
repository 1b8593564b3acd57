"""The contract of a task, whatever its shards are; what its loop works with, and how that may end."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final, Protocol

from hala_hpc.config.schema import Data, Model, Recipe
from hala_hpc.data.cut import Cut, PlanWatch
from hala_hpc.engines.base import Engine
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.lease import Leases
from hala_hpc.run.ledger import Ledger
from hala_hpc.run.manifest import Facts, Manifest
from hala_hpc.run.verify import CheckShard

ROWS: Final = "hala_hpc.worker.rows.loop"
ITEMS: Final = "hala_hpc.worker.items"
REST_SECONDS: Final = 0.2
"""Between two looks whether to stop."""


class Task(Protocol):
    """Knows how its shards are planned and checked, and which loop of the worker does them."""

    environment: str
    """The environment that it runs in, as a site names them: serve or work."""
    loop: str
    """The module whose ``work`` does its shards on the worker: ``ROWS``, ``ITEMS``, or one that a task brings."""
    suffix: str
    """Ends the name of a shard's output: '' for a folder."""
    one_per_core: bool = False
    """Whether a shard keeps one core busy: a worker then works as so many processes as it has cores."""
    takes_run: bool = False
    """Whether the recipe's ``model`` names a run, and not the model that came of it."""

    def plan(self, folder: Path, watch: PlanWatch) -> Cut:
        """Cut the work into shards; ``folder`` is the run directory in the making. Raises HalaError on bad input."""

    def checker(self, facts: Facts) -> CheckShard:
        """How one published output is checked against the manifest."""

    def hub_needs(self) -> Sequence[Model | Data]:
        """What ``hala prefetch`` fetches besides the recipe's own ``model`` and ``data``.

        Models that are folders or runs, and data without ``hub``, do no harm.
        """
        return ()


class Outcome(Enum):
    """Why a worker ended."""

    FINISHED = "finished"  # nothing is left to claim
    GAVE_UP = "gave up"  # nothing is left to claim, and this worker was the last to fail at a shard: it is set aside
    STOPPED = "stopped"  # a signal or the end of the job's time asked for it; the job should be requeued
    REQUEUED = "requeued"  # the job was put back in the queue already, to run on other nodes

    @property
    def code(self) -> int:
        """Exit code: 1 has accounting show a job whose work failed as FAILED; sbatch scripts requeue on 85."""
        return {"finished": 0, "gave up": 1}.get(self.value, 85)


class Counters(Counter[str]):
    """What a worker has done since it started, in the words of the ledger; a new name need only be counted.

    rows, quarantined, requests, again (requests after answers that failed a check), remembered (requests answered from
    the cache), prompt_tokens, output_tokens;
    thoughts: answers before which the model thought, which is taken off; escaped: prompts whose data held names of
    control tokens, which were sent as text; and what a row task's ``counts`` names (``rejected: length``).
    """

    def __init__(self) -> None:
        super().__init__(dict.fromkeys(("rows", "prompt_tokens", "output_tokens"), 0))  # which status counts on


@dataclass(frozen=True)
class Context:
    """What the loop works with. ``start_engine`` may be called again, after an engine died."""

    run: RunDirectory
    recipe: Recipe
    plan: Manifest
    task: Task
    leases: Leases
    ledger: Ledger
    start_engine: Callable[[], Engine]
    should_stop: Callable[[], bool]

    def rest(self, seconds: float, meanwhile: Callable[[], None] = lambda: None) -> bool:
        """Sleep, with a call of ``meanwhile`` every moment. Whether the time passed before a stop was asked for."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self.should_stop():
            meanwhile()
            time.sleep(min(left, REST_SECONDS))
        return not self.should_stop()


def say(text: str) -> None:
    """A line for the run's log. Where that cannot be written, the line is lost, and not the work."""
    with contextlib.suppress(OSError):
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} hala: {text}", flush=True)  # noqa: T201
