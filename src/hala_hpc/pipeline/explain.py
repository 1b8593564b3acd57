"""How one row of a run came to be: what was asked for it, and what became of each answer."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Recipe
from hala_hpc.data import schema as schemas
from hala_hpc.data import shards
from hala_hpc.data.schema import Row
from hala_hpc.data.shards import ERROR, ROW
from hala_hpc.engines.base import Request
from hala_hpc.pipeline import lookup
from hala_hpc.run import digests, manifest
from hala_hpc.run.manifest import Manifest, Shard
from hala_hpc.worker import registry
from hala_hpc.worker.rows.task import KeepsRequests, RowError, RowTask, RowWork


@dataclass(frozen=True)
class Explained:
    """A row of the output of ``shard``, as a table of one row, with the recipe that it was done by.

    ``sent`` are the requests that it took, each with what is known of its answer. ``is_whole``: they are all of them;
    else the first alone, for a run keeps no more of rows that ask once, or that are in quarantine.
    """

    run: Path
    shard: Shard
    made_by: dict[str, str]
    recipe: Recipe
    table: pa.Table
    sent: list[tuple[Request, Row]]
    is_whole: bool


def explain(path: Path, number: int) -> Explained:
    """How the row of a number came to be; where another run did it, of which this one redoes others, in that run.

    Raises HalaError for a run without rows, a number that it does not have, and a shard that is not finished.
    """
    run, plan = manifest.open_run(path)
    if plan.facts.unit != "rows" or plan.facts.suffix != ".parquet":
        raise HalaError(f"{path}: has no rows to explain: it counts {plan.facts.unit}", f"`hala report {path.name}`")
    if not 0 <= number < plan.facts.rows:
        raise HalaError(f"{path}: has no row {number:,}", f"its rows are 0 to {plan.facts.rows - 1:,}")
    shard = _shard_with(plan, number)
    output = run.shard_output(shard.id)
    if not output.exists():
        raise HalaError(f"row {number:,}: its shard {shard.id} is not finished", f"`hala status {path.name}`")
    try:
        if (redo := plan.facts.redo) is not None:
            stays = shard.is_kept or number not in shards.read_kept(run, shard, plan.facts).again
            if stays and (earlier := Path(redo["path"])).is_dir():
                return explain(earlier, number)
        whole, _ = digests.read(output)
    except digests.Damaged as error:
        raise HalaError(f"shard {shard.id} of {path}: {error}", f"`hala verify {path.name}`") from error
    recipe = lookup.thawed(path)
    task = registry.create(recipe)
    assert isinstance(task, RowTask)
    table = whole.slice(whole[ROW].to_pylist().index(number), 1)
    inputs = schemas.load(plan.facts.schema)
    (given,) = schemas.to_rows(shards.given_in(table, inputs))
    (row,) = schemas.to_rows(table)
    work = task.work_on(inputs)
    if isinstance(work, KeepsRequests) and row[ERROR] is None:
        return Explained(path, shard, plan.facts.made_by, recipe, table, list(work.sent(given, row)), True)
    first: list[tuple[Request, Row]] = [(request, {}) for request in _first(work, given)]
    return Explained(path, shard, plan.facts.made_by, recipe, table, first, False)


def _shard_with(plan: Manifest, number: int) -> Shard:
    starts = plan.column("start")
    return plan[max(at for at, start in enumerate(starts) if start <= number)]


def _first(work: RowWork, row: Row) -> Iterator[Request]:
    try:
        yield from next(work.do(row), [])
    except RowError:
        return
