"""How far a run is, read from its directory alone: any time, by anybody, from any host."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hala_hpc.run import layout, lease, ledger, manifest
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.manifest import Manifest

TAIL_BYTES = 64 * 1024
"""How much of each ledger's end is read: enough for some minutes of progress and the last errors."""
MOST_FOOTERS = 200
"""Outputs opened for what a lost ledger would have told."""
ERROR = "hala_error"
"""Column of an output that says why a row could not be done (see ``data.shards``)."""
_PUBLISHED = re.compile(rb'{"event": "published", "time": ([0-9.]+), "shard": ([0-9]+),[^\n]*"errors": ([0-9]+)')
WINDOW_SECONDS = 300.0
"""Rates are taken over so long a time."""


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
    errors: list[dict[str, Any]] = field(default_factory=list)
    unit: str = "rows"
    time: float = 0.0
    unassembled: bool = False
    unknown_quarantine: int = 0
    damaged: int = 0
    absent: list[str] = field(default_factory=list)

    @property
    def alive(self) -> int:
        """Live workers, each with all its processes as one."""
        return sum(worker.alive and not worker.part_of for worker in self.workers)

    @property
    def finished(self) -> bool:
        return self.done == self.shards and not self.unassembled


def read(path: Path, ttl: float, attempts: int) -> Status:
    """The status of the run at ``path``; ``ttl`` and ``attempts`` are the recipe's lease time and attempts."""
    plan = manifest.read(path / "manifest.parquet")
    run = RunDirectory(path, plan.facts.suffix)
    now = lease.server_now(run)
    absent = run.absent_folders(len(plan))
    done, held = _survey(run, len(plan))
    running = {shard for shard, leases in held.items() if _alive(leases, now, ttl)}
    failed = {shard for shard in held.keys() - running if max(one.attempt for one in held[shard]) >= attempts}
    workers = [worker for file in sorted(run.ledger.glob("*.jsonl")) if (worker := _worker(run, file, now, ttl))]
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
        # What the dead were at is theirs no longer.
        workers=[worker if worker.alive else replace(worker, working_on={}, doing="") for worker in workers],
        errors=_last_errors(run),
        unit=plan.facts.unit,
        time=now,
        unassembled=plan.facts.assembled and not run.final.is_dir(),
        unknown_quarantine=unknown,
        damaged=len(layout.listing(run.damaged)),
        absent=absent,
    )


def _quarantined(run: RunDirectory, done: set[int]) -> tuple[int, int]:
    """Rows in quarantine in the finished shards, and the number of shards of which that is not known.

    Of each shard the last worker that published it tells; where its ledger was lost, the output's footer, of so many
    as can be read in a moment.
    """
    told: dict[int, tuple[float, int]] = {}
    for file in run.ledger.glob("*.jsonl"):
        for time, shard, errors in _published(file):
            told[shard] = max(told.get(shard, (0.0, 0)), (time, errors))
    unknown = sorted(done - told.keys())
    footers = (_in_footer(run.shard_output(shard)) for shard in unknown[:MOST_FOOTERS])
    found = [count for count in footers if count is not None]
    known = sum(errors for shard, (_, errors) in told.items() if shard in done)
    return known + sum(found), len(unknown) - len(found)


def _published(file: Path) -> Iterator[tuple[float, int, int]]:
    """Time, shard and rows in quarantine of each output that a worker published; other lines are not parsed."""
    try:
        content = file.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        return
    for found in _PUBLISHED.finditer(content):
        yield float(found[1]), int(found[2]), int(found[3])


def _in_footer(output: Path) -> int | None:
    """Rows in quarantine of one output; None of one that is damaged, which ``hala verify`` tells."""
    import pyarrow as pa
    import pyarrow.parquet as pq

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
    plan = manifest.read(path / "manifest.parquet")
    done, _ = _survey(RunDirectory(path, plan.facts.suffix), len(plan))
    return [shard for shard in range(len(plan)) if shard not in done]


