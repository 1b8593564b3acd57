"""Two file formats can be read from their middle, so shards point into them: Parquet and JSON lines.

Everything else becomes one of these first (see ``convert``). A *position* says where a row is: its number in a Parquet
file, the byte at which its line begins in JSONL.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from hala_hpc.config.errors import HalaError
from hala_hpc.data import infer
from hala_hpc.data import schema as schemas
from hala_hpc.data.digest import Row

CHUNK_ROWS = 2_000
"""Rows held at once while reading."""
BOM = b"\xef\xbb\xbf"
"""What some editors put before UTF-8; no part of the text."""
OPENING = 1024
"""Bytes in which the first character that is no space is looked for."""
MAGIC = b"PAR1"


@dataclass(frozen=True)
class Chunk:
    """Some rows of one file, and where each of them is. ``table`` is there when the file is Parquet."""

    positions: list[int]
    rows: list[Row]
    table: pa.Table | None = None

    def cut(self, rows: int) -> "Chunk":
        """The first so many rows."""
        table = self.table.slice(0, rows) if self.table is not None else None
        return Chunk(self.positions[:rows], self.rows[:rows], table)

    def schema(self) -> pa.Schema:
        """Of these rows alone; columns of integers that no float holds are marked."""
        return infer.marked(self.table) if self.table is not None else infer.infer(self.rows)


def chunks(path: Path, position: int = 0) -> Iterator[Chunk]:
    """Rows of a Parquet or JSONL file from ``position`` on, in order. Raises HalaError naming file and line."""
    return _parquet_chunks(path, position) if is_parquet(path) else _jsonl_chunks(path, position)


def is_parquet(path: Path) -> bool:
    """By its ending or, under another name, by its first bytes."""
    if path.suffix == ".parquet":
        return True
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _jsonl_chunks(path: Path, position: int) -> Iterator[Chunk]:
    positions: list[int] = []
    rows: list[Row] = []
    from_start = position == 0  # else line numbers are not known
    with path.open("rb") as file:
        file.seek(position)
        for number, line in enumerate(file, 1):
            if line.strip():
                positions.append(position)
                rows.append(parse_row(line, f"{path}:{number}" if from_start else f"{path} at byte {position}"))
            position += len(line)
            if len(rows) == CHUNK_ROWS:
                yield Chunk(positions, rows)
                positions, rows = [], []
    if rows:
        yield Chunk(positions, rows)


def parse_row(line: bytes, where: str) -> Row:
    """One JSON object. Raises HalaError that begins with ``where``."""
    try:
        row = orjson.loads(line.removeprefix(BOM))
    except orjson.JSONDecodeError as error:
        raise HalaError(f"{where}: not valid JSON: {error}", "mend or remove this line") from error
    if schemas.has_long_number(line):
        json.loads(line, parse_int=partial(_integer, where))
    return only_object(row, where)


def only_object(row: Any, where: str) -> Row:
    """``row``, if it is one. Raises HalaError that begins with ``where``."""
    if not isinstance(row, dict):
        raise HalaError(f"{where}: a row is a JSON object, this is {what(row)}")
    return row


def what(value: Any) -> str:
    """A value's type, as people who know JSON call it."""
    names: dict[type, str] = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    names |= {int: "a number", float: "a number", type(None): "null"}
    return names.get(type(value), f"a {type(value).__name__}")


def _integer(where: str, digits: str) -> int:
    """Orjson would make a float, and lose digits, of what 64 bits do not hold."""
    if not -(2**63) <= int(digits) < 2**64:
        raise HalaError(f"{where}: the number {digits} does not fit 64 bits", "make it a text")
    return int(digits)


def _parquet_chunks(path: Path, position: int) -> Iterator[Chunk]:
    try:
        with pq.ParquetFile(path) as file:
            groups, skip = _groups_from(file.metadata, position)
            # Group by group: pyarrow cannot put nested dictionaries of two groups into one batch.
            for batch in (batch for group in groups for batch in file.iter_batches(CHUNK_ROWS, row_groups=[group])):
                table = pa.Table.from_batches([batch]).replace_schema_metadata(None)
                if skip >= table.num_rows:
                    skip -= table.num_rows
                    continue
                table, skip = table.slice(skip), 0
                yield Chunk(list(range(position, position + table.num_rows)), schemas.to_rows(table), table)
                position += table.num_rows
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise HalaError(f"{path}: no such file") from error
        raise HalaError(f"{path}: not readable as Parquet: {error}") from error


def _groups_from(metadata: pq.FileMetaData, position: int) -> tuple[list[int], int]:
    """The row groups that hold rows from ``position`` on, and how many rows of the first to pass over."""
    before = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if position < before + rows:
            return list(range(group, metadata.num_row_groups)), position - before
        before += rows
    return [], 0
