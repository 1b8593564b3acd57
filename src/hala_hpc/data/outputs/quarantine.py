"""Rows in quarantine: how many an output holds, and how they are taken out of it, to be tried again.

The shard is unfinished once more then, and its other rows are kept as those of a worker that ended.
"""

import secrets
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from hala_hpc.config.errors import HalaError
from hala_hpc.data import schema, shards
from hala_hpc.data.shards import ERROR, ROW, Progress
from hala_hpc.run import appending, digests, lease, manifest
from hala_hpc.run.appending import PartialFile
from hala_hpc.run.files import fsync, make_again
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.manifest import Facts, Shard


@dataclass
class Reopened:
    """``reasons`` counts all rows in quarantine that were seen; ``damaged`` names shards that could not be read."""

    shards: int = 0
    rows: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    damaged: list[int] = field(default_factory=list)


def reopen(path: Path, reason: str, progress: Progress = iter) -> Reopened:
    """Have workers do the rows again that are in quarantine for ``reason`` ('': for any) in finished shards.

    Rows of unfinished shards are left as they are. Raises HalaError for a run that is not one of rows.
    """
    run, plan = manifest.open_run(path)
    if plan.facts.unit != "rows" or plan.facts.suffix != ".parquet":
        raise HalaError(f"{path}: only runs of rows have a quarantine", f"`hala resume {path}`")
    if plan.facts.redo is not None:
        cure = f"`hala redo {path.name} --quarantine` does them in a run of its own"
        raise HalaError(f"{path}: rows of an earlier run are kept in it as they are", cure)
    result = Reopened()
    for shard in progress(iter(plan)):
        if not run.shard_output(shard.id).exists():
            continue
        try:
            reasons = quarantine_of(run.shard_output(shard.id))
            result.reasons += reasons
            again = reasons[reason] if reason else reasons.total()
            if again:
                _reopen(run, shard, plan.facts, reason)
                result.shards += 1
                result.rows += again
        except digests.Damaged:
            result.damaged.append(shard.id)
    return result


def quarantine_of(output: Path) -> Counter[str]:
    """Rows in quarantine by reason; only their column is read. Raises Damaged."""
    try:
        return shards.reasons_in(pq.ParquetFile(output).read(columns=[ERROR])[ERROR])
    except (pa.ArrowException, OSError, KeyError) as error:
        raise digests.Damaged(str(error)) from error


def _reopen(run: RunDirectory, shard: Shard, facts: Facts, reason: str) -> None:
    """Keep the other rows where workers look for them, then move the output there too: it goes when the new one stands.

    A kill between the two leaves the shard finished, and rows that the next sweep drops.
    """
    table, _ = shards.read_output(shard, run.shard_output(shard.id), facts)
    given = shards.as_stored(schema.load(facts.schema).names)
    added = [name for name in table.column_names if name not in given and name not in shards.RESERVED]
    name = f"reopened-{secrets.token_hex(3)}"
    kept = PartialFile(run, shard.id, name)
    rows = zip(table[ROW].to_pylist(), table[ERROR].to_pylist(), schema.to_rows(table.select(added)), strict=True)
    for number, error, new in rows:
        if error is None:
            kept.add({appending.ROW: number, "new": new})
        elif reason and shards.reason_of(error) != reason:
            kept.add({appending.ROW: number, "error": error})
    make_again(run.partial_folder(shard.id))
    kept.flush()
    kept.close()
    output = run.shard_output(shard.id)
    output.rename(run.partial_folder(shard.id) / f"{shard.id:06d}.{name}{run.suffix}")
    fsync(output.parent)
    lease.reopen(run)
