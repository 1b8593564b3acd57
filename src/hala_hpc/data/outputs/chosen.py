"""Rows of a run that a person picks: by a condition, by why they are in quarantine, and a few of them by a seed."""

import hashlib
import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hala_hpc.config.errors import HalaError
from hala_hpc.data import schema
from hala_hpc.data.schema import Row
from hala_hpc.data.shards import ERROR, ROW, Progress, reason_of
from hala_hpc.data.where import Where
from hala_hpc.run import digests, manifest


@dataclass(frozen=True)
class Choice:
    """Rows that are done and fulfil the condition ``where``, and rows in quarantine for the reason ``quarantine``.

    None: no such rows; both None: all rows that are done. '' is any reason.
    """

    where: str | None = None
    quarantine: str | None = None

    def columns(self, whole: pa.Schema) -> list[str]:
        """What it looks at in outputs of a schema. Raises HalaError for a condition that does not fit it."""
        looked_at = [] if self.where is None else Where(self.where, whole).columns
        return list(dict.fromkeys([*looked_at, ROW, ERROR]))

    def positions(self, table: pa.Table, whole: pa.Schema) -> list[int]:
        """Where in a table of at least its ``columns`` the chosen rows stand. Raises HalaError as ``Where``."""
        where = None if self.where is None else Where(self.where, whole)
        rows = schema.to_rows(table.select(self.columns(whole)))
        return [at for at, row in enumerate(rows) if self._takes(row, where)]

    def _takes(self, row: Row, where: Where | None) -> bool:
        if row[ERROR] is not None:
            return self.quarantine is not None and self.quarantine in ("", reason_of(row[ERROR]))
        return self.quarantine is None if where is None else where.holds(row)


@dataclass(frozen=True)
class SampledRow:
    """A row of an output, as a table of one row, and the shard that it stands in."""

    shard: int
    table: pa.Table

    @property
    def row(self) -> Row:
        return schema.to_rows(self.table)[0]


@dataclass
class Sample:
    """``chosen`` of the ``seen`` rows fulfil what was asked for, and some of them are here, in their order.

    ``missing`` counts shards that are not finished; ``damaged`` names those that cannot be read.
    """

    rows: list[SampledRow] = field(default_factory=list)
    chosen: int = 0
    seen: int = 0
    missing: int = 0
    damaged: list[int] = field(default_factory=list)


def sample(path: Path, choice: Choice, count: int, seed: int, progress: Progress = iter) -> Sample:
    """Up to ``count`` of the chosen rows of all finished shards, which are those whose number and the seed have the
    lowest hashes: more shards add rows, and change no others' places.

    Raises HalaError for a run whose shards are not rows, for one without a finished shard, and for a bad condition.
    """
    run, plan = manifest.open_run(path)
    if plan.facts.unit != "rows" or plan.facts.suffix != ".parquet":
        raise HalaError(f"{path}: has no rows to show: it counts {plan.facts.unit}", f"`hala report {path.name}`")
    result = Sample()

    def chosen() -> Iterator[tuple[bytes, int, int, int]]:
        for shard in progress(iter(plan)):
            if not run.shard_output(shard.id).exists():
                result.missing += 1
                continue
            try:
                file = pq.ParquetFile(run.shard_output(shard.id))
                whole = file.schema_arrow
                table = file.read(columns=choice.columns(whole), use_threads=False)
            except (pa.ArrowException, OSError, KeyError):
                result.damaged.append(shard.id)
                continue
            result.seen += table.num_rows
            numbers: list[Any] = table[ROW].to_pylist()
            for at in choice.positions(table, whole):
                result.chosen += 1
                yield draw(seed, numbers[at]), numbers[at], shard.id, at

    drawn = sorted(heapq.nsmallest(count, chosen()), key=lambda place: place[1])
    if result.missing == len(plan):
        raise HalaError(f"{path}: no shard is finished yet", f"`hala status {path.name}`")
    known: dict[int, pa.Table] = {}
    for _, _, shard_id, at in drawn:
        if shard_id not in known:
            try:
                known = {shard_id: digests.read(run.shard_output(shard_id))[0]}
            except digests.Damaged:
                result.damaged += [] if shard_id in result.damaged else [shard_id]
                continue
        result.rows.append(SampledRow(shard_id, known[shard_id].slice(at, 1)))
    return result


def draw(seed: int, number: int) -> bytes:
    """By what rows are drawn: the lowest first."""
    return hashlib.blake2b(f"{seed}:{number}".encode(), digest_size=8).digest()
