"""Rows to and from Arrow tables, schemas to and from text, and what makes two rows the same row."""

import base64
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

import orjson
import pyarrow as pa

Row = dict[str, Any]
Hash = hashlib.blake2b

EXACT_INTEGERS = 2**53
"""Floats up to this that are whole numbers are written as integers: a column of 1 and 2.5 is all floats in Parquet."""


def canonical(value: Any) -> Any:
    """``value`` without absent keys (None in a mapping) and without the difference between 1 and 1.0."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return {key: canonical(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer() and abs(value) <= EXACT_INTEGERS:
        return int(value)
    return value


def row_bytes(row: Row) -> bytes:
    """The canonical bytes of a row. Raises TypeError for what is not data (an object, an integer over 64 bits)."""
    return orjson.dumps(canonical(row), option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS, default=plain) + b"\n"


def new_hash() -> Hash:
    """The hash that all digests of ours use: 16 bytes of BLAKE2b."""
    return hashlib.blake2b(digest_size=16)


def digest_of(rows: Iterable[Row]) -> str:
    """Digest of rows in order, as a shard's line of the manifest holds it."""
    hashed = new_hash()
    for row in rows:
        hashed.update(row_bytes(row))
    return hashed.hexdigest()


def plain(value: Any) -> Any:
    """Values that Parquet holds and JSON cannot write."""
    if isinstance(value, datetime):  # pandas' own, where it is installed: as orjson writes others
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, (set, frozenset, type)) or callable(value):
        raise TypeError(f"a {type(value).__name__} is not data")
    return str(value)


Fields = Sequence["pa.Field[Any]"]
"""Columns by name and type."""
Mark = dict[bytes | str, bytes | str]
"""Metadata of a column that we set and look for."""
Change = Callable[[Any], Any]
"""From a value to the same value in another form."""

JSON = pa.json_()
"""Type of values that no other Arrow type holds as they are, of a column or at any depth in one. It is JSON text to
Arrow, and the values themselves to us and to ``datasets`` (4.7 and later: its ``Json``)."""
JSON_TEXT: Mark = {b"hala": b"json"}
"""Mark of a column of JSON text, as older commits wrote them for lack of that type."""
_LISTS: dict[type, Any] = {
    pa.ListType: pa.list_,
    pa.LargeListType: pa.large_list,
    pa.ListViewType: pa.list_view,
    pa.LargeListViewType: pa.large_list_view,
    pa.FixedSizeListType: pa.list_,
}
_DIGITS = bytes.maketrans(b"123456789", b"0" * 9)
_LONG = b"0" * 19


def to_table(rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    """Rows as a table. Raises pyarrow.ArrowInvalid where a row does not fit the schema."""
    columns = [_to_array([row.get(field.name) for row in rows], field) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def to_rows(table: pa.Table) -> list[Row]:
    """A table as rows, each object with its own keys only. Raises pyarrow.ArrowInvalid for text that is not JSON."""
    rows: list[Row] = table.to_pylist()
    for field, column in zip(table.schema, table.columns, strict=True):
        kind = type_of(field)
        is_other = holds(kind, is_json) or any(map(_fills, column.chunks))
        if is_other and (change := _through(kind, _load, fills=True)) is not None:
            try:
                for row in rows:
                    row[field.name] = change(row[field.name])
            except ValueError as error:
                raise pa.ArrowInvalid(f"column '{field.name}' holds a text that is not JSON: {error}") from error
    return rows


def as_text(table: pa.Table) -> pa.Table:
    """A table with the text of JSON instead of JSON."""
    return table.cast(pa.schema([field.with_type(_as_text(field.type)) for field in table.schema]))


def dump(schema: pa.Schema) -> str:
    """A schema as text for the manifest."""
    return schema.serialize().to_pybytes().hex()


def load(text: str) -> pa.Schema:
    """The schema that ``dump`` wrote."""
    return pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(text)))


def has(field: "pa.Field[Any]", mark: Mark) -> bool:
    """Whether a column bears a mark."""
    return bool(field.metadata and mark.items() <= field.metadata.items())


