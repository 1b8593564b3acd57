"""The formats of data files, and copies of those that cannot be read from their middle.

JSON arrays, CSV, plain text and anything compressed or in another encoding become JSON lines while a run is planned;
Arrow files become Parquet. All of it streams.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from hala_hpc.config.errors import HalaError, first_twice
from hala_hpc.config.schema import Data
from hala_hpc.data.bad_rows import BadRows
from hala_hpc.data.files import opening, readers
from hala_hpc.data.schema import Row

ROW_GROUP = 1_000
"""Rows per row group of a copy in Parquet: what a worker must read at least."""
ROW_BYTES = 1 << 28
"""No row is larger (ours): where brackets do not close, the rest of the file would be one row, in memory."""
_NOT_UTF8 = re.compile("[\udc80-\udcff]")
_ENCODING = "data.encoding names another, for example windows-1252"
_OTHERS = ";\t|"
"""What separates fields where commas do not."""
_CHUNK = 1 << 20
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{},:]', re.DOTALL)
_BRACKET = re.compile(rb'(?:[^"\[\]{}]++|"[^"\\]*+(?:\\.[^"\\]*+)*+")*+[\[\]{}]', re.DOTALL)
_TURN = {"role", "from", "content", "value"}
_Token = tuple[bytes, bytes]
"""What stands before a bracket, string, comma or colon, and that itself; at the end of the file it is empty."""
_Rows = Iterator[Row | None]
"""None stands for a bad row, which a copy keeps as an empty line: so the number of a row's line is that of the row."""


@dataclass(frozen=True)
class Format:
    """A format of files: its endings, the keys of ``data`` that say how it is read, and its rows one by one.

    ``rows`` is given the file's bytes in UTF-8, and adds the bad rows to ``BadRows``; None for columnar formats.
    """

    endings: tuple[str, ...]
    keys: tuple[str, ...] = ()
    rows: Callable[[BinaryIO, Path, Data, BadRows], _Rows] | None = None


def ending_of(path: Path) -> str:
    """``.csv`` of ``A.CSV.gz``."""
    name = path.name.lower()
    for compressed in opening.COMPRESSED:
        name = name.removesuffix(compressed)
    return Path(name).suffix


def to_jsonl(path: Path, form: str, target: Path, data: Data, bad: BadRows) -> Iterator[int]:
    """Copy ``path`` (json, jsonl, csv or text) to JSON lines; bad rows are added to ``bad``.

    Yields how many lines there are: at the end, and whenever ``data.limit`` more rows are copied. Some of these may be
    set aside later.

    Raises HalaError naming the row at which the file is damaged.
    """
    number = good = 0
    rows = FORMATS[form].rows
    assert rows is not None
    try:
        with opening.open_utf8(path, data.encoding) as source, target.open("wb") as out:
            for row in rows(source, path, data, bad):
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
                    table = pa.Table.from_batches([batch]).replace_schema_metadata(None)
                    table = table if limit is None else table.slice(0, limit - rows)
                    writer.write_table(table, row_group_size=ROW_GROUP)
                    rows += table.num_rows
                    if rows == limit:
                        break
    except opening.UNREADABLE as error:
        raise HalaError(f"{path}: not readable as Arrow: {opening.reason(error)}", "is it whole?") from error


def _jsonl_rows(source: BinaryIO, path: Path, _: Data, bad: BadRows) -> _Rows:
    for number, line in enumerate(source, 1):
        yield _parsed(line, f"{path}:{number}", bad) if line.strip() else None


def _json_rows(source: BinaryIO, path: Path, data: Data, bad: BadRows) -> _Rows:
    for number, line in enumerate(_elements(source, path, data.field), 1):
        yield _parsed(line, f"{path}: row {number}", bad)


def _parsed(line: bytes, where: str, bad: BadRows) -> Row | None:
    try:
        return readers.parse_row(line, bad.notes)
    except HalaError as error:
        bad.add(where, error)
        return None


def _csv_rows(source: BinaryIO, path: Path, data: Data, bad: BadRows) -> _Rows:
    """Values stay the text that they are; ragged rows are bad, for it is unknown which columns their values are of."""
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
        if fields:
            wrong = "" if len(fields) == len(names) else f"does not have the {len(names)} fields of the header"
            yield _checked(dict(zip(names, fields, strict=False)), f"{path}: line {reader.line_num}", bad, wrong)


def _refuse_header(path: Path, names: list[str], data: Data) -> None:
    if (twice := first_twice(names)) is not None:
        raise HalaError(f"{path}: line 1: the header names '{twice}' twice", "rename one")
    if _NOT_UTF8.search("".join(names)):
        raise HalaError(f"{path}: line 1: not UTF-8", _ENCODING)
    if data.delimiter is None and len(names) == 1 and (other := next((c for c in _OTHERS if c in names[0]), None)):
        raise HalaError(
            f"{path}: line 1: one column named '{names[0]}'".replace("\t", "\\t"),
            f"data.delimiter='{other}' splits it".replace("\t", "\\t"),
        )


def _delimiter(path: Path, data: Data) -> str:
    """The recipe's, else that of the ending."""
    if data.delimiter is None:
        return "\t" if ending_of(path) in (".tsv", ".tab") else ","
    delimiter = {"\\t": "\t", "tab": "\t"}.get(data.delimiter, data.delimiter)
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise HalaError(f"data.delimiter: {data.delimiter!r} is not one character that can separate", "for example ;")
    return delimiter


def _text_rows(source: BinaryIO, path: Path, _: Data, bad: BadRows) -> _Rows:
    """A row per line; empty lines are passed over."""
    for number, line in enumerate(_text(source, "\n"), 1):
        if text := line.rstrip("\r\n"):
            yield _checked({"text": text}, f"{path}: line {number}", bad)


