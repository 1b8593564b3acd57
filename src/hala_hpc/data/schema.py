"""Rows to and from Arrow tables, and schemas to and from text."""

from collections.abc import Sequence
from typing import Any

import orjson
import pyarrow as pa

from hala_hpc.data.digest import Row, plain

Fields = Sequence["pa.Field[Any]"]
"""Columns by name and type."""
Mark = dict[bytes | str, bytes | str]
"""What a column's metadata says to us."""

JSON_TEXT: Mark = {b"hala": b"json"}
"""Mark of a column that no single Arrow type fits (numbers here, lists there): each value is kept as JSON text."""


def to_table(rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    """Rows as a table. Raises pyarrow.ArrowInvalid where a row does not fit the schema."""
    arrays = []
    for field in schema:
        values = [row.get(field.name) for row in rows]
        if has(field, JSON_TEXT):
            values = [None if value is None else orjson.dumps(value, default=plain).decode() for value in values]
        arrays.append(pa.array(values, type=field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def to_rows(table: pa.Table) -> list[Row]:
    """A table as rows, JSON text read back."""
    rows: list[Row] = table.to_pylist()
    for field in table.schema:
        if has(field, JSON_TEXT):
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


def json_field(name: str) -> "pa.Field[Any]":
    """A column of JSON text."""
    return pa.field(name, pa.string(), metadata=JSON_TEXT)


def has(field: "pa.Field[Any]", mark: Mark) -> bool:
    """Whether a column bears a mark."""
    return bool(field.metadata and mark.items() <= field.metadata.items())
