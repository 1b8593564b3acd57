"""How much of the workers' time came to be output: from their ledgers, which may be older than what is looked for.

Three layers: a worker runs, of that its engine is busy, of that the work ended in what is published. What a ledger does
not hold is None: not measured.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

from hala_hpc.run import ledger
from hala_hpc.run.files import now_in
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.ledger import Event
from hala_hpc.run.manifest import Manifest

KILLED: Final = "a worker was killed, or its node died"
REASONS: Final = {
    "abandoned": "the engine died, or a fault of ours",
    "failed": "it failed, and was tried again",
    "lost": "a worker was frozen, and another took over",
    "released": "a worker was stopped before it had kept them",
    "published": "the output was set aside, and done again",
}
"""Why work was done twice, by how the attempt ended that did it first."""
_NO_WORK: Final = "deferred"
"""Nobody worked under such a claim: the engine was still to be loaded."""


@dataclass(frozen=True)
class Stay:
    """One worker process, from its first word to its last (seconds since 1970, by its own clock).

    ``busy``: seconds of it in which it had work (see ``Event``); None where its ledger does not say. ``allocated``,
    ``gpus`` and ``nodes``: since when and with what on each node Slurm had given the job, where Slurm told the worker.
    ``life``: which worker it is in that allocation, for a killed one starts again. ``has_said_end`` is False for one
    that is at work, or was killed.
    """

    worker: str
    job: str
    start: float
    end: float
    has_said_end: bool = False
    busy: float | None = None
    part_of: str = ""
    executor: str = ""
    allocated: float | None = None
    gpus: int | None = None
    nodes: int | None = None
    life: int = 1
    tokens: tuple[int, int] = (0, 0)  # read and written

    @property
    def seconds(self) -> float:
        return max(0.0, self.end - self.start)


class Attempt(NamedTuple):
    """A worker at a shard. ``before`` and ``done``: rows that stood when it took the shard up, and in the end.

    ``ending``: '' where the ledger does not say. ``is_exact``: whether ``done`` is more than the last word of a worker
    that went on.
    """

    start: float
    end: float
    before: int
    done: int
    ending: str = ""
    is_exact: bool = True


@dataclass(frozen=True)
class Done:
    """Work on shards, in ``unit``: rows, or seconds of workers at items.

    ``published`` was done once and stands; ``waiting`` is kept in unfinished shards; ``twice`` was done and had to be
    done again, by the reason (at least: what a killed worker did after its last word is not known).
    """

    unit: str = "rows"
    published: float = 0.0
    waiting: float = 0.0
    twice: Mapping[str, float] = field(default_factory=dict)

    @property
    def share(self) -> float | None:
        """Of all work that is decided on, the part that ended in published output; None before the first."""
        whole = self.published + sum(self.twice.values())
        return self.published / whole if whole > 0 else None


@dataclass(frozen=True)
class Work:
    """What the ledgers of a run say. ``silent`` counts workers that ended without a word."""

    stays: Sequence[Stay] = ()
    done: Done = field(default_factory=Done)
    silent: int = 0

    @property
    def whole(self) -> list[Stay]:
        """Those that a job or a person started; their processes are in them."""
        return [stay for stay in self.stays if not stay.part_of]

    @property
    def leaves(self) -> list[Stay]:
        """Those that do the work themselves."""
        parents = {stay.part_of for stay in self.stays}
        return [stay for stay in self.stays if stay.worker not in parents]


def read(run: RunDirectory, plan: Manifest, lease_seconds: float) -> Work:
    """The work on a run; a worker without a heartbeat for ``lease_seconds`` is taken for ended."""
    is_rows = plan.facts.unit == "rows" and not plan.facts.items
    rows: list[int] = plan.column("rows")
    kept: list[int] = plan.column("kept")
    attempts: dict[int, list[Attempt]] = {}
    stays = []
    for path, opening in ledger.openings(run.ledger):
        events = list(ledger.landmarks(path))
        stays.append(_stay(path.stem, opening, events))
        for shard, attempt in _attempts(events, kept):
            attempts.setdefault(shard, []).append(attempt)
    now = now_in(run.leases)
    silent = sum(not stay.has_said_end and _age(run.workers / stay.worker, now) > lease_seconds for stay in stays)
    done = _rows(attempts, rows, kept) if is_rows else _items(attempts)
    return Work(tuple(sorted(stays, key=lambda stay: (stay.start, stay.worker))), done, silent)


def union(stretches: Iterable[tuple[float, float]]) -> float:
    """Seconds that at least one of some stretches covers."""
    covered, until = 0.0, float("-inf")
    for start, end in sorted(stretches):
        covered += max(0.0, end - max(start, until))
        until = max(until, end)
    return covered


def _stay(worker: str, opening: Event, events: Sequence[Event]) -> Stay:
    times = [float(event["time"]) for event in events] or [float(opening.get("time", 0.0))]
    sums = ledger.counts(events)
    last = max(sums, key=lambda event: event["time"]) if sums else Event()
    ends = any(event["event"] == "ended" or (event["event"] == "failed" and "shard" not in event) for event in events)
    return Stay(
        worker=worker,
        job=str(opening.get("job", "")),
        start=min(times),
        end=max(times),
        has_said_end=ends,
        busy=_number(last, "busy"),
        part_of=opening.get("part_of", ""),
        executor=opening.get("executor", ""),
        allocated=_number(opening, "allocated"),
        gpus=_count(opening, "gpus_given") if "gpus_given" in opening else None,
        nodes=_count(opening, "nodes_given") or None,
        life=_count(opening, "life", 1),
        tokens=(_count(last, "prompt_tokens"), _count(last, "output_tokens")),
    )


def _number(event: Any, key: str) -> float | None:
    """A number of an event; None where it has none, as a damaged line may."""
    value = event.get(key) if isinstance(event, Mapping) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _count(event: Any, key: str, otherwise: int = 0) -> int:
    return otherwise if (value := _number(event, key)) is None else int(value)


def _attempts(events: Sequence[Event], kept: Sequence[int]) -> Iterator[tuple[int, Attempt]]:
    """The claims of one worker, in order, each with its end; of those it still had in the end, as far as it got."""
    claims: dict[int, tuple[float, int]] = {}
    for event in events:
        shard, name, time = event.get("shard"), event["event"], float(event["time"])
        if not isinstance(shard, int) or not 0 <= shard < len(kept):
            continue
        if name == "claimed":
            claims[shard] = (time, _count(event, "taken_up", kept[shard]))
        elif name == _NO_WORK:
            claims.pop(shard, None)
        elif name in REASONS and shard in claims:
            start, before = claims.pop(shard)
            rows = _count(event, "done", before - _count(event, "errors")) + _count(event, "errors")
            yield shard, Attempt(start, time, before, max(before, rows), name, "done" in event)
    last = next((event for event in reversed(events) if "working_on" in event), Event())
    until = max((float(event["time"]) for event in events), default=0.0)
    for shard, (start, before) in claims.items():
        at = _count(last.get("working_on", {}), str(shard), before)
        yield shard, Attempt(start, until, before, max(before, at), is_exact=False)


def _chains(attempts: Sequence[Attempt]) -> list[Attempt]:
    """Attempts in the order in which each went on from the one before: of those that overlap, the winner is last."""
    ends = sorted(attempt.end for attempt in attempts if attempt.ending == "published")

    def order(attempt: Attempt) -> tuple[int, bool, float]:
        is_published = attempt.ending == "published"
        generation = sum(end < (attempt.end if is_published else attempt.start) for end in ends)
        return generation, is_published, attempt.start

    return sorted(attempts, key=order)


def _rows(attempts: Mapping[int, Sequence[Attempt]], rows: Sequence[int], kept: Sequence[int]) -> Done:
    twice = Counter[str]()
    published = waiting = 0
    for shard, of_shard in attempts.items():
        chain = _chains(of_shard) if len(of_shard) > 1 else of_shard
        for attempt, after in pairwise(chain):
            if attempt.done > after.before:
                twice[REASONS.get(attempt.ending, KILLED)] += attempt.done - after.before
        if chain[-1].ending == "published":
            published += rows[shard] - kept[shard]
        else:
            waiting += max(0, chain[-1].done - kept[shard])
    return Done("rows", published, waiting, dict(twice))


def _items(attempts: Mapping[int, Sequence[Attempt]]) -> Done:
    """Of items the seconds are known, not how much of an item each attempt did: what was kept counts as lost, too."""
    twice: defaultdict[str, float] = defaultdict(float)
    published = waiting = 0.0
    for of_shard in attempts.values():
        chain = _chains(of_shard)
        for attempt in chain[:-1]:
            twice[REASONS.get(attempt.ending, KILLED)] += attempt.end - attempt.start
        seconds = chain[-1].end - chain[-1].start
        if chain[-1].ending == "published":
            published += seconds
        else:
            waiting += seconds
    return Done("seconds", published, waiting, dict(twice))


def _age(beacon: Path, now: float) -> float:
    try:
        return now - beacon.stat().st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return float("inf")
