"""How far a run is, read from its directory alone: any time, by anybody, from any host."""

import contextlib
import itertools
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from hala_hpc.run import layout, lease, ledger, manifest
from hala_hpc.run.files import now_in
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.ledger import Event
from hala_hpc.run.lineage import Redo
from hala_hpc.run.manifest import Manifest

TAIL_BYTES = 64 * 1024
"""How much of each ledger's end is read: enough for some minutes of progress and the last errors."""
MOST_FOOTERS = 200
"""Outputs opened for what a lost ledger would have said."""
ERROR = "hala_error"
"""Column of an output that says why a row could not be done (see ``data.shards``)."""
_PUBLISHED = re.compile(rb'{"event": "published", "time": ([0-9.]+), "shard": ([0-9]+),[^\n]*"errors": ([0-9]+)')
WINDOW_SECONDS = 300.0
"""Rates are taken over so long a time."""


class LastError(Event):
    """An event that says what went wrong, of which ledger, and how often its words came."""

    worker: str
    count: int


@dataclass(frozen=True)
class WorkerStatus:
    """One worker process. Counts are its own, since it started; rates are per second over the last minutes.

    ``counts`` holds all that it counts, by the words of its ledger.
    """

    worker: str
    host: str
    job: str
    alive: bool
    rows: int
    quarantined: int
    prompt_tokens: int
    output_tokens: int
    rows_per_second: float
    tokens_per_second: float
    working_on: dict[str, int]  # shard to rows finished in it
    doing: str = ""  # how far its item is, in words
    counts: dict[str, int] = field(default_factory=dict)
    part_of: str = ""  # the worker of which it is a process


@dataclass(frozen=True)
class Status:
    """Counts of shards and rows, rates, and what went wrong last. ``seconds_left`` is None while nobody works.

    ``unit`` is what ``rows`` counts: rows, or models. ``time`` is the file server's, when the run was looked at.
    ``quarantined`` counts rows of finished shards, as ``verify`` and ``collect`` do; those of ``unknown_quarantine``
    shards, whose history is lost, are not in it. ``unassembled``: the last step, which makes RUN/final of all shards,
    is still to do. ``damaged`` counts outputs that were set aside. ``absent`` names folders of the run that are gone.
    ``redo`` says which rows of an earlier run are done again, where the others are kept; these count as done.
    """

    run: str
    path: str
    shards: int
    done: int
    running: int
    waiting: int
    failed: int
    rows: int
    rows_done: int
    quarantined: int
    rows_per_second: float
    tokens_per_second: float
    seconds_left: float | None
    workers: list[WorkerStatus] = field(default_factory=list)
    errors: list[LastError] = field(default_factory=list)
    unit: str = "rows"
    time: float = 0.0
    unassembled: bool = False
    unknown_quarantine: int = 0
    damaged: int = 0
    absent: list[str] = field(default_factory=list)
    redo: Redo | None = None

    @property
    def alive(self) -> int:
        """Live workers, each with all its processes as one."""
        return sum(worker.alive and not worker.part_of for worker in self.workers)

    @property
    def finished(self) -> bool:
        return self.done == self.shards and not self.unassembled


def read(path: Path, ttl: float, attempts: int) -> Status:
    """The status of the run at ``path``; ``ttl`` and ``attempts`` are the recipe's lease time and attempts."""
    run, plan = manifest.open_run(path)
    now = now_in(run.leases)
    absent = run.absent_folders(len(plan))
    done, held = _survey(run, len(plan))
    running = {shard for shard, leases in held.items() if _alive(leases, now, ttl)}
    failed = {shard for shard in held.keys() - running if _last(held[shard]).attempt >= attempts}
    workers = [_worker(run, file, opening, now, ttl) for file, opening in ledger.openings(run.ledger)]
    live = [worker for worker in workers if worker.alive]
    rows_done = _rows_done(plan, done, workers)
    rate = sum(worker.rows_per_second for worker in live)
    quarantined, unknown = _quarantined(run, done) if plan.facts.unit == "rows" else (0, 0)
    return Status(
        run=run.name,
        path=str(path),
        shards=len(plan),
        done=len(done),
        running=len(running),
        waiting=len(plan) - len(done) - len(running) - len(failed),
        failed=len(failed),
        rows=plan.facts.rows,
        rows_done=rows_done,
        quarantined=quarantined,
        rows_per_second=rate,
        tokens_per_second=sum(worker.tokens_per_second for worker in live),
        seconds_left=(plan.facts.rows - rows_done) / rate if rate > 0 else None,
        # What dead workers were at is no longer theirs.
        workers=[worker if worker.alive else replace(worker, working_on={}, doing="") for worker in workers],
        errors=_last_errors(run),
        unit=plan.facts.unit,
        time=now,
        unassembled=plan.facts.assembled and not run.final.is_dir(),
        unknown_quarantine=unknown,
        damaged=len(layout.listing(run.damaged)),
        absent=absent,
        redo=plan.facts.redo,
    )


