"""Which Arrow schema holds rows that come without one, or with one that differs from file to file."""

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from hala_hpc.data.digest import Row
from hala_hpc.data.schema import JSON_TEXT, Mark, has, json_field

EXACT: Mark = {b"hala": b"exact"}
"""Mark of a column, while planning, that holds integers which no float holds: it must not become one of floats."""
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


def unify(one: pa.Schema | None, other: pa.Schema) -> pa.Schema:
    """A schema that holds the rows of both; columns whose types contradict each other become JSON text."""
    if one is None or one.equals(other, check_metadata=True):
        return other
    names = dict.fromkeys([*one.names, *other.names])
    return pa.schema([_unify_field(name, one, other) for name in names])


def storable(schema: pa.Schema) -> pa.Schema:
    """An inferred schema as Parquet can hold it: pyarrow 26 cannot read back the nulls of a list of nothing else."""
    return pa.schema([field.with_type(_storable(field.type)) for field in schema])


def _infer_field(name: str, values: list[Any]) -> "pa.Field[Any]":
    try:
        array = pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return json_field(name)
    if _has_empty_struct(array.type):
        return json_field(name)
    return pa.field(name, array.type, metadata=EXACT if _needs_integers(array) else None)


def _unify_field(name: str, one: pa.Schema, other: pa.Schema) -> "pa.Field[Any]":
    fields = [schema.field(name) for schema in (one, other) if name in schema.names]
    kinds = [field.type for field in fields if not pa.types.is_null(field.type)] or [pa.null()]
    has_nulls = len(fields) == 1 or any(field.nullable for field in fields)
    if any(has(field, JSON_TEXT) for field in fields):
        return json_field(name)
    metadata = next((field.metadata for field in fields if field.metadata), None)
    if all(kind == kinds[0] for kind in kinds):
        return pa.field(name, kinds[0], has_nulls, metadata)
    if any(_holds(kind, _stands_alone) for kind in kinds):
        return json_field(name)
    try:
        bare = [pa.schema([pa.field(name, _decoded(kind))]) for kind in kinds]
        kind = pa.unify_schemas(bare, promote_options="permissive").field(0).type
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return json_field(name)
    if _holds(kind, pa.types.is_floating) and any(has(field, EXACT) for field in fields):
        return json_field(name)
    return pa.field(name, kind, has_nulls, metadata)


def _decoded(kind: pa.DataType) -> pa.DataType:
    """A dictionary is a way to write texts, not another type."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _storable(kind: pa.DataType, in_list: bool = False) -> pa.DataType:
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_storable(kind.value_type, in_list=True)))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_storable(field.type, in_list)) for field in kind])
    return pa.string() if in_list and pa.types.is_null(kind) else kind


def _has_empty_struct(kind: pa.DataType) -> bool:
    """Parquet has no struct without fields, which is how Arrow reads ``{}``."""
    if pa.types.is_struct(kind):
        return kind.num_fields == 0 or any(_has_empty_struct(field.type) for field in kind)
    return pa.types.is_list(kind) and _has_empty_struct(kind.value_type)


def _marked(field: "pa.Field[Any]") -> "pa.Field[Any]":
    metadata: Any = field.metadata or {}
    return field.with_metadata({**metadata, **EXACT})


def _holds(kind: pa.DataType, test: Callable[[pa.DataType], bool]) -> bool:
    """Whether a type, or one at any depth in it, is of a sort."""
    return test(kind) or any(_holds(kind.field(index).type, test) for index in range(kind.num_fields))


def _stands_alone(kind: pa.DataType) -> bool:
    """Types whose values another type does not hold, or holds as others to a digest (the decimals 1.5 and 1.50)."""
    types = pa.types
    is_binary = types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)
    return is_binary or types.is_decimal(kind) or types.is_uint64(kind)


def _needs_integers(array: Any) -> bool:
    """Whether an Arrow array holds integers, at any depth, that no float holds."""
    if pa.types.is_struct(array.type):
        return any(map(_needs_integers, array.flatten()))
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        return _needs_integers(array.flatten())
    if not pa.types.is_int64(array.type) and not pa.types.is_uint64(array.type):
        return False
    least, most = (pc.min_max(array)[end].as_py() for end in ("min", "max"))
    return most is not None and not -_MOST <= least <= most <= _MOST
