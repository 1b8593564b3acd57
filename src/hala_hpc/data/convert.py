"""Inputs that cannot be read from their middle are copied once, while planning, into a form that can.

JSON arrays, CSV, plain text and anything compressed become JSON lines; hub datasets become Parquet. All of it streams.
"""

import csv
import gzip
import io
import zlib
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Data
from hala_hpc.data import readers
from hala_hpc.data.digest import Row

HUB_ROW_GROUP = 1_000
"""Rows per row group of a hub dataset's copy: what a worker must read at least."""


_NO_ARRAY = "an array of objects, or an object a line with data.format=jsonl"


def to_jsonl(path: Path, form: str, target: Path, limit: int | None) -> None:
    """Copy ``path`` (json, jsonl, csv or text, perhaps gzipped) to JSON lines. Raises HalaError naming the row."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rb") as source, target.open("wb") as out:
            for row in islice(_ROWS[form](source, path), limit):
                out.write(orjson.dumps(row) + b"\n")
                number += 1
    except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError, TypeError, csv.Error) as error:
        raise HalaError(f"{path}: row {number + 1}: cannot be read as {form}: {error}") from error


def hub_to_parquet(data: Data, target: Path) -> None:
    """Copy a split of a hub dataset (from the cache, where it is there) to Parquet. Raises HalaError."""
    import datasets

    try:
        rows = datasets.load_dataset(data.hub, data.hub_config, split=data.split, revision=data.revision)
        if data.limit is not None:
            rows = rows.select(range(min(data.limit, len(rows))))
        rows.to_parquet(str(target), batch_size=HUB_ROW_GROUP)
    except (ValueError, OSError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise HalaError(f"data.hub: cannot load '{data.hub}': {reason}", "see `hala prefetch`") from error


def _json_rows(source: BinaryIO, path: Path) -> Iterator[Row]:
    import ijson

    first = source.read(readers.OPENING).removeprefix(readers.BOM).lstrip()[:1]
    if first and first != b"[":
        raise HalaError(f"{path}: not a JSON array, it begins with {first.decode(errors='replace')!r}", _NO_ARRAY)
    source.seek(0)
    if source.read(len(readers.BOM)) != readers.BOM:
        source.seek(0)
    number = 0
    try:
        for number, row in enumerate(ijson.items(source, "item", use_float=True), 1):
            yield readers.only_object(row, f"{path}: row {number}")
    except ijson.JSONError as error:
        said = error.args[0] if error.args else ""
        text = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
        reason = text.splitlines()[0] if text else "broken"
        raise HalaError(f"{path}: not a valid JSON array after row {number}: {reason}", "is it whole?") from error


def _jsonl_rows(source: BinaryIO, path: Path) -> Iterator[Row]:
    for number, line in enumerate(source, 1):
        if line.strip():
            yield readers.parse_row(line, f"{path}:{number}")


def _csv_rows(source: BinaryIO, path: Path) -> Iterator[Row]:
    """Values stay the text that they are; ragged rows are refused, for their columns cannot be told."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.DictReader(io.TextIOWrapper(source, encoding="utf-8-sig", newline=""), strict=True)
    if twice := [name for name, count in Counter(reader.fieldnames or ()).items() if count > 1]:
        raise HalaError(f"{path}: line 1: the header names '{twice[0]}' twice", "rename one")
    for row in reader:
        if None in row or None in row.values():
            count = len(reader.fieldnames or ())
            raise HalaError(f"{path}: line {reader.line_num}: does not have the {count} fields of the header")
        yield row


def _text_rows(source: BinaryIO, _: Path) -> Iterator[Row]:
    """A row per line; empty lines are no rows."""
    for line in io.TextIOWrapper(source, encoding="utf-8-sig", newline="\n"):
        if text := line.rstrip("\r\n"):
            yield {"text": text}


_ROWS = {"json": _json_rows, "jsonl": _jsonl_rows, "csv": _csv_rows, "text": _text_rows}
