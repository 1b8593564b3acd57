"""A shard of rows on the worker: read its input, write its output, or hold an output against the manifest.

One file holds all rows of a shard. Those that could not be done stand in it with the reason, instead of in a
file of their own: so no kill can come between the two, and "exactly once" holds by construction. Where some rows of a
finished run are done again, as a run of its own, the others are the earlier run's, as they are in Arrow.
"""

import contextlib
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa

from hala_hpc.config.errors import HalaError, first_twice, plural
from hala_hpc.data import bad_rows, schema
from hala_hpc.data.files import readers
from hala_hpc.data.files.readers import Manner
from hala_hpc.data.files.sources import place_of
from hala_hpc.data.schema import Fields, Row
from hala_hpc.run import digests, layout
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.manifest import Facts, Shard
from hala_hpc.run.verify import ShardReport

ROW = "hala_row"
"""Column: the row's number in the run, in source order, from 0."""
ERROR = "hala_error"
"""Column: why the row could not be done; null where it was. ``reason: detail``, counted by reason."""
RESERVED = (ROW, ERROR)
_OF_RUN = re.compile(
    r"^(hala_row|hala_error|hala_truncated|hala_shape|hala_checks|hala_judge|hala_verdict|hala_rejected)(?:_(\d+))?$"
)
CURE = (
    "put the file back as it was and `hala resume`, or say where it is now: `hala resume RUN data.path=…`; "
    "if it is gone for good, plan a new run"
)
Progress = Callable[[Iterator[Shard]], Iterable[Shard]]
"""Passes the shards of a long command on, and shows how far it is."""
KEY = b"hala"
"""Parquet metadata key under which an output says what made it."""


class SourceAway(HalaError):
    """A source is out of reach, which may pass: a file server's fault or a mount's, not the shard's."""


@dataclass(frozen=True)
class Kept:
    """The output of a shard in an earlier run: the rows with the numbers ``again`` are done anew, the others stay."""

    table: pa.Table
    again: frozenset[int]

    def around(self, new: pa.Table) -> pa.Table:
        """A new output with the earlier rows in the places of those that stay."""
        before = self.table.select(new.column_names).cast(new.schema)
        pieces, start = [], 0
        for is_new, numbers in groupby(self.table[ROW].to_pylist(), self.again.__contains__):
            count = len(list(numbers))
            pieces.append((new if is_new else before).slice(start, count))
            start += count
        return pa.concat_tables(pieces)

    @property
    def quarantined(self) -> int:
        """How many of the rows that stay are in quarantine."""
        staying = self.staying(self.table)
        return len(staying) - staying[ERROR].null_count

    def staying(self, table: pa.Table) -> pa.Table:
        """The rows of a table that stay, by their numbers."""
        return table.filter(pa.array([number not in self.again for number in table[ROW].to_pylist()]))


@dataclass(frozen=True)
class ShardInput:
    """The rows of a shard; ``table`` holds them as they go back out. ``kept``: where only some of them are done."""

    shard: Shard
    rows: list[Row]
    table: pa.Table
    kept: Kept | None = None

    def numbered(self) -> Iterator[tuple[int, Row]]:
        """Rows with their numbers in the run."""
        return zip(range(self.shard.start, self.shard.start + self.shard.rows), self.rows, strict=True)

    def to_do(self) -> Iterator[tuple[int, Row]]:
        """Those of them that are to be done."""
        return (pair for pair in self.numbered() if self.kept is None or pair[0] in self.kept.again)


def read_input(run: Path, shard: Shard, facts: Facts) -> ShardInput:
    """Read a shard's rows from their source; where some are done again, from the output of the earlier run.

    Raises SourceAway where that is out of reach, HalaError where it is not as it was when the run was planned.
    """
    if facts.redo is not None:
        return _read_before(run, shard, facts)
    sources = {str(source["path"]): source for source in facts.sources}
    names = list(sources)
    rows: list[Row] = []
    tables: list[pa.Table] = []
    position = shard.position
    for name in names[names.index(shard.source) :]:
        path = place_of(run, name)
        if not path.exists():
            raise SourceAway(f"{path}: gone since the run was planned", CURE)
        with _of_the_disk(path):
            skip = bad_rows.positions(run, name, int(sources[name].get("set_aside", 0)))
            manner = Manner(sources[name].get("columns", {}), lambda: shard.rows - len(rows), skip)
            for chunk in readers.chunks(path, position, manner):
                rows.extend(chunk.rows)
                if chunk.table is not None:
                    tables.append(chunk.table)
        position = 0
        if len(rows) == shard.rows:
            break
    if not _are_planned(shard, rows, tables):
        raise HalaError(f"{shard.source}: changed since the run was planned (shard {shard.id})", CURE)
    whole = schema.load(facts.schema)
    native = sum(table.num_rows for table in tables) == len(rows) and all(table.schema == whole for table in tables)
    return ShardInput(shard, rows, pa.concat_tables(tables) if native else schema.to_table(rows, whole))


