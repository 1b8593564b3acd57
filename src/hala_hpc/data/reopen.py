"""Rows in quarantine tried again: the finished shards that hold them are unfinished once more.

The other rows of such a shard are kept, as rows that an earlier worker had finished.
"""

import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from hala_hpc.config.errors import HalaError
from hala_hpc.data import shards
from hala_hpc.data.arrow import schema
from hala_hpc.data.shards import ERROR, RESERVED, ROW, reason_of
from hala_hpc.run import layout, manifest, partial, seal
from hala_hpc.run.files import fsync
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.manifest import Facts, Shard
from hala_hpc.run.partial import PartialFile


@dataclass
class Reopened:
    """``reasons`` counts all rows in quarantine that were seen; ``damaged`` names shards that could not be read."""

    shards: int = 0
    rows: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    damaged: list[int] = field(default_factory=list)


def reopen(path: Path, reason: str, progress: Callable[[Iterator[Shard]], Iterable[Shard]] = iter) -> Reopened:
    """Have workers do the rows again that are in quarantine for ``reason`` ('': for any) in finished shards.

    Rows of unfinished shards are left as they are. Raises HalaError for a run that is not one of rows.
    """
    plan = manifest.read(path / "manifest.parquet")
    if plan.facts.unit != "rows" or plan.facts.suffix != ".parquet":
        raise HalaError(f"{path}: only runs of rows have a quarantine", f"`hala resume {path}`")
    run = RunDirectory(path, plan.facts.suffix)
    result = Reopened()
    for shard in progress(iter(plan)):
        if not run.shard_output(shard.id).exists():
            continue
        try:
            reasons = _reasons(run.shard_output(shard.id))
            result.reasons += reasons
            again = reasons[reason] if reason else reasons.total()
            if again:
                _reopen(run, shard, plan.facts, reason)
                result.shards += 1
                result.rows += again
        except seal.Damaged:
            result.damaged.append(shard.id)
    return result


def _reasons(output: Path) -> Counter[str]:
    """Rows in quarantine by reason; only their column is read."""
    try:
        errors = pq.ParquetFile(output).read(columns=[ERROR])[ERROR].drop_null()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise seal.Damaged(str(error)) from error
    return Counter(reason_of(str(text)) for text in errors.to_pylist())


def _reopen(run: RunDirectory, shard: Shard, facts: Facts, reason: str) -> None:
    """Keep the other rows where workers look for them, then move the output there too: it goes when the new one stands.

    A kill between the two leaves the shard finished, and rows that the next sweep drops.
    """
    table, _ = shards.read_output(shard, run.shard_output(shard.id), facts)
    given = shards.as_stored(schema.load(facts.schema).names)
    added = [name for name in table.column_names if name not in given and name not in RESERVED]
    name = f"reopened-{secrets.token_hex(3)}"
    kept = PartialFile(run, shard.id, name)
    rows = zip(table[ROW].to_pylist(), table[ERROR].to_pylist(), schema.to_rows(table.select(added)), strict=True)
    for number, error, new in rows:
        if error is None:
            kept.add({partial.ROW: number, "new": new})
        elif reason and reason_of(error) != reason:
            kept.add({partial.ROW: number, "error": error})
    layout.make_again(run.partial_folder(shard.id))
    kept.flush()
    kept.close()
    fsync(run.partial_folder(shard.id))
    output = run.shard_output(shard.id)
    output.rename(run.partial_folder(shard.id) / f"{shard.id:06d}.{name}{run.suffix}")
    fsync(output.parent)
