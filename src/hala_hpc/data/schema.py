"""The Arrow schema of rows that have none of their own, and rows to and from tables."""

from collections.abc import Sequence
from typing import Any

import orjson
import pyarrow as pa

from hala_hpc.data.digest import Row

Fields = Sequence["pa.Field[Any]"]
"""Columns by name and type."""

JSON_TEXT = {b"hala": b"json"}
"""Metadata of a column that no single Arrow type fits (numbers here, lists there): each value is kept as JSON text."""


def infer(rows: Sequence[Row]) -> pa.Schema:
    """A schema that holds all of ``rows``; columns in the order in which they first appear."""
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.schema([_infer_field(name, [row.get(name) for row in rows]) for name in names])


def unify(one: pa.Schema | None, other: pa.Schema) -> pa.Schema:
    """A schema that holds the rows of both; columns whose types contradict each other become JSON text."""
    if one is None or one.equals(other, check_metadata=True):
        return other
    names = dict.fromkeys([*one.names, *other.names])
    return pa.schema([_unify_field(name, one, other) for name in names])


def to_table(rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    """Rows as a table. Raises pyarrow.ArrowInvalid where a row does not fit the schema."""
    arrays = []
    for field in schema:
        values = [row.get(field.name) for row in rows]
        if _is_json(field):
            values = [None if value is None else orjson.dumps(value).decode() for value in values]
        arrays.append(pa.array(values, type=field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def to_rows(table: pa.Table) -> list[Row]:
    """A table as rows, JSON text read back."""
    rows: list[Row] = table.to_pylist()
    for field in table.schema:
        if _is_json(field):
            for row in rows:
                if row[field.name] is not None:
                    row[field.name] = orjson.loads(row[field.name])
    return rows


def dump(schema: pa.Schema) -> str:
    """A schema as text for the manifest."""
    return schema.serialize().to_pybytes().hex()


def load(text: str) -> pa.Schema:
    """The schema that ``dump`` wrote."""
    return pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(text)))


def _infer_field(name: str, values: list[Any]) -> "pa.Field[Any]":
    try:
        kind = pa.array(values).type
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return _json_field(name)
    return _json_field(name) if _has_empty_struct(kind) else pa.field(name, kind)


def _unify_field(name: str, one: pa.Schema, other: pa.Schema) -> "pa.Field[Any]":
    fields = [schema.field(name) for schema in (one, other) if name in schema.names]
    kinds = [field.type for field in fields if not pa.types.is_null(field.type)]
    if len(fields) == 1 or not kinds:
        return fields[0]
    if any(map(_is_json, fields)):
        return _json_field(name)
    try:
        bare = [pa.schema([pa.field(name, kind)]) for kind in kinds]
        return pa.unify_schemas(bare, promote_options="permissive").field(0)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return _json_field(name)


def _json_field(name: str) -> "pa.Field[Any]":
    return pa.field(name, pa.string(), metadata=JSON_TEXT)


def _is_json(field: "pa.Field[Any]") -> bool:
    return bool(field.metadata and field.metadata.get(b"hala") == b"json")


def _has_empty_struct(kind: pa.DataType) -> bool:
    """Parquet has no struct without fields, which is how Arrow reads ``{}``."""
    if pa.types.is_struct(kind):
        return kind.num_fields == 0 or any(_has_empty_struct(field.type) for field in kind)
    return pa.types.is_list(kind) and _has_empty_struct(kind.value_type)