def read_kept(run: RunDirectory, shard: Shard, facts: Facts) -> Kept:
    """The earlier output of a shard in which some rows are done again.

    Raises Damaged, naming the file, where one is not what it was.
    """
    own = range(shard.start, shard.start + shard.rows)
    file = before = run.output_before(shard.id)
    try:
        table, _ = read_output(replace(shard, kept=shard.rows), before, facts)
        file = run.again
        numbers: list[Any] = digests.read(file, must_be_sealed=True)[0][ROW].to_pylist()
    except (digests.Damaged, KeyError) as error:
        raise digests.Damaged(f"{file} {error}") from error
    again = frozenset(number for number in numbers if number in own)
    if table[ROW].to_pylist() != list(own) or len(again) != shard.rows - shard.kept:
        raise digests.Damaged(f"{before} and {file} are not those of the plan")
    return Kept(table, again)


def _read_before(path: Path, shard: Shard, facts: Facts) -> ShardInput:
    run = RunDirectory(path, facts.suffix)
    if shard.is_kept:
        cure = "put a whole copy of that run's back: no row of it is to be done again"
        raise HalaError(f"shard {shard.id} is an earlier run's, and {run.shard_output(shard.id)} is gone", cure)
    try:
        kept = read_kept(run, shard, facts)
        table = given_in(kept.table, schema.load(facts.schema))
        rows = schema.to_rows(table)
    except (digests.Damaged, pa.ArrowException) as error:
        cure = "put whole copies of the earlier run's files back"
        raise HalaError(f"shard {shard.id}: {error}", cure) from error
    if not _are_planned(shard, rows, [table]):
        raise HalaError(f"{run.output_before(shard.id)}: changed since the run was planned (shard {shard.id})")
    return ShardInput(shard, rows, table, kept)


def given_in(table: pa.Table, inputs: pa.Schema) -> pa.Table:
    """The input columns of an output. Raises pyarrow.ArrowException where they are of other types."""
    return table.select(as_stored(inputs.names)).rename_columns(inputs.names).cast(inputs)