def type_of(field: "pa.Field[Any]") -> Any:
    """The type of a column: JSON also where it bears the mark of JSON text."""
    return JSON if has(field, JSON_TEXT) else field.type


def holds(kind: pa.DataType, test: Callable[[pa.DataType], bool]) -> bool:
    """Whether a type, or one at any depth in it, is of a sort."""
    return test(kind) or any(holds(kind.field(index).type, test) for index in range(kind.num_fields))


def is_json(kind: pa.DataType) -> bool:
    """Whether values of this type are JSON text to Arrow."""
    return isinstance(kind, pa.JsonType)


def is_list(kind: pa.DataType) -> bool:
    """Whether it is one of Arrow's five types of lists."""
    return type(kind) in _LISTS


def items_of(kind: Any) -> Any:
    """The type of a list's items, or of a map's values."""
    return kind.item_type if pa.types.is_map(kind) else kind.value_type


def has_long_number(text: bytes) -> bool:
    """Whether 19 digits stand in a row: orjson would make a float of an integer that 64 bits do not hold."""
    return _LONG in text.translate(_DIGITS)


def _to_array(values: list[Any], field: "pa.Field[Any]") -> Any:
    change = _through(type_of(field), _dump) if holds(type_of(field), is_json) else None
    if change is None:
        return pa.array(values, field.type)
    texts = [None if value is None else change(value) for value in values]
    return pa.array(texts, _as_text(field.type)).cast(field.type)


def _dump(value: Any) -> str:
    return orjson.dumps(value, default=plain).decode()


def _load(text: str | None) -> Any:
    if text is None:
        return None
    raw = text.encode()
    return json.loads(raw) if has_long_number(raw) else orjson.loads(raw)


def _through(kind: pa.DataType, leaf: Change, fills: bool = False) -> Change | None:
    """How to change the JSON in values of a type, at any depth; None: not at all.

    ``fills``: a null in a struct is Arrow's filling, and left out.
    """
    if is_json(kind):
        return leaf
    if pa.types.is_struct(kind):
        inner = {field.name: _through(field.type, leaf, fills) for field in kind}
        return lambda value: None if value is None else _object(value, inner, fills)
    change = _through(items_of(kind), leaf, fills) if is_list(kind) or pa.types.is_map(kind) else None
    if change is None:
        return None
    if pa.types.is_map(kind):
        return lambda value: None if value is None else [(key, change(item)) for key, item in value]
    return lambda value: None if value is None else [change(item) for item in value]


def _object(value: Row, inner: dict[str, Change | None], fills: bool) -> Row:
    return {
        key: item if (change := inner.get(key)) is None else change(item)
        for key, item in value.items()
        if not (fills and item is None)
    }


def _as_text(kind: Any) -> Any:
    """The type with the text of JSON instead of JSON, which Arrow can build."""
    return kind.storage_type if is_json(kind) else changed(kind, _as_text)


def changed(kind: Any, change: Callable[[Any], Any]) -> Any:
    """A type with other types directly inside it."""
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(change(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(kind.key_type, kind.item_field.with_type(change(kind.item_type)))
    if not is_list(kind):
        return kind
    size = [kind.list_size] if pa.types.is_fixed_size_list(kind) else []
    return _LISTS[type(kind)](kind.value_field.with_type(change(kind.value_type)), *size)


def parts_of(array: Any) -> list[Any]:
    """The Arrow arrays directly inside one: of a struct's fields, a list's items, a map's values."""
    if pa.types.is_struct(array.type):
        return list(array.flatten())
    return [array.flatten()] if is_list(array.type) else [array.items] if pa.types.is_map(array.type) else []


def _fills(array: Any) -> bool:
    """Whether a struct in an Arrow array, at any depth, holds a null."""
    nulls = array.null_count if pa.types.is_struct(array.type) else sys.maxsize
    return any(part.null_count > nulls or _fills(part) for part in parts_of(array))
