"""Inputs that cannot be read from their middle are copied once, while planning, into a form that can.

JSON arrays, CSV, plain text and anything compressed or in another encoding become JSON lines; Arrow files and hub
datasets become Parquet. All of it streams.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Data
from hala_hpc.data.arrow.schema import Row
from hala_hpc.data.bad_rows import BadRows
from hala_hpc.data.files import folders, hub, json_array, opening, readers

ROW_GROUP = 1_000
"""Rows per row group of a copy in Parquet: what a worker must read at least."""
_NOT_UTF8 = re.compile("[\udc80-\udcff]")
_OTHERS = ";\t|"
"""What separates fields where commas do not."""

Rows = Iterator[Row | None]
"""None stands for a bad row, which a copy keeps as an empty line: so the number of a row's line is that of the row."""


def to_jsonl(path: Path, form: str, target: Path, data: Data, bad: BadRows) -> Iterator[int]:
    """Copy ``path`` (json, jsonl, csv or text) to JSON lines; ``bad`` is told of bad rows.

    Yields how many lines there are: at the end, and whenever ``data.limit`` more rows are copied. Of these some may be
    set aside later.

    Raises HalaError naming the row at which the file is damaged.
    """
    number = good = 0
    try:
        with opening.open_utf8(path, data.encoding) as source, target.open("wb") as out:
            for row in _ROWS[form](source, path, data, bad):
                number += 1
                out.write(b"\n" if row is None else orjson.dumps(row) + b"\n")
                good += row is not None
                if row is not None and data.limit is not None and good % data.limit == 0:
                    out.flush()
                    yield number
    except (*opening.UNREADABLE, csv.Error) as error:
        raise HalaError(f"{path}: row {number + 1}: cannot be read as {form}: {opening.reason(error)}") from error
    yield number


def arrow_to_parquet(path: Path, target: Path, limit: int | None) -> None:
    """Copy an Arrow file or stream (``save_to_disk``, caches, Feather) to Parquet. Raises HalaError."""
    try:
        with opening.open_bytes(path) as source:
            file: Any = source
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            reader: Any = pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file)
            readers.refuse_doubled(reader.schema, path)
            batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else iter(reader)
            rows = 0
            with pq.ParquetWriter(target, reader.schema.remove_metadata()) as writer:
                for batch in batches:
                    kept = batch if limit is None else batch.slice(0, limit - rows)
                    rows += kept.num_rows
                    table = pa.Table.from_batches([kept]).replace_schema_metadata(None)
                    writer.write_table(table, row_group_size=ROW_GROUP)
                    if rows == limit:
                        break
    except opening.UNREADABLE as error:
        raise HalaError(f"{path}: not readable as Arrow: {opening.reason(error)}", "is it whole?") from error


def hub_to_parquet(data: Data, target: Path) -> None:
    """Copy a split of a hub dataset (from the cache, where it is there) to Parquet. Raises HalaError."""
    hub.to_parquet(data, target, ROW_GROUP)


def _json_rows(source: BinaryIO, path: Path, data: Data, bad: BadRows) -> Rows:
    for number, line in enumerate(json_array.rows(source, path, data.field), 1):
        yield _parsed(line, f"{path}: row {number}", bad)


def _jsonl_rows(source: BinaryIO, path: Path, _: Data, bad: BadRows) -> Rows:
    for number, line in enumerate(source, 1):
        yield _parsed(line, f"{path}:{number}", bad) if line.strip() else None


def _parsed(line: bytes, where: str, bad: BadRows) -> Row | None:
    try:
        return readers.parse_row(line, bad.notes)
    except HalaError as error:
        bad.add(where, error)
        return None


def _csv_rows(source: BinaryIO, path: Path, data: Data, bad: BadRows) -> Rows:
    """Values stay the text that they are; ragged rows are bad, for their columns cannot be told."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(_text(source, ""), strict=True, delimiter=_delimiter(path, data))
    names = next((fields for fields in reader if fields), [])
    _refuse_header(path, names, data)
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            bad.add(f"{path}: line {reader.line_num}", HalaError(f"cannot be read as csv: {error}"))
            yield None
            continue
        if not fields:
            continue
        yield _checked(dict(zip(names, fields, strict=False)), f"{path}: line {reader.line_num}", bad, (
            "" if len(fields) == len(names) else f"does not have the {len(names)} fields of the header"
        ))  # fmt: skip


def _refuse_header(path: Path, names: list[str], data: Data) -> None:
    if twice := next((name for name, count in Counter(names).items() if count > 1), None):
        raise HalaError(f"{path}: line 1: the header names '{twice}' twice", "rename one")
    if _NOT_UTF8.search("".join(names)):
        raise HalaError(f"{path}: line 1: not UTF-8", _ENCODING)
    if data.delimiter is None and len(names) == 1 and (other := next((c for c in _OTHERS if c in names[0]), None)):
        raise HalaError(
            f"{path}: line 1: one column named '{names[0]}'".replace("\t", "\\t"),
            f"data.delimiter='{other}' splits it".replace("\t", "\\t"),
        )


def _delimiter(path: Path, data: Data) -> str:
    """The one asked for, else by the ending."""
    asked = data.delimiter
    if asked is None:
        return "\t" if folders.ending_of(path) in (".tsv", ".tab") else ","
    asked = {"\\t": "\t", "tab": "\t"}.get(asked, asked)
    if len(asked) != 1 or asked in '"\r\n':
        raise HalaError(f"data.delimiter: {data.delimiter!r} is not one character that can separate", "for example ;")
    return asked


def _text_rows(source: BinaryIO, path: Path, _: Data, bad: BadRows) -> Rows:
    """A row per line; empty lines are no rows."""
    for number, line in enumerate(_text(source, "\n"), 1):
        if text := line.rstrip("\r\n"):
            yield _checked({"text": text}, f"{path}: line {number}", bad)


def _text(source: BinaryIO, newline: str) -> io.TextIOWrapper:
    """Text, in which bytes that are no UTF-8 are seen later, row by row."""
    return io.TextIOWrapper(source, encoding="utf-8", errors="surrogateescape", newline=newline)


def _checked(row: Row, where: str, bad: BadRows, wrong: str = "") -> Row | None:
    hint = ""
    if not wrong and _NOT_UTF8.search("".join(row.values())):
        wrong, hint = "not UTF-8", _ENCODING
    if wrong:
        bad.add(where, HalaError(wrong, hint))
    return None if wrong else row


_ENCODING = "data.encoding names another, for example windows-1252"
_ROWS = {"json": _json_rows, "jsonl": _jsonl_rows, "csv": _csv_rows, "text": _text_rows}