def _text(source: BinaryIO, newline: str) -> io.TextIOWrapper:
    """Text, in which bytes that are not UTF-8 are seen later, row by row."""
    return io.TextIOWrapper(source, encoding="utf-8", errors="surrogateescape", newline=newline)


def _checked(row: Row, where: str, bad: BadRows, wrong: str = "") -> Row | None:
    hint = ""
    if not wrong and _NOT_UTF8.search("".join(row.values())):
        wrong, hint = "not UTF-8", _ENCODING
    if wrong:
        bad.add(where, HalaError(wrong, hint))
    return None if wrong else row


FORMATS: Final[dict[str, Format]] = {
    "parquet": Format((".parquet",)),
    "jsonl": Format((".jsonl", ".ndjson"), ("encoding",), _jsonl_rows),
    "json": Format((".json",), ("encoding", "field"), _json_rows),
    "csv": Format((".csv", ".tsv", ".tab"), ("encoding", "delimiter"), _csv_rows),
    "text": Format((".txt",), ("encoding",), _text_rows),
    "arrow": Format((".arrow", ".feather")),
}
ENDINGS: Final = {ending: form for form, known in FORMATS.items() for ending in known.endings}
"""Formats by ending; one of ``opening.COMPRESSED`` may follow."""


def _elements(source: BinaryIO, path: Path, field: str | None) -> Iterator[bytes]:
    """The elements of the JSON array at ``field`` (``a.b`` reaches in), or of the one that the file is.

    Only brackets, strings and commas are looked at, so that a broken row does not hide those after it. Raises HalaError
    where there is no array, and where it does not end.
    """
    number = size = depth = 0
    tokens = _tokens(source, lambda: depth > 0)
    _find(tokens, path, field)
    pieces: list[bytes] = []
    for before, token in tokens:
        if depth == 0 and token in (b",", b"]"):
            row = b"".join([*pieces, before]).strip()
            if row or token == b"," or number:
                number += 1
                yield row
            if token == b"]":
                rest = b"" if field else next((before.strip() + token for before, token in tokens), b"")
                if rest:
                    raise _broken(path, number, f"{rest[:1].decode(errors='replace')!r} follows its end")
                return
            pieces, size = [], 0
            continue
        pieces += (before, token)
        size += len(before) + len(token)
        depth += (token in (b"[", b"{")) - (token in (b"]", b"}"))
        if depth < 0 or size > ROW_BYTES or not token:
            break
    raise _broken(path, number, "a bracket is missing" if depth < 0 or size > ROW_BYTES else "it ends in the middle")


def _broken(path: Path, number: int, why: str) -> HalaError:
    return HalaError(f"{path}: not a valid JSON array after row {number}: {why}", "is it whole?")


def lists_in(start: bytes) -> list[str]:
    """The keys under which a file that is one JSON object has lists of objects that may be its rows, not turns.

    ``start`` holds the first bytes of the file. The result is empty where another object follows: that is JSON lines.
    """
    lists: dict[str, set[str]] = {}
    inside = ""
    for before, token, last, keys in _with_keys(_tokens(io.BytesIO(start))):
        if not keys and last and (token or before.strip()):
            return []
        if token == b":" and keys and inside and len(keys) == inside.count(".") + 3:
            lists[inside].add(str(keys[-1]))
        if token == b"{" and last == b"[" and None not in keys[:-1] and len(keys) > 1:
            inside = ".".join(map(str, keys[:-1]))
            lists.setdefault(inside, set())
    return [name for name, names in lists.items() if not names & _TURN]


def _find(tokens: Iterator[_Token], path: Path, field: str | None) -> None:
    """Go on to the beginning of the array."""
    wanted = field.split(".") if field else []
    lists: list[str] = []
    for before, token, _, keys in _with_keys(tokens):
        if token == b"[" and keys == wanted:
            return
        if not wanted:
            first = (before.strip() + token)[:1].decode(errors="replace")
            if not first:
                return
            raise HalaError(
                f"{path}: not a JSON array, it begins with {first!r}",
                "an array of objects, or an object a line with data.format=jsonl, or data.field=WHERE THE ROWS LIE",
            )
        if token == b"[" and None not in keys and keys:
            lists.append(".".join(map(str, keys)))
    raise HalaError(f"{path}: no list at data.field={field}", f"lists: {', '.join(lists[:10]) or 'none'}")


def _with_keys(tokens: Iterator[_Token]) -> Iterator[tuple[bytes, bytes, bytes, list[str | None]]]:
    """Each token with the one before it, and the keys of the objects that are open; None for a list."""
    keys: list[str | None] = []
    last = b""
    for before, token in tokens:
        if token == b":" and keys:
            try:
                keys[-1] = str(json.loads(last))
            except ValueError:
                keys[-1] = last.decode(errors="replace")
        yield before, token, last, keys
        if token in (b"{", b"["):
            keys.append("" if token == b"{" else None)
        elif token in (b"}", b"]") and keys:
            keys.pop()
        last = token or last


def _tokens(source: Any, only_brackets: Callable[[], bool] = lambda: False) -> Iterator[_Token]:
    """All tokens; while ``only_brackets`` says so, those alone: most of a row is passed over in one step."""
    buffer, at = b"", 0
    while True:
        only = only_brackets()
        match = _BRACKET.match(buffer, at) if only else _TOKEN.search(buffer, at)
        if match is not None and match[0] != b'"':
            start = match.end() - 1 if only else match.start()
            yield buffer[at:start], buffer[start : match.end()]
            at = match.end()
            continue
        left = buffer[at:]
        more = source.read1(max(_CHUNK, 2 * len(left))) if len(left) <= ROW_BYTES else b""
        if not more:
            yield left, b""
            return
        buffer, at = left + more, 0