@contextlib.contextmanager
def _of_the_disk(source: Path) -> Iterator[None]:
    """The disk's own errors, which have a number, become SourceAway; errors of the content stay as they are."""
    try:
        yield
    except (HalaError, OSError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if isinstance(cause, OSError) and cause.errno is not None:
            raise SourceAway(f"{source}: {(cause.strerror or str(cause)).lower()}", CURE) from error
        raise


def write_output(
    path: Path, given: ShardInput, fields: Fields, results: Mapping[int, Row], errors: Mapping[int, str], made_by: bytes
) -> None:
    """Write a shard's output.

    Parameters
    ----------
    fields : the new columns.
    results : new values by row number.
    errors : reasons by row number; every row is in one of the two.
    made_by : JSON that says what made the file.
    """
    numbers = range(given.shard.start, given.shard.start + given.shard.rows)
    added = schema.to_table([results.get(number, {}) for number in numbers], pa.schema(fields))
    table = given.table.rename_columns(as_stored(given.table.column_names))
    for new, column in zip(added.schema, added.columns, strict=True):
        table = table.append_column(new, column)
    table = table.append_column(ROW, pa.array(numbers, pa.int64()))
    table = table.append_column(ERROR, pa.array([errors.get(number) for number in numbers], pa.string()))
    if given.kept is not None:
        table = given.kept.around(table)
    digests.write_table(table.replace_schema_metadata({KEY: made_by}), path)


def read_output(shard: Shard, path: Path, facts: Facts) -> tuple[pa.Table, bool]:
    """An output as it was written for this shard of this run (of an earlier one where that is kept), and whether it is
    sealed.

    Raises digests.Damaged where a byte of it changed, or it was written for another shard or another run.
    """
    table, sealed = digests.read(path, facts.sealed)
    try:
        made_by = {**json.loads((table.schema.metadata or {}).get(KEY, b"{}"))}
    except (ValueError, TypeError) as error:
        raise digests.Damaged("is damaged: it does not say what made it") from error
    if made_by.get("shard", shard.id) != shard.id:
        raise digests.Damaged(f"is the output of shard {made_by['shard']} under another's name")
    earlier = [run["made_by"] for run in facts.redo["earlier"]] if facts.redo and shard.is_kept else [facts.made_by]
    if not any(all(made_by.get(key, value) == value for key, value in run.items()) for run in earlier):
        raise digests.Damaged("was made by another run")
    if lacking := [name for name in RESERVED if name not in table.column_names]:
        raise digests.Damaged(f"lacks the columns {', '.join(lacking)}")
    return table, sealed


RowFaults = Callable[[Row, Row], Iterable[str]]
"""What is wrong with the added columns (the second row) of a row that is done (the first)."""


def check_output(
    shard: Shard, path: Path, facts: Facts, fields: Fields, faults: RowFaults | None = None
) -> ShardReport:
    """Hold an output against its line of the manifest: every row there, once, in order, its input unchanged.

    ``faults`` is asked of each row that is done. Rows that are an earlier run's are held against that run's.
    """
    try:
        table, sealed = read_output(shard, path, facts)
    except digests.Damaged as error:
        return ShardReport(problems=(str(error),))
    if facts.redo is None:
        return check_table(shard, table, sealed, facts, fields, faults)
    if shard.is_kept:
        return check_table(shard, table, sealed, facts, fields)
    try:
        kept = read_kept(layout.run_of(path), shard, facts)
    except digests.Damaged as error:
        return ShardReport(problems=(f"rows that stay cannot be held against the earlier run's: {error}",))
    report = check_table(shard, table, sealed, facts, fields, faults, kept.again)
    if report.problems or _is_same(kept.staying(table), kept.staying(kept.table)):
        return report
    return replace(report, problems=("rows that were to stay are not the earlier run's",))


def check_table(
    shard: Shard,
    table: pa.Table,
    sealed: bool,
    facts: Facts,
    fields: Fields,
    faults: RowFaults | None = None,
    only: Collection[int] | None = None,
) -> ShardReport:
    """``check_output`` of what ``read_output`` gave. ``faults`` is asked of all rows, or only of some, by number."""
    inputs = schema.load(facts.schema)
    names = as_stored(inputs.names)
    absent = [name for name in [*names, *(field.name for field in fields), *RESERVED] if name not in table.column_names]
    if absent:
        return ShardReport(problems=(f"lacks the columns {', '.join(absent)}",))
    numbers = table[ROW].to_pylist()
    problems = list(row_problems(shard, numbers))
    try:
        given = given_in(table, inputs)
        rows = schema.to_rows(given)
    except (pa.ArrowException, ValueError) as error:
        return ShardReport(problems=(f"its columns are of other types: {error}",))
    if not problems and not _are_planned(shard, rows, [given]):
        problems.append("its rows are not those of the source when the run was planned")
    if faults is not None and not problems:
        added = schema.to_rows(table.select([field.name for field in fields]))
        for number, row, new, reason in zip(numbers, rows, added, table[ERROR].to_pylist(), strict=True):
            is_checked = reason is None and (only is None or number in only)
            problems += [f"row {number}: {fault}" for fault in (faults(row, new) if is_checked else ())]
    quarantined = reasons_in(table[ERROR])
    return ShardReport(table.num_rows - quarantined.total(), quarantined, tuple(problems), sealed)


def _are_planned(shard: Shard, rows: list[Row], tables: Sequence[pa.Table]) -> bool:
    """Whether rows are those of the plan. Older commits took columns of JSON for the text that they are to Arrow."""
    if schema.digest_of(rows) == shard.digest:
        return True
    if not any(schema.holds(field.type, schema.is_json) for table in tables for field in table.schema):
        return False
    return schema.digest_of(row for table in tables for row in schema.to_rows(schema.as_text(table))) == shard.digest


def _is_same(table: pa.Table, other: pa.Table) -> bool:
    """Whether two tables hold the same rows. To Arrow no NaN is another; by their digests all are."""
    return bool(table.equals(other)) or schema.digest_of(schema.to_rows(table)) == schema.digest_of(
        schema.to_rows(other)
    )


def reason_of(error: str) -> str:
    """The part of an error by which rows are counted."""
    return error.split(":", 1)[0]


def reasons_in(errors: "pa.ChunkedArray[Any] | pa.Array[Any]") -> Counter[str]:
    """The rows in quarantine that a column of errors shows, by reason."""
    return Counter(map(reason_of, map(str, errors.drop_null().to_pylist())))


def as_stored(names: Sequence[str]) -> list[str]:
    """The names of input columns in an output, whose own ``hala_row`` must not meet that of an earlier run.

    ``hala_row_1`` is the row's number in the run before, ``hala_row_2`` in the one before that; ``hala_error`` and
    the columns that tasks add for themselves likewise.
    """
    if ROW not in names and ERROR not in names:
        return list(names)
    return [_OF_RUN.sub(lambda match: f"{match[1]}_{int(match[2] or 0) + 1}", name) for name in names]


def refuse_reserved(schema: pa.Schema, added: Sequence[str]) -> None:
    """Raises HalaError where the input has a column that the output adds, or has it twice."""
    stored = as_stored(schema.names)
    for names in (stored, added):
        if (twice := first_twice(names)) is not None:
            raise HalaError(f"two columns are named '{twice}'", "see data.columns; or rename one in the data")
    for name in (*RESERVED, *added):
        if name in stored:
            raise HalaError(
                f"column '{name}' is there already, and the output adds one of that name",
                "another task.suffix, or rename it",
            )


def row_problems(shard: Shard, numbers: list[Any]) -> Iterator[str]:
    """What is wrong with the row numbers of an output: lost, twice, of another shard, out of order."""
    expected = range(shard.start, shard.start + shard.rows)
    if numbers == list(expected):
        return
    counts = Counter(numbers)
    lost = [number for number in expected if number not in counts]
    twice = [number for number, count in counts.items() if count > 1]
    strange = [number for number in counts if number not in expected]
    for what, which in (("lost", lost), ("twice", twice), ("of another shard", strange)):
        if which:
            yield f"{plural(len(which), 'row')} {what}, the first is row {which[0]}"
    if not (lost or twice or strange):
        yield "its rows are out of order"
