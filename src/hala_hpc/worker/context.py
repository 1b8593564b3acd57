"""What a loop of the worker is given, and what it answers."""

import time
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


@dataclass
class Counters:
    """What a worker has done since it started, in the words of the ledger."""

    rows: int = 0
    quarantined: int = 0
    requests: int = 0
    remembered: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    thoughts: int = 0  # answers before which the model thought; that is taken off
    escaped: int = 0  # prompts whose data held names of control tokens, which were sent as text


@dataclass(frozen=True)
class Context:
    """What the loop works with. ``start_engine`` may be called again, when an engine died."""

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
