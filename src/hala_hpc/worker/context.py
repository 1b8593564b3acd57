"""What a worker's loop works with, and how it may end."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from hala_hpc.config.schema import Recipe
from hala_hpc.engines.base import Engine
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.lease import Leases
from hala_hpc.run.ledger import Ledger
from hala_hpc.run.manifest import Manifest
from hala_hpc.worker.task import Task


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

    rows, quarantined, requests, remembered (requests answered from the cache), prompt_tokens, output_tokens;
    thoughts: answers before which the model thought, which is taken off; escaped: prompts whose data held names of
    control tokens, which were sent as text.
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


def say(text: str) -> None:
    """A line for the run's log."""
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} hala: {text}", flush=True)  # noqa: T201
