"""Two file formats can be read from their middle, so shards point into them: Parquet and JSON lines.

Everything else becomes one of these first (see ``convert``). A *position* says where a row is: its number in a Parquet
file, the byte at which its line begins in JSONL.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from hala_hpc.config.errors import HalaError, first_twice
from hala_hpc.data import schema as schemas
from hala_hpc.data import unify
from hala_hpc.data.files.opening import BOM
from hala_hpc.data.schema import Row

CHUNK_ROWS = 2_000
"""Rows held at once while reading."""
MAGIC = b"PAR1"


_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED = (b"\\u0022", b"\\u003a", b"\\u003A")
_SPACED_KEY = re.compile(rb'"[ \t\r\n]+:')
NAN = "rows with NaN or Infinity, which are not JSON: read as null"
HALF = "rows with half a surrogate pair: replaced by U+FFFD"

OnBad = Callable[[int, int, HalaError], None]
"""Called with a bad row: its number in the file from 1, its position, and what is wrong."""


@dataclass(frozen=True)
class Chunk:
    """Some rows of one file, and where each of them is. ``table`` is there when the file is Parquet.

    ``numbers`` counts from 1: in JSONL the lines, in Parquet the rows.
    """

    positions: list[int]
    rows: list[Row]
    table: pa.Table | None = None
    numbers: Sequence[int] = ()

    def schema(self, without: Collection[int] = ()) -> pa.Schema:
        """The schema of these rows alone, but for those at some places; integers that no float holds are marked."""
        kept = [place for place in range(len(self.rows)) if place not in without]
        if self.table is None:
            return unify.infer([self.rows[place] for place in kept])
        return unify.marked(self.table.take(pa.array(kept, pa.int64())) if without else self.table)

    def only(self, places: Sequence[int]) -> "Chunk":
        """The rows at some places alone."""
        table = None if self.table is None else self.table.take(pa.array(places, pa.int64()))
        numbers = [self.numbers[place] for place in places] if self.numbers else ()
        return Chunk([self.positions[p] for p in places], [self.rows[p] for p in places], table, numbers)


@dataclass(frozen=True)
class Manner:
    """How a file is read: the same when it is planned and when a worker reads it again.

    ``columns`` are added to each row that has none of the name; rows at the positions ``skip`` are passed over.
    Reading ends where no more rows are ``wanted``, and nothing behind them is looked at.
    While planning ``on_bad`` takes the rows that cannot be read (without it the first one raises), and ``notes``
    counts what was mended. ``lines_before`` the position there are so many lines.
    """

    columns: Mapping[str, str | None] = field(default_factory=dict)
    wanted: Callable[[], int] = lambda: CHUNK_ROWS
    skip: Collection[int] = frozenset()
    on_bad: OnBad | None = None
    notes: Counter[str] | None = None
    lines_before: int = 0


def chunks(path: Path, position: int = 0, manner: Manner = Manner()) -> Iterator[Chunk]:
    """Rows of a Parquet or JSONL file from ``position`` on, in order. Raises HalaError naming file and line."""
    on_bad = manner.on_bad or partial(_raise, path, position)
    read = _parquet_chunks if is_parquet(path) else _jsonl_chunks
    return read(path, position, manner, on_bad)


def _raise(path: Path, start: int, number: int, position: int, error: HalaError) -> None:
    """Line numbers are known only where the file was read from its beginning."""
    parquet = is_parquet(path)
    where = f"{path}: row {number}" if parquet else f"{path} at byte {position}" if start else f"{path}:{number}"
    raise HalaError(f"{where}: {error.message}", error.hint) from error


def is_parquet(path: Path) -> bool:
    """By its ending or, under another name, by its first bytes."""
    if path.suffix == ".parquet":
        return True
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _jsonl_chunks(path: Path, position: int, manner: Manner, on_bad: OnBad) -> Iterator[Chunk]:
    positions: list[int] = []
    rows: list[Row] = []
    numbers: list[int] = []
    most = min(CHUNK_ROWS, manner.wanted())
    with path.open("rb") as file:
        file.seek(position)
        for number, line in enumerate(file, manner.lines_before + 1):
            if line.strip() and position not in manner.skip:
                try:
                    row = parse_row(line, manner.notes)
                except HalaError as error:
                    on_bad(number, position, error)
                else:
                    rows.append(row | {name: value for name, value in manner.columns.items() if name not in row})
                    positions.append(position)
                    numbers.append(number)
            position += len(line)
            if len(rows) == most:
                yield Chunk(positions, rows, None, numbers)
                positions, rows, numbers = [], [], []
                if (most := min(CHUNK_ROWS, manner.wanted())) <= 0:
                    return
    if rows:
        yield Chunk(positions, rows, None, numbers)


def parse_row(line: bytes, notes: Counter[str] | None = None) -> Row:
    """One JSON object. Raises HalaError for anything else; NaN and halves of surrogate pairs are mended and counted."""
    line = line.removeprefix(BOM)
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        row = _mended(line, error, notes)
    else:
        try:
            again = orjson.dumps(row)
        except TypeError as error:
            raise HalaError("nested more than 254 deep", "remove this line") from error
        # A key that was there twice is not written again, so then there are fewer ends of keys.
        is_escaped = b"\\u00" in line and any(sign in line for sign in _ESCAPED)
        may_be_twice = is_escaped or line.count(b'":') != again.count(b'":') or _SPACED_KEY.search(line)
        if may_be_twice or schemas.has_long_number(line):
            json.loads(line, object_pairs_hook=_once, parse_int=_integer)
    if not isinstance(row, dict):
        raise HalaError(f"a row is a JSON object, this is {what(row)}")
    return row


def _mended(line: bytes, error: orjson.JSONDecodeError, notes: Counter[str] | None) -> Any:
    """What Python's own parser reads and orjson does not. Raises HalaError."""
    strange: set[str] = set()

    def constant(_: str) -> None:
        strange.add(NAN)

    def text(value: Any) -> Any:
        if isinstance(value, str):
            mended = _SURROGATE.sub("\ufffd", value)
            strange.update({HALF} if mended != value else ())
            return mended
        if isinstance(value, list):
            return [text(item) for item in value]
        return {text(key): text(item) for key, item in value.items()} if isinstance(value, dict) else value

    try:
        options: Any = {"parse_constant": constant, "parse_int": _integer, "parse_float": _float}
        row = text(json.loads(line.decode(), object_pairs_hook=_once, **options))
    except UnicodeDecodeError as wrong:
        byte = f"byte 0x{line[wrong.start]:02x} at byte {wrong.start + 1} of the line"
        raise HalaError(f"not UTF-8: {byte}", "data.encoding names another, for example windows-1252") from wrong
    except (json.JSONDecodeError, RecursionError):
        strange.clear()
    if not strange:
        raise HalaError(f"not valid JSON: {error.msg} (at character {error.pos + 1})", "mend or remove this line")
    if notes is not None:
        notes.update(strange)
    return row


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        twice = first_twice(key for key, _ in pairs)
        raise HalaError(f"the key '{twice}' is there twice", "rename or remove one")
    return row


