"""What the steps of a training came to: those that made the model, and those that were done again after a restart."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hala_hpc.tasks.train import metrics

AGAIN: Final = "a launch ended after its last checkpoint"


@dataclass(frozen=True)
class Steps:
    """Numbers of steps, seconds of them, and the tokens of the ``useful`` ones.

    What a killed launch did after its last line is not in it.
    """

    useful: int
    repeated: int
    useful_seconds: float
    repeated_seconds: float
    tokens: int


def of_run(run: Path) -> Steps | None:
    """The steps of the training at ``run``, of all its launches; None before the first."""
    useful = [line for line in metrics.read(run) if "loss" in line]
    if not useful:
        return None
    steps, seconds = 0, 0.0
    for path in metrics.files(run):
        for line in metrics.lines(path.read_bytes()):
            if "loss" in line:
                steps += 1
                seconds += line.get("seconds") or 0.0
    kept = sum(line.get("seconds") or 0.0 for line in useful)
    tokens = sum(line.get("tokens", 0) for line in useful)
    return Steps(len(useful), steps - len(useful), kept, max(0.0, seconds - kept), tokens)
