"""One schema for rows that come without one, or whose own schemas differ."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import chain
from types import NoneType
from typing import Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.compute as pc

from hala_hpc.config.errors import HalaError
from hala_hpc.data.schema import JSON, Mark, Row, changed, has, holds, is_json, is_list, items_of, parts_of, type_of

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
        field.with_metadata({**cast(Mark, field.metadata or {}), **EXACT})
        if any(map(_needs_integers, column.chunks))
        else field
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
    """The type that holds values as they are; but 1 beside 2.5 becomes 1.0, unless in an object."""
    types = set(map(type, values)) - {NoneType}
    if types == {str}:
        return pa.string()
    if types == {dict}:
        return _struct_of([value for value in values if value is not None], levels - 1)
    if types == {list}:
        inner = list(chain.from_iterable(value for value in values if value is not None))
        return pa.list_(_kind_of(inner, levels - 1, in_object)) if levels else JSON
    if len(types) > 1 and (in_object or types != {int, float}):  # pa.array would make 0.0 of false beside 1.5
        return JSON
    try:
        kind: pa.DataType = pa.array(values).type
        return kind
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return JSON


def _struct_of(objects: list[Row], levels: int) -> pa.DataType:
    """A struct, where all objects have the same keys in one order and no nulls: then it gives them back as they were.

    ``{}`` is JSON, for Parquet has no struct without fields.
    """
    keys = list(objects[0])
    if levels < 0 or not keys or any(list(value) != keys for value in objects):
        return JSON
    columns = {key: [value[key] for value in objects] for key in keys}
    if any(value is None for column in columns.values() for value in column):
        return JSON
    return pa.struct([pa.field(key, _kind_of(column, levels, in_object=True)) for key, column in columns.items()])


def _storable(kind: Any, in_list: bool = False) -> Any:
    is_unreadable = in_list and pa.types.is_null(kind)
    return pa.string() if is_unreadable else changed(kind, partial(_storable, in_list=in_list or is_list(kind)))


def _is_integers(kind: pa.DataType) -> bool:
    return _is_integers(items_of(kind)) if is_list(kind) else pa.types.is_int64(kind) or pa.types.is_uint64(kind)


def _needs_integers(array: Any) -> bool:
    """Whether an Arrow array holds integers, at any depth, that no float holds."""
    if not pa.types.is_int64(array.type) and not pa.types.is_uint64(array.type):
        return any(map(_needs_integers, parts_of(array)))
    least, most = (pc.min_max(array)[end].as_py() for end in ("min", "max"))
    return most is not None and not -_MOST <= least <= most <= _MOST


def unify(first: pa.Schema | None, second: pa.Schema, fill: bool = False) -> pa.Schema:
    """A schema that holds the rows of both; columns whose types contradict each other become JSON.

    ``fill``: objects that have a key and those that lack it may share a struct, as they do in any one Parquet file.
    """
    if first is None or first.equals(second, check_metadata=True):
        return second
    columns: dict[str, list[pa.Field[Any]]] = {}
    for field in (*first, *second):
        columns.setdefault(field.name, []).append(field)
    return pa.schema([_unify_field(name, fields, fill) for name, fields in columns.items()])


class Type(NamedTuple):
    """What one file says of a column: its type in a word, whether the file declares it, the column, and the file."""

    word: str
    declared: bool
    field: "pa.Field[Any]"
    where: str


class Union:
    """The schema of all sources so far, and the types that a column has in them."""

    def __init__(self) -> None:
        self.schema: pa.Schema | None = None
        self.is_inferred = False
        self._types: dict[str, list[Type]] = {}

    def add(self, schema: pa.Schema, where: str, declared: bool) -> None:
        """Add the schema of a source; ``declared``: it comes from the file (Parquet), not from its rows.

        Raises HalaError where a declared type cannot be kept, as another source contradicts it.
        """
        self.is_inferred |= not declared
        self.schema = unify(self.schema, schema, fill=not self.is_inferred)
        for field in schema:
            types = self._types.setdefault(field.name, [])
            word = _word(type_of(field))
            if not pa.types.is_null(field.type) and (word, declared) not in [known[:2] for known in types]:
                types.append(Type(word, declared, field, where))
            if is_json(type_of(self.schema.field(field.name))):
                _refuse_lost_types(field.name, types)

    def notes(self) -> Counter[str]:
        """How many columns have another type than one of their files declares (see ``Facts.notes``)."""
        became = {field.name: _word(type_of(field)) for field in self.schema or ()}
        changed = {
            name: became[name]
            for name, types in self._types.items()
            if any(known.declared and known.word != became[name] for known in types)
        }
        listed = ", ".join(f"{name}: {word}" for name, word in changed.items())
        note = f"columns are of another type than in some of their files ({listed})"
        return Counter({note: len(changed)} if changed else {})


def _refuse_lost_types(name: str, types: list[Type]) -> None:
    for known in types:
        if known.declared and len(types) > 1 and not _may_be_json(known.field):
            other = next(other for other in types if other.field is not known.field)
            raise HalaError(
                f"data: column '{name}' is {known.word} in {known.where} and {other.word} in {other.where}",
                "give it the same type in all files, or plan them as runs of their own",
            )


def _unify_field(name: str, fields: list["pa.Field[Any]"], fill: bool) -> "pa.Field[Any]":
    has_nulls = len(fields) == 1 or any(field.nullable for field in fields)
    fields = [field for field in fields if not pa.types.is_null(field.type)] or fields
    if any(is_json(type_of(field)) for field in fields):
        is_text = all(is_json(type_of(field)) and not is_json(field.type) for field in fields)
        return fields[0].with_nullable(has_nulls) if is_text else pa.field(name, JSON)
    metadata = next((field.metadata for field in fields if field.metadata), None)
    kind = _merge(fields[0].type, fields[-1].type, fill)
    needs_integers = any(has(field, EXACT) for field in fields) and fields[0].type != fields[-1].type
    if needs_integers and holds(kind, pa.types.is_floating):
        kind = JSON
    return pa.field(name, kind, has_nulls, None if kind == JSON else metadata)


def _merge(first: pa.DataType, second: pa.DataType, fill: bool, in_object: bool = False) -> pa.DataType:
    """The type that holds the values of both as they are, JSON if there is no other; see ``_kind_of``."""
    if first == second or pa.types.is_null(second):
        return first
    if pa.types.is_null(first):
        return second
    both = (first, second)
    if isinstance(first, pa.StructType) and isinstance(second, pa.StructType):
        return _merge_structs(first, second, fill)
    if all(map(is_list, both)):
        inner: pa.DataType = _merge(items_of(first), items_of(second), fill, in_object)
        return pa.large_list(inner) if any(map(pa.types.is_large_list, both)) else pa.list_(inner)
    if any(pa.types.is_nested(kind) or is_json(kind) or _stands_alone(kind) for kind in both):
        return JSON
    if in_object and not fill and pa.types.is_floating(first) != pa.types.is_floating(second):
        return JSON
    try:
        bare = [pa.schema([pa.field("", _decoded(kind))]) for kind in both]
        kind: pa.DataType = pa.unify_schemas(bare, promote_options="permissive").field(0).type
        return kind
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return JSON


def _merge_structs(first: pa.StructType, second: pa.StructType, fill: bool) -> pa.DataType:
    merged = []
    names = dict.fromkeys(field.name for kind in (first, second) for field in kind)
    own = [field.name for field in second]
    if [name for name in names if name in own] != own and not (fill and any(map(_needs_type, (first, second)))):
        return JSON  # a chat template prints arguments and tools in the order of their keys
    for name in names:
        fields = [kind.field(name) for kind in (first, second) if kind.get_field_index(name) >= 0]
        if len(fields) == 1 and not fill:
            return JSON
        has_nulls = len(fields) == 1 or any(field.nullable for field in fields)
        kind = _merge(fields[0].type, fields[-1].type, fill, in_object=True)
        merged.append(pa.field(name, kind, has_nulls))
    return pa.struct(merged)


def _decoded(kind: pa.DataType) -> pa.DataType:
    """A dictionary is a way to write texts, not another type."""
    return kind.value_type if isinstance(kind, pa.DictionaryType) else kind


def _may_be_json(field: "pa.Field[Any]") -> bool:
    """Whether a column of this type loses nothing as JSON: objects and lists of what JSON has words for."""
    kind = type_of(field)
    return is_json(kind) or (pa.types.is_nested(kind) and not _needs_type(kind))


def _needs_type(kind: pa.DataType) -> bool:
    """Whether a type, or one at any depth in it, has values that JSON has no words for."""
    return holds(kind, _stands_alone) or holds(kind, pa.types.is_temporal)


def _word(kind: pa.DataType) -> str:
    """A type, as people call it; all texts are one to them, however encoded."""
    if is_list(kind):
        return f"list of {_word(items_of(kind))}"
    if pa.types.is_struct(kind):
        return "object with JSON" if holds(kind, is_json) else "object"
    if is_json(kind):
        return "JSON"
    kind = _decoded(kind)
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return "text" if is_text else str(kind)


def _stands_alone(kind: pa.DataType) -> bool:
    """Types whose values another type does not hold, or holds as others to a digest (the decimals 1.5 and 1.50)."""
    types = pa.types
    is_binary = types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)
    return is_binary or types.is_decimal(kind) or types.is_uint64(kind)
