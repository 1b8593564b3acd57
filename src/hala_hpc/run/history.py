"""What workers did and when, from their ledgers, and what that cost.

Times are each writer's own clock: hosts may differ by a little.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from hala_hpc.run import ledger
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.ledger import Event

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
class Incident:
    """Something that failed. ``shard`` is None where a worker failed as a whole."""

    time: float
    worker: str
    host: str
    shard: int | None
    error: str


@dataclass(frozen=True)
class Worker:
    """One worker process: its time and what it counted. ``counts`` are (time, rows, tokens), sums since its start.

    ``totals`` are the last of all sums, by the words of its ledger.
    """

    name: str
    host: str
    job: str
    start: float
    end: float
    ending: str
    counts: tuple[tuple[float, int, int], ...]
    totals: Mapping[str, int]
    spans: tuple[Span, ...]
    troubles: tuple[Incident, ...]
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
    def whole(self) -> list[Worker]:
        """The workers that are no processes of another: those that a job or a person started."""
        return [worker for worker in self.workers if not worker.part_of]

    @property
    def worker_seconds(self) -> float:
        return sum(worker.end - worker.start for worker in self.whole)

    @property
    def troubles(self) -> list[Incident]:
        return sorted((item for worker in self.workers for item in worker.troubles), key=lambda item: item.time)


@dataclass(frozen=True)
class Rate:
    """Means over a stretch of time that starts ``seconds`` after the run did; ``workers`` were at it, on average."""

    seconds: float
    rows: float
    tokens: float
    workers: float


def read(run: RunDirectory) -> History:
    """The history of a run; empty where nobody has worked on it, or its ledgers are lost."""
    files = ((path, opening, list(ledger.read(path))) for path, opening in ledger.openings(run.ledger))
    workers = [_worker(path.stem, opening, events) for path, opening, events in files if events]
    return History(tuple(sorted(workers, key=lambda worker: (worker.start, worker.name))))


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
    for worker in history.whole:
        alive += np.diff(np.clip(edges, worker.start, worker.end))
    columns = (edges[:-1] - history.start, rows / width, tokens / width, alive / width)
    return [Rate(*map(float, row)) for row in zip(*columns, strict=True)]


def joined(spans: Sequence[Span], shortest: float) -> list[Span]:
    """Neighbours of one worker with the same ending as one span, so that a drawing does not grow with the run."""
    merged: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.worker, span.ending, span.start)):
        last = merged[-1] if merged else None
        if last and (last.worker, last.ending) == (span.worker, span.ending) and span.start - last.end < shortest:
            merged[-1] = replace(last, end=max(last.end, span.end))
        else:
            merged.append(span)
    return merged


def _worker(name: str, opening: Event, events: Sequence[Event]) -> Worker:
    """What one ledger says."""
    host, last = opening["host"], events[-1]
    end = float(last["time"])
    counts = ledger.counts(events)
    return Worker(
        name=name,
        host=host,
        job=str(opening.get("job", "")),
        start=float(events[0]["time"]),
        end=end,
        ending=last.get("outcome", "failed") if last["event"] in ("ended", "failed") else UNENDED,
        counts=tuple((event["time"], event["rows"], ledger.tokens(event)) for event in counts),
        totals={name: value for name, value in counts[-1].items() if isinstance(value, int)} if counts else {},
        spans=tuple(_spans(name, events, end)),
        troubles=tuple(_troubles(name, host, events)),
        part_of=opening.get("part_of", ""),
    )


def _spans(worker: str, events: Sequence[Event], end: float) -> list[Span]:
    """A worker may hold two shards at once: it claims the next before the last rows of the one before are back."""
    claimed: dict[int, float] = {}
    spans = []
    for event in events:
        shard = event.get("shard")
        if shard is None:
            continue
        if event["event"] == "claimed":
            claimed[shard] = event["time"]
        elif event["event"] == "deferred":  # nobody worked under the claim: the engine was still to be loaded
            claimed.pop(shard, None)
        elif event["event"] in ENDINGS and shard in claimed:
            spans.append(Span(worker, shard, claimed.pop(shard), event["time"], ENDINGS[event["event"]]))
    return spans + [Span(worker, shard, start, end, UNENDED) for shard, start in claimed.items()]


def _troubles(worker: str, host: str, events: Sequence[Event]) -> list[Incident]:
    return [
        Incident(event["time"], worker, event.get("node") or host, shard, str(event.get("error", event["event"])))
        for event in events
        if event["event"] in ("failed", "crashed", "stalled", "unreachable")
        for shard in (event["shards"] if event.get("shards") else [event.get("shard")])
    ]


COUNTED: Final = ("prompt_tokens", "output_tokens", "thoughts", "escaped")


@dataclass(frozen=True)
class WorkTotals:
    """Totals of a run.

    ``hours`` are those of all workers together, each from its first event to its last; ``gpu_hours`` those times the
    GPUs that the recipe's site gives a worker. ``elapsed_hours``: from the first event of any to the last, with
    whatever lay between. The minutes before a worker's first event are not counted.
    """

    workers: int
    hours: float
    gpu_hours: float
    elapsed_hours: float
    prompt_tokens: int
    output_tokens: int
    thoughts: int = 0  # answers before which the model thought, which is left out
    escaped: int = 0  # prompts whose data held names of control tokens, sent as text


def of_run(run: Path, site: Mapping[str, Any]) -> WorkTotals:
    """Totals over the ledgers of the run at ``run``; ``site`` is that section of its recipe."""
    past = read(RunDirectory(run))
    slurm = site.get("slurm") or {}
    gpus = int(slurm.get("gpus_per_worker") or 0) * int(slurm.get("nodes_per_worker") or 1)
    hours = past.worker_seconds / 3600
    totals = {key: sum(worker.totals.get(key, 0) for worker in past.workers) for key in COUNTED}
    return WorkTotals(len(past.whole), hours, hours * gpus, (past.end - past.start) / 3600, **totals)