def retry_failed(path: Path, attempts: int, ttl: float = 0.0) -> int:
    """Forget the attempts of shards that were set aside, so that workers take them up again. Returns how many.

    A shard that a live worker (by ``ttl``) is at for the last time is left to it.
    """
    plan = manifest.read(path / "manifest.parquet")
    run = RunDirectory(path, plan.facts.suffix)
    now = lease.server_now(run)
    count = 0
    for folder in layout.folders(len(plan)):
        for leases in lease.unfinished(run, folder).values():
            last = max(leases, key=lambda one: one.attempt)
            if last.attempt >= attempts and not _alive(leases, now, ttl):
                count += 1
                for one in leases:
                    one.path.unlink(missing_ok=True)
    return count


def _survey(run: RunDirectory, shards: int) -> tuple[set[int], dict[int, list[lease.Held]]]:
    held: dict[int, list[lease.Held]] = {}
    done: set[int] = set()
    for folder in layout.folders(shards):
        held |= lease.listed(run, folder)
        done |= layout.finished(run, folder)
    done &= set(range(shards))  # an output of another run may lie there: see ``verify.strangers``
    return done, {shard: leases for shard, leases in held.items() if shard not in done and shard < shards}


def _alive(leases: list[lease.Held], now: float, ttl: float) -> bool:
    last = max(leases, key=lambda one: one.attempt)
    return not last.failed and _age(last.path, now) < ttl


def _age(path: Path, now: float) -> float:
    try:
        return now - path.stat().st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return float("inf")


def _worker(run: RunDirectory, file: Path, now: float, ttl: float) -> WorkerStatus | None:
    """What a ledger's first event and last progress events tell; None for a ledger that is no worker's."""
    opening = ledger.first(file)
    if "host" not in opening:
        return None
    events = [event for event in ledger.read(file, TAIL_BYTES) if "rows" in event and "output_tokens" in event]
    last = events[-1] if events else {}
    since = next((event for event in events if event["time"] >= last["time"] - WINDOW_SECONDS), opening)
    if since is last:
        since = opening
    seconds = last["time"] - since["time"] if last else 0.0

    def rate(*keys: str) -> float:
        return sum(last.get(key, 0) - since.get(key, 0) for key in keys) / seconds if seconds > 0 else 0.0

    return WorkerStatus(
        worker=file.stem,
        host=opening["host"],
        job=opening.get("job", ""),
        alive=_age(run.workers / file.stem, now) < ttl,
        rows=last.get("rows", 0),
        quarantined=last.get("quarantined", 0),
        prompt_tokens=last.get("prompt_tokens", 0),
        output_tokens=last.get("output_tokens", 0),
        rows_per_second=rate("rows"),
        tokens_per_second=rate("prompt_tokens", "output_tokens"),
        working_on=last.get("working_on", {}),
        doing=last.get("doing", ""),
        counts={name: value for name, value in last.items() if isinstance(value, int)},
        part_of=opening.get("part_of", ""),
    )


def _rows_done(plan: Manifest, done: set[int], workers: list[WorkerStatus]) -> int:
    rows: list[int] = plan.column("rows")
    inside: dict[int, int] = {}  # of dead workers too: what they finished of a shard is kept for the next
    for shard, count in (item for worker in workers for item in worker.working_on.items()):
        inside[int(shard)] = max(count, inside.get(int(shard), 0))
    return sum(rows[shard] for shard in done) + sum(count for shard, count in inside.items() if shard not in done)


def _last_errors(run: RunDirectory, most: int = 5) -> list[dict[str, Any]]:
    """Those of the same words once, with their ``count``, as the last of them."""
    errors = [
        {"worker": file.stem, **event}
        for file in run.ledger.glob("*.jsonl")
        for event in ledger.read(file, TAIL_BYTES)
        if event["event"] in ("failed", "crashed", "unreachable")
    ]
    alike: dict[str, dict[str, Any]] = {}
    for event in sorted(errors, key=lambda event: float(event["time"])):
        words = str(event.get("error", event["event"]))
        before = alike.pop(words, None)
        alike[words] = event | {"count": 1 + (before["count"] if before else 0)}
    return list(alike.values())[-most:]
