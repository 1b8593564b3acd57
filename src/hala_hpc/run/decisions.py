"""What was decided about a run's workers, by stewards and by people: ``ledger/steward-*.jsonl``, one event a file.

``starting``: workers are about to be handed in, with how far the run was by then and how many arrays it had had;
``decided``: what a steward decided, and why; ``cancelled``: a person ended the workers, and wants no more of them;
``released``: a task that Slurm held after a failed launch was let go; ``at end``: what became of the program that a
site wants started then. Of a pipeline also: ``planning`` and ``planned`` a stage, a command that ``ran``, and what
``failed`` of these. The order is that of the file server's clock: stewards and people are on different hosts.
"""

import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hala_hpc.run import ledger
from hala_hpc.run.files import write_new
from hala_hpc.run.ledger import Event

STARTING: Final = "starting"
DECIDED: Final = "decided"
CANCELLED: Final = "cancelled"
RELEASED: Final = "released"
AT_END: Final = "at end"
PLANNING: Final = "planning"
PLANNED: Final = "planned"
RAN: Final = "ran"
FAILED: Final = "failed"
KINDS: Final = (STARTING, DECIDED, CANCELLED, RELEASED, AT_END, PLANNING, PLANNED, RAN, FAILED)
PERSON, STEWARD = "person", "steward"
"""Who starts workers."""


@dataclass(frozen=True)
class Noted:
    """An event, and when it was written, in seconds since 1970 by the file server's clock."""

    at: float
    event: Event

    @property
    def kind(self) -> str:
        return self.event["event"]


def note(folder: Path, event: str, **fields: Any) -> None:
    """Write an event down, durably, for a run or a grid. Raises OSError: what is not on record must not be done."""
    ledger_folder = folder / "ledger"
    ledger_folder.mkdir(exist_ok=True)
    name = f"{STEWARD}-{time.time_ns()}-{secrets.token_hex(3)}.jsonl"
    write_new(ledger_folder / name, ledger.line(event, {**fields, "on": os.uname().nodename}))


def read(*folders: Path) -> list[Noted]:
    """All events of some folders, oldest first."""
    noted = []
    for folder in folders:
        for file in (folder / "ledger").glob(f"{STEWARD}-*.jsonl"):
            events = [event for event in ledger.read(file) if event["event"] in KINDS]
            noted += [Noted(file.stat().st_mtime, event) for event in events]
    return sorted(noted, key=lambda item: (item.at, item.event["time"]))


def is_cancelled(noted: Sequence[Noted]) -> bool:
    """Whether a person cancelled the run, and nobody started workers since."""
    kinds = [item.kind for item in noted if item.kind in (STARTING, CANCELLED)]
    return kinds[-1:] == [CANCELLED]


def last_decision(noted: Sequence[Noted]) -> Noted | None:
    """What a steward last decided since a person last started or cancelled workers; None where none did."""
    for item in reversed(noted):
        if item.kind == DECIDED:
            return item
        if item.kind == CANCELLED or (item.kind == STARTING and item.event.get("by") == PERSON):
            return None
    return None