def _float(digits: str) -> float:
    if math.isinf(value := float(digits)):
        raise HalaError(f"the number {digits} does not fit 64 bits", "make it a text")
    return value


def what(value: Any) -> str:
    """A value's type, as people who know JSON call it."""
    names: dict[type, str] = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    names |= {int: "a number", float: "a number", type(None): "null"}
    return names.get(type(value), f"a {type(value).__name__}")


def _integer(digits: str) -> int:
    """Orjson would make a float, and lose digits, of what 64 bits do not hold."""
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**64:
        raise HalaError(f"the number {digits[:40]} does not fit 64 bits", "make it a text")
    return int(digits)


def _parquet_chunks(path: Path, position: int, manner: Manner, on_bad: OnBad) -> Iterator[Chunk]:
    try:
        with pq.ParquetFile(path) as file:
            refuse_doubled(file.schema_arrow, path)
            for table in _tables_from(file, position):
                for name, value in manner.columns.items():
                    if name not in table.column_names:
                        table = table.append_column(name, pa.array([value] * table.num_rows, pa.string()))
                while table.num_rows and (most := min(CHUNK_ROWS, manner.wanted())) > 0:
                    yield from _taken(table.slice(0, most), position, manner.skip, on_bad)
                    position += min(most, table.num_rows)
                    table = table.slice(most)
                if table.num_rows:
                    return
    except (pa.ArrowException, OSError, MemoryError) as error:
        if isinstance(error, FileNotFoundError):
            raise HalaError(f"{path}: no such file") from error
        raise HalaError(f"{path}: not readable as Parquet: {' '.join(str(error).split())}") from error


def refuse_doubled(schema: pa.Schema, path: Path) -> None:
    """Raises HalaError where a column, or a field of one at any depth, is there twice."""
    if (twice := _doubled(pa.struct(list(schema)))) is not None:
        raise HalaError(f"{path}: two columns are named '{twice}'", "rename one in the data")


def _doubled(kind: pa.DataType, before: str = "") -> str | None:
    fields = [kind.field(place) for place in range(kind.num_fields)]
    if (twice := first_twice(field.name for field in fields)) is not None:
        return before + twice
    inner = (_doubled(field.type, f"{before}{field.name}.") for field in fields)
    return next((name for name in inner if name is not None), None)


def _tables_from(file: pq.ParquetFile, position: int) -> Iterator[pa.Table]:
    """The rows from ``position`` on. Group by group: pyarrow cannot put nested dictionaries of two into one batch."""
    skip = position
    for group in range(file.num_row_groups):
        if skip >= (rows := file.metadata.row_group(group).num_rows):
            skip -= rows
            continue
        for batch in file.iter_batches(CHUNK_ROWS, row_groups=[group]):
            table = pa.Table.from_batches([batch]).replace_schema_metadata(None)
            yield table.slice(skip)
            skip = max(0, skip - table.num_rows)


def _taken(table: pa.Table, start: int, skip: Collection[int], on_bad: OnBad) -> Iterator[Chunk]:
    """The rows of a table as a chunk; those that are passed over, or hold a value not of their type, left out."""
    positions = [position for position in range(start, start + table.num_rows) if position not in skip]
    kept = table
    if len(positions) < table.num_rows:
        kept = table.take(pa.array([position - start for position in positions], pa.int64()))
    try:
        rows = schemas.to_rows(kept)
    except (ValueError, OverflowError):  # text that is not UTF-8, a year 20000: which row is it?
        errors = {position: _error_in(table.slice(position - start, 1)) for position in positions}
        bad = {position: error for position, error in errors.items() if error is not None}
        for position, error in bad.items():
            on_bad(position + 1, position, error)
        yield from _taken(table, start, {*skip, *bad}, on_bad)
        return
    if rows:
        yield Chunk(positions, rows, kept, [position + 1 for position in positions])


def _error_in(table: pa.Table) -> HalaError | None:
    for name in table.column_names:
        try:
            schemas.to_rows(table.select([name]))
        except (ValueError, OverflowError) as error:
            why, column = " ".join(str(error).split()), f"column '{name}'"
            return HalaError(
                why if why.startswith(column) else f"{column} holds what is not a value of its type: {why}"
            )
    return None
