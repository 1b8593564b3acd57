"""What a run cost: workers and hours, from its ledgers."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hala_hpc.run import ledger

COUNTED: Final = ("prompt_tokens", "output_tokens", "thoughts", "escaped")


@dataclass(frozen=True)
class Work:
    """Totals of a run.

    ``hours`` are those of all workers together, each from its first event to its last; ``gpu_hours`` those times the
    GPUs that the recipe's site gives a worker. ``elapsed_hours``: from the first event of any to the last, with
    whatever lay between. The minutes before a worker's first event are in none of them.
    """

    workers: int
    hours: float
    gpu_hours: float
    elapsed_hours: float
    prompt_tokens: int
    output_tokens: int
    thoughts: int = 0  # answers before which the model thought, which is left out
    escaped: int = 0  # prompts whose data held names of control tokens, sent as text


def of_run(run: Path, site: dict[str, Any]) -> Work:
    """Totals over the ledgers of the run at ``run``; ``site`` is that section of its recipe."""
    spans, totals = [], Counter[str]()
    for file in sorted((run / "ledger").glob("*.jsonl")):
        opening = ledger.first(file)
        if "host" not in opening:  # not a worker's
            continue
        last = opening
        counted: dict[str, Any] = {}
        for event in ledger.read(file):
            last = event
            counted = event if "output_tokens" in event else counted
        spans.append((float(opening["time"]), float(last["time"])))
        totals.update({key: int(counted.get(key, 0)) for key in COUNTED})
    seconds = sum(end - start for start, end in spans)
    slurm = site.get("slurm") or {}
    gpus = int(slurm.get("gpus_per_worker") or 0) * int(slurm.get("nodes_per_worker") or 1)
    elapsed = max(end for _, end in spans) - min(start for start, _ in spans) if spans else 0.0
    return Work(
        len(spans), seconds / 3600, seconds * gpus / 3600, elapsed / 3600, **{key: totals[key] for key in COUNTED}
    )
