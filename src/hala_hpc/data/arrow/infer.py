"""Which Arrow schema holds rows that come without one."""

from collections.abc import Sequence
from itertools import chain
from types import NoneType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from hala_hpc.data.arrow.digest import Row
from hala_hpc.data.arrow.schema import JSON, JSON_TEXT, Mark, has, is_list, items_of

EXACT: Mark = {b"hala": b"exact"}
"""Mark of a column, while planning, that holds integers which no float holds: it must not become one of floats."""
DEEPEST = 16
"""Levels of lists and objects in a column, below which all is JSON (ours: no table is meant to be so deep)."""
_MOST = 2**53


def infer(rows: Sequence[Row]) -> pa.Schema:
    """A schema that holds all of ``rows``; columns in the order in which they first appear."""
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.schema([_infer_field(name, [row.get(name) for row in rows]) for name in names])


def marked(table: pa.Table) -> pa.Schema:
    """The schema of a table, with the columns marked whose integers no float holds."""
    fields = [
        _marked(field) if not has(field, JSON_TEXT) and any(map(_needs_integers, column.chunks)) else field
        for field, column in zip(table.schema, table.columns, strict=True)
    ]
    return pa.schema(fields)


def storable(schema: pa.Schema) -> pa.Schema:
    """An inferred schema as Parquet can hold it: pyarrow 26 cannot read back the nulls of a list of nothing else."""
    return pa.schema([field.with_type(_storable(field.type)) for field in schema])


def _infer_field(name: str, values: list[Any]) -> "pa.Field[Any]":
    kind = _kind_of(values, DEEPEST)
    exact = _is_integers(kind) and _needs_integers(pa.array(values, kind))
    return pa.field(name, kind, metadata=EXACT if exact else None)


def _kind_of(values: list[Any], levels: int, in_object: bool = False) -> pa.DataType:
    """The type that holds values as they are; but 1 beside 2.5 becomes 1.0, unless it is of an object."""
    found = set(map(type, values)) - {NoneType}
    if found == {str}:
        return pa.string()
    if found == {dict}:
        return _struct_of([value for value in values if value is not None], levels - 1)
    if found == {list}:
        inner = list(chain.from_iterable(value for value in values if value is not None))
        return pa.list_(_kind_of(inner, levels - 1, in_object)) if levels else JSON
    if len(found) > 1 and (in_object or found != {int, float}):  # pa.array would make 0.0 of false beside 1.5
        return JSON
    try:
        kind: pa.DataType = pa.array(values).type
        return kind
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return JSON


def _struct_of(objects: list[dict[str, Any]], levels: int) -> pa.DataType:
    """A struct, where all objects have the same keys and no nulls: then it gives them back as they were.

    ``{}`` is JSON, for Parquet has no struct without fields.
    """
    keys = objects[0].keys()
    if levels < 0 or not keys or any(value.keys() != keys for value in objects):
        return JSON
    columns = {key: [value[key] for value in objects] for key in keys}
    if any(value is None for column in columns.values() for value in column):
        return JSON
    return pa.struct([pa.field(key, _kind_of(column, levels, in_object=True)) for key, column in columns.items()])


def _storable(kind: pa.DataType, in_list: bool = False) -> pa.DataType:
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_storable(kind.value_type, in_list=True)))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_storable(field.type, in_list)) for field in kind])
    return pa.string() if in_list and pa.types.is_null(kind) else kind


def _marked(field: "pa.Field[Any]") -> "pa.Field[Any]":
    metadata: Any = field.metadata or {}
    return field.with_metadata({**metadata, **EXACT})


def _is_integers(kind: pa.DataType) -> bool:
    return _is_integers(items_of(kind)) if is_list(kind) else pa.types.is_int64(kind) or pa.types.is_uint64(kind)


def _needs_integers(array: Any) -> bool:
    """Whether an Arrow array holds integers, at any depth, that no float holds."""
    if pa.types.is_struct(array.type):
        return any(map(_needs_integers, array.flatten()))
    if is_list(array.type):
        return _needs_integers(array.flatten())
    if not pa.types.is_int64(array.type) and not pa.types.is_uint64(array.type):
        return False
    least, most = (pc.min_max(array)[end].as_py() for end in ("min", "max"))
    return most is not None and not -_MOST <= least <= most <= _MOST
