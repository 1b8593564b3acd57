"""How far a run is, read from its directory alone: any time, by anybody, from any host."""

import contextlib
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hala_hpc.run import endings as ledgers
from hala_hpc.run import layout, lease, ledger, manifest
from hala_hpc.run.endings import Ending
from hala_hpc.run.files import now_in
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.ledger import Event
from hala_hpc.run.lineage import Redo
from hala_hpc.run.manifest import Manifest

MOST_FOOTERS = 200
"""Outputs opened for what a lost ledger would have said."""
ERROR = "hala_error"
"""Column of an output that says why a row could not be done (see ``data.shards``)."""
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
    endings = list(ledgers.read(run.ledger, WINDOW_SECONDS))
    workers = [_worker(run, ending, now, ttl) for ending in endings if ending.opening]
    live = [worker for worker in workers if worker.alive]
    rows_done = _rows_done(plan, done, workers)
    rate = sum(worker.rows_per_second for worker in live)
    quarantined, unknown = _quarantined(run, done, endings) if plan.facts.unit == "rows" else (0, 0)
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
        errors=_last_errors(endings),
        unit=plan.facts.unit,
        time=now,
        unassembled=plan.facts.assembled and not run.final.is_dir(),
        unknown_quarantine=unknown,
        damaged=len(layout.listing(run.damaged)),
        absent=absent,
        redo=plan.facts.redo,
    )


def _quarantined(run: RunDirectory, done: set[int], endings: Sequence[Ending]) -> tuple[int, int]:
    """Rows in quarantine in the finished shards, and the number of shards of which that is not known.

    Workers' own sums say how many, where these add up to what is finished. Else (an output was set aside, a ledger was
    lost, or is of an earlier version) ledgers are read whole: the last worker that published a shard says it. Where no
    ledger does, the output's footer, for as many as can be read in a moment.
    """
    sums = [ending.published for ending in endings if ending.published is not None]
    is_once = len(sums) == len(endings) and not (run.leases / lease.REOPENED).exists()
    if is_once and sum(shards for shards, _ in sums) == len(done):
        return sum(errors for _, errors in sums), 0
    published: dict[int, tuple[float, int]] = {}
    for ending in endings:
        for shard, time, errors in ledgers.published(ending.file):
            published[shard] = max(published.get(shard, (0.0, 0)), (time, errors))
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
    # An output of another run may lie there: see ``verify.strangers``.
    done = done if len(done) <= shards and max(done, default=0) < shards else done & set(range(shards))
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


def _worker(run: RunDirectory, ending: Ending, now: float, ttl: float) -> WorkerStatus:
    """What a ledger's first event and last sums say."""
    file, opening, last, since = ending.file, ending.opening, ending.last, ending.since
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
    rows, counted = plan.numbers("rows"), plan.numbers("kept").copy()
    inside = Counter[int]()  # of dead workers too: what they finished of a shard is kept for the next
    for worker in workers:
        inside |= Counter({int(shard): count for shard, count in worker.working_on.items()})
    for shard, count in inside.items():
        if shard < len(counted):
            counted[shard] = max(counted[shard], count)
    finished = np.fromiter(done, np.int64, len(done))
    counted[finished] = rows[finished]
    return int(counted.sum())


def _last_errors(endings: Sequence[Ending], most: int = 5) -> list[LastError]:
    """The last errors; those of the same words once, as the last of them, with their ``count``."""
    errors = [
        LastError({**event, "worker": ending.file.stem, "count": 1}) for ending in endings for event in ending.errors
    ]
    alike: dict[str, LastError] = {}
    for error in sorted(errors, key=lambda error: float(error["time"])):
        words = str(error.get("error", error["event"]))
        if (before := alike.pop(words, None)) is not None:
            error["count"] += before["count"]
        alike[words] = error
    return list(alike.values())[-most:]
