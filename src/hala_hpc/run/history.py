"""What workers did and when, from their ledgers, and what that cost.

Times are each writer's own clock: hosts may differ by a little.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from hala_hpc.run import ledger
from hala_hpc.run.layout import RunDirectory

BINS: Final = 150
"""Points of a curve over the time of a run."""
PARTS: Final = 600
"""A worker's spans with the same end that are nearer than this part of the run's time are drawn as one."""
ENDINGS: Final = {
    "published": "done",
    "failed": "failed",
    "abandoned": "failed",
    "released": "given back",
    "lost": "lost to another",
}
NO_SPAN: Final = ("deferred",)
"""Events that end a claim nobody worked under: the engine was still to be loaded."""
UNENDED: Final = "not ended"


@dataclass(frozen=True)
class Span:
    """A worker at a shard, from ``start`` to ``end`` (seconds since 1970). ``ending`` is one of ENDINGS, or UNENDED."""

    worker: str
    shard: int
    start: float
    end: float
    ending: str


@dataclass(frozen=True)
class Trouble:
    """Something that failed. ``shard`` is None where a worker failed as a whole."""

    time: float
    worker: str
    host: str
    shard: int | None
    error: str


@dataclass(frozen=True)
class Worker:
    """One worker process: its time and what it counted. ``counts`` are (time, rows, tokens), sums since its start."""

    name: str
    host: str
    job: str
    start: float
    end: float
    ending: str
    counts: tuple[tuple[float, int, int], ...]
    spans: tuple[Span, ...]
    troubles: tuple[Trouble, ...]
    part_of: str = ""  # the worker of which it is a process


@dataclass(frozen=True)
class History:
    """All workers of a run, by their start."""

    workers: tuple[Worker, ...]

    @property
    def start(self) -> float:
        return min((worker.start for worker in self.workers), default=0.0)

    @property
    def end(self) -> float:
        return max((worker.end for worker in self.workers), default=0.0)

    @property
    def worker_seconds(self) -> float:
        return sum(worker.end - worker.start for worker in self.workers if not worker.part_of)

    @property
    def troubles(self) -> list[Trouble]:
        return sorted((one for worker in self.workers for one in worker.troubles), key=lambda one: one.time)


@dataclass(frozen=True)
class Rate:
    """Means over a stretch of time that starts ``seconds`` after the run did; ``workers`` were at it, on average."""

    seconds: float
    rows: float
    tokens: float
    workers: float


def read(run: RunDirectory) -> History:
    """The history of a run; empty where nobody has worked on it, or its ledgers are lost."""
    found = [worker for path in sorted(run.ledger.glob("*.jsonl")) if (worker := _worker(path))]
    return History(tuple(sorted(found, key=lambda worker: (worker.start, worker.name))))


def rates(history: History, bins: int = BINS) -> list[Rate]:
    """Rows and tokens a second over equal stretches of the run's time; between two counts a worker is even."""
    if history.end <= history.start:
        return []
    edges = np.linspace(history.start, history.end, bins + 1)
    width = edges[1] - edges[0]
    rows, tokens, alive = np.zeros(bins), np.zeros(bins), np.zeros(bins)
    for worker in history.workers:
        times, *sums = np.array([(worker.start, 0, 0), *worker.counts], float).T
        rows += np.diff(np.interp(edges, times, sums[0]))
        tokens += np.diff(np.interp(edges, times, sums[1]))
        alive += np.diff(np.clip(edges, worker.start, worker.end))
    columns = (edges[:-1] - history.start, rows / width, tokens / width, alive / width)
    return [Rate(*map(float, row)) for row in zip(*columns, strict=True)]


def joined(spans: Sequence[Span], shortest: float) -> list[Span]:
    """Neighbours of one worker with the same ending as one span, so that a drawing does not grow with the run."""
    found: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.worker, span.ending, span.start)):
        last = found[-1] if found else None
        if last and (last.worker, last.ending) == (span.worker, span.ending) and span.start - last.end < shortest:
            found[-1] = Span(last.worker, last.shard, last.start, max(last.end, span.end), last.ending)
        else:
            found.append(span)
    return found


def _worker(path: Path) -> Worker | None:
    """What one ledger tells; None for one that is no worker's."""
    events = list(ledger.read(path))
    if not events or "host" not in events[0]:
        return None
    host = str(events[0]["host"])
    end = float(events[-1]["time"])
    ended = events[-1]["event"]
    return Worker(
        name=path.stem,
        host=host,
        job=str(events[0].get("job", "")),
        start=float(events[0]["time"]),
        end=end,
        ending=str(events[-1].get("outcome", "failed")) if ended in ("ended", "failed") else UNENDED,
        counts=tuple(_counts(events)),
        spans=tuple(_spans(path.stem, events, end)),
        troubles=tuple(_troubles(path.stem, host, events)),
        part_of=str(events[0].get("part_of", "")),
    )


def _counts(events: Sequence[dict[str, Any]]) -> list[tuple[float, int, int]]:
    return [
        (event["time"], event["rows"], event.get("prompt_tokens", 0) + event["output_tokens"])
        for event in events
        if "rows" in event and "output_tokens" in event
    ]


def _spans(worker: str, events: Sequence[dict[str, Any]], end: float) -> list[Span]:
    """A worker may hold two shards at once: it claims the next before the last rows of the one before are back."""
    claimed: dict[int, float] = {}
    found = []
    for event in events:
        shard = event.get("shard")
        if shard is None:
            continue
        if event["event"] == "claimed":
            claimed[shard] = event["time"]
        elif event["event"] in NO_SPAN:
            claimed.pop(shard, None)
        elif event["event"] in ENDINGS and shard in claimed:
            found.append(Span(worker, shard, claimed.pop(shard), event["time"], ENDINGS[event["event"]]))
    return found + [Span(worker, shard, start, end, UNENDED) for shard, start in claimed.items()]


def _troubles(worker: str, host: str, events: Sequence[dict[str, Any]]) -> list[Trouble]:
    return [
        Trouble(event["time"], worker, event.get("node") or host, shard, str(event.get("error", event["event"])))
        for event in events
        if event["event"] in ("failed", "crashed", "stalled", "unreachable")
        for shard in event.get("shards") or [event.get("shard")]
    ]


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
        if "part_of" not in opening:  # a process of a worker, whose time that counts
            spans.append((float(opening["time"]), float(last["time"])))
        totals.update({key: int(counted.get(key, 0)) for key in COUNTED})
    seconds = sum(end - start for start, end in spans)
    slurm = site.get("slurm") or {}
    gpus = int(slurm.get("gpus_per_worker") or 0) * int(slurm.get("nodes_per_worker") or 1)
    elapsed = max(end for _, end in spans) - min(start for start, _ in spans) if spans else 0.0
    return Work(
        len(spans), seconds / 3600, seconds * gpus / 3600, elapsed / 3600, **{key: totals[key] for key in COUNTED}
    )
