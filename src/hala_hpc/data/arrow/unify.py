"""One schema for rows that come without one, or whose own schemas differ."""

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from types import NoneType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from hala_hpc.config.errors import HalaError
from hala_hpc.data.arrow.schema import JSON, JSON_TEXT, Mark, Row, has, holds, is_json, is_list, items_of

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


def unify(one: pa.Schema | None, other: pa.Schema, fill: bool = False) -> pa.Schema:
    """A schema that holds the rows of both; columns whose types contradict each other become JSON.

    ``fill``: objects that have a key and those that lack it may share a struct, as they do in any one Parquet file.
    """
    if one is None or one.equals(other, check_metadata=True):
        return other
    found: dict[str, list[pa.Field[Any]]] = {}
    for field in (*one, *other):
        found.setdefault(field.name, []).append(field)
    return pa.schema([_unify_field(name, fields, fill) for name, fields in found.items()])


class Union:
    """The schema of all sources so far, and what each of them said of a column."""

    def __init__(self) -> None:
        self.schema: pa.Schema | None = None
        self._is_inferred = False
        self._said: dict[str, list[_Said]] = {}

    def add(self, found: pa.Schema, where: str, declared: bool) -> None:
        """Add the schema of a source; ``declared``: it comes from the file (Parquet), not from its rows.

        Raises HalaError where a declared type cannot be kept, as another source contradicts it.
        """
        self._is_inferred |= not declared
        self.schema = unify(self.schema, found, fill=not self._is_inferred)
        for field in found:
            said = self._said.setdefault(field.name, [])
            if not pa.types.is_null(field.type) and (_word(field), declared) not in [each[:2] for each in said]:
                said.append((_word(field), declared, field, where))
            if _is_json(self.schema.field(field.name)):
                _refuse_lost_types(field.name, said)

    def notes(self) -> Counter[str]:
        """Columns that have another type than one of their files declares, counted (see ``Facts.notes``)."""
        became = {field.name: _word(field) for field in self.schema or ()}
        changed = {
            name: became[name]
            for name, said in self._said.items()
            if any(declared and word != became[name] for word, declared, _, _ in said)
        }
        listed = ", ".join(f"{name}: {word}" for name, word in changed.items())
        return Counter(
            {f"columns are of another type than in some of their files ({listed})": len(changed)} if changed else {}
        )


_Said = tuple[str, bool, "pa.Field[Any]", str]
"""A type in a word, whether a file declares it, the column, and the file."""


def _refuse_lost_types(name: str, said: list[_Said]) -> None:
    for word, declared, field, where in said:
        if declared and len(said) > 1 and not _may_be_json(field):
            other, there = next((each[0], each[3]) for each in said if each[2] is not field)
            raise HalaError(
                f"data: column '{name}' is {word} in {where} and {other} in {there}",
                "give it the same type in all files, or plan them as runs of their own",
            )


def _unify_field(name: str, found: list["pa.Field[Any]"], fill: bool) -> "pa.Field[Any]":
    has_nulls = len(found) == 1 or any(field.nullable for field in found)
    fields = [field for field in found if not pa.types.is_null(field.type)] or found
    if any(map(_is_json, fields)):
        is_text = all(has(field, JSON_TEXT) for field in fields)
        return fields[0].with_nullable(has_nulls) if is_text else pa.field(name, JSON)
    metadata = next((field.metadata for field in fields if field.metadata), None)
    kind = _merge(fields[0].type, fields[-1].type, fill)
    needs_integers = any(has(field, EXACT) for field in fields) and fields[0].type != fields[-1].type
    if needs_integers and holds(kind, pa.types.is_floating):
        kind = JSON
    return pa.field(name, kind, has_nulls, None if kind == JSON else metadata)


def _merge(one: pa.DataType, other: pa.DataType, fill: bool, in_object: bool = False) -> pa.DataType:
    """The type that holds the values of both as they are, JSON if there is no other; see ``infer._kind_of``."""
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if isinstance(one, pa.StructType) and isinstance(other, pa.StructType):
        return _merge_structs(one, other, fill)
    if is_list(one) and is_list(other):
        inner: pa.DataType = _merge(items_of(one), items_of(other), fill, in_object)
        return pa.large_list(inner) if pa.types.is_large_list(one) or pa.types.is_large_list(other) else pa.list_(inner)
    if any(pa.types.is_nested(kind) or is_json(kind) or _stands_alone(kind) for kind in (one, other)):
        return JSON
    if in_object and not fill and pa.types.is_floating(one) != pa.types.is_floating(other):
        return JSON
    try:
        bare = [pa.schema([pa.field("", _decoded(kind))]) for kind in (one, other)]
        kind: pa.DataType = pa.unify_schemas(bare, promote_options="permissive").field(0).type
        return kind
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return JSON


def _merge_structs(one: pa.StructType, other: pa.StructType, fill: bool) -> pa.DataType:
    names = dict.fromkeys(field.name for kind in (one, other) for field in kind)
    fields = []
    for name in names:
        found = [kind.field(name) for kind in (one, other) if kind.get_field_index(name) >= 0]
        if len(found) == 1 and not fill:
            return JSON
        has_nulls = len(found) == 1 or any(field.nullable for field in found)
        kind = found[0].type if len(found) == 1 else _merge(found[0].type, found[1].type, fill, in_object=True)
        fields.append(pa.field(name, kind, has_nulls))
    return pa.struct(fields)


def _decoded(kind: pa.DataType) -> pa.DataType:
    """A dictionary is a way to write texts, not another type."""
    return kind.value_type if isinstance(kind, pa.DictionaryType) else kind


def _is_json(field: "pa.Field[Any]") -> bool:
    return has(field, JSON_TEXT) or is_json(field.type)


def _may_be_json(field: "pa.Field[Any]") -> bool:
    """Whether a column of this type loses nothing as JSON: objects and lists of what JSON has words for."""
    kind = field.type
    return _is_json(field) or (
        pa.types.is_nested(kind) and not holds(kind, _stands_alone) and not holds(kind, pa.types.is_temporal)
    )


def _word(field: "pa.Field[Any]") -> str:
    return "JSON" if _is_json(field) else _word_of(field.type)


def _word_of(kind: pa.DataType) -> str:
    """A type, as people call it; all texts are one to them, however encoded."""
    if is_list(kind):
        return f"list of {_word_of(items_of(kind))}"
    if pa.types.is_struct(kind):
        return "object with JSON" if holds(kind, is_json) else "object"
    if is_json(kind):
        return "JSON"
    kind = _decoded(kind)
    return (
        "text"
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
        else str(kind)
    )


def _stands_alone(kind: pa.DataType) -> bool:
    """Types whose values another type does not hold, or holds as others to a digest (the decimals 1.5 and 1.50)."""
    types = pa.types
    is_binary = types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)
    return is_binary or types.is_decimal(kind) or types.is_uint64(kind)