def _quarantined(run: RunDirectory, done: set[int]) -> tuple[int, int]:
    """Rows in quarantine in the finished shards, and the number of shards of which that is not known.

    The last worker that published a shard says how many; where its ledger was lost, the output's footer does, for as
    many as can be read in a moment.
    """
    published: dict[int, tuple[float, int]] = {}
    for file in run.ledger.glob("*.jsonl"):
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            for match in _PUBLISHED.finditer(file.read_bytes()):  # other lines are not parsed
                shard = int(match[2])
                published[shard] = max(published.get(shard, (0.0, 0)), (float(match[1]), int(match[3])))
    unknown = sorted(done - published.keys())
    footers = (_in_footer(run.shard_output(shard)) for shard in unknown[:MOST_FOOTERS])
    counts = [count for count in footers if count is not None]
    known = sum(errors for shard, (_, errors) in published.items() if shard in done)
    return known + sum(counts), len(unknown) - len(counts)


def _in_footer(output: Path) -> int | None:
    """Rows in quarantine of one output; None for a damaged one, which ``hala verify`` names."""
    try:
        footer = pq.read_metadata(output)
        groups = [footer.row_group(index) for index in range(footer.num_row_groups)]
        columns = [(group.num_rows, group.column(group.num_columns - 1)) for group in groups]  # it is the last
        if any(column.path_in_schema != ERROR for _, column in columns):
            return None
        counted = [(rows, column.statistics) for rows, column in columns]
    except (OSError, pa.ArrowException, ValueError):
        return None
    return sum(rows - (statistics.null_count or 0) for rows, statistics in counted if statistics is not None)


def missing(path: Path) -> list[int]:
    """Ids of the shards whose output does not stand yet."""
    run, plan = manifest.open_run(path)
    done, _ = _survey(run, len(plan))
    return [shard for shard in range(len(plan)) if shard not in done]


def retry_failed(path: Path, attempts: int, ttl: float = 0.0) -> int:
    """Forget the attempts of shards that were set aside, so that workers take them up again. Returns how many.

    A shard that a live worker (by ``ttl``) is at for the last time is left to it.
    """
    run, plan = manifest.open_run(path)
    now = now_in(run.leases)
    _, held = _survey(run, len(plan))
    given_up = [
        leases for leases in held.values() if _last(leases).attempt >= attempts and not _alive(leases, now, ttl)
    ]
    for item in itertools.chain(*given_up):
        item.path.unlink(missing_ok=True)
    return len(given_up)


def _survey(run: RunDirectory, shards: int) -> tuple[set[int], dict[int, list[lease.Held]]]:
    held: dict[int, list[lease.Held]] = {}
    done: set[int] = set()
    for folder in layout.folders(shards):
        held |= lease.listed(run, folder)
        done |= layout.finished(run, folder)
    done &= set(range(shards))  # an output of another run may lie there: see ``verify.strangers``
    return done, {shard: leases for shard, leases in held.items() if shard not in done and shard < shards}


def _last(leases: list[lease.Held]) -> lease.Held:
    return max(leases, key=lambda held: held.attempt)


def _alive(leases: list[lease.Held], now: float, ttl: float) -> bool:
    last = _last(leases)
    return not last.failed and _age(last.path, now) < ttl


def _age(path: Path, now: float) -> float:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return now - path.stat().st_mtime
    return float("inf")


def _worker(run: RunDirectory, file: Path, opening: Event, now: float, ttl: float) -> WorkerStatus:
    """What a ledger's first event and last sums say."""
    sums = ledger.counts(ledger.read(file, TAIL_BYTES))
    last: Event = sums[-1] if sums else {}
    since = next((event for event in sums[:-1] if event["time"] >= last["time"] - WINDOW_SECONDS), opening)
    seconds = last["time"] - since["time"] if last else 0.0

    def rate(difference: int) -> float:
        return difference / seconds if seconds > 0 else 0.0

    return WorkerStatus(
        worker=file.stem,
        host=opening["host"],
        job=opening.get("job", ""),
        alive=_age(run.workers / file.stem, now) < ttl,
        rows=last.get("rows", 0),
        quarantined=last.get("quarantined", 0),
        prompt_tokens=last.get("prompt_tokens", 0),
        output_tokens=last.get("output_tokens", 0),
        rows_per_second=rate(last.get("rows", 0) - since.get("rows", 0)),
        tokens_per_second=rate(ledger.tokens(last) - ledger.tokens(since)),
        working_on=last.get("working_on", {}),
        doing=last.get("doing", ""),
        counts={name: value for name, value in last.items() if isinstance(value, int)},
        part_of=opening.get("part_of", ""),
    )


def _rows_done(plan: Manifest, done: set[int], workers: list[WorkerStatus]) -> int:
    rows: list[int] = plan.column("rows")
    kept: list[int] = plan.column("kept")
    inside = Counter[int]()  # of dead workers too: what they finished of a shard is kept for the next
    for worker in workers:
        inside |= Counter({int(shard): count for shard, count in worker.working_on.items()})
    counts = (rows[shard] if shard in done else max(inside[shard], kept[shard]) for shard in range(len(plan)))
    return sum(counts)


def _last_errors(run: RunDirectory, most: int = 5) -> list[LastError]:
    """The last errors; those of the same words once, as the last of them, with their ``count``."""
    errors = [
        LastError({**event, "worker": file.stem, "count": 1})
        for file in run.ledger.glob("*.jsonl")
        for event in ledger.read(file, TAIL_BYTES)
        if event["event"] in ("failed", "crashed", "unreachable")
    ]
    alike: dict[str, LastError] = {}
    for error in sorted(errors, key=lambda error: float(error["time"])):
        words = str(error.get("error", error["event"]))
        if (before := alike.pop(words, None)) is not None:
            error["count"] += before["count"]
        alike[words] = error
    return list(alike.values())[-most:]
