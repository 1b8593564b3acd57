"""Columns by name: ``a``, ``a.b`` in a struct, ``a[].b`` in each item of a list; and places in the values they hold.

A path is split at its first ``[]``: before it stands the column that a new column is made from, after it the steps to
the texts in its values.
"""

import copy
import functools
import json
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import pyarrow as pa

from hala_hpc.config.errors import HalaError
from hala_hpc.data.files.readers import what
from hala_hpc.data.schema import Mark, Row, has, is_json, is_list

Place = tuple[str | int, ...]
"""Where a text sits in its row: a column, then keys and numbers of items."""
Steps = tuple[str | None, ...]
"""The way into a value: a key of an object, or None for every item of a list."""

EACH: Final = "[]"
OF: Final = b"hala.of"
"""Metadata key of a column that a run added: the name of the column that it is the translation of."""
IN_JSON: Final[Mark] = {b"hala": b"in json"}
"""Mark of what a path leads to in JSON."""


@functools.cache
def split(path: str) -> tuple[str, Steps]:
    """A path as its column and the steps from there: ``a.b[].c`` is ``a.b`` and every item's ``c``."""
    column, *rest = path.split(EACH)
    steps = [step for part in rest for step in (None, *filter(None, part.split(".")))]
    return column, tuple(steps)


def reach(row: Row, column: str) -> Any:
    """The value of a column by its name, dots and all, else by the way into a struct; None where there is none."""
    if column in row:
        return row[column]
    value: Any = row
    for name in column.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def within(value: Any, steps: Steps, place: Place) -> Iterator[tuple[Place, Any]]:
    """The values that steps lead to, each with its place. Raises HalaError where the value has another form."""
    if not steps or value is None:
        yield place, value
    elif steps[0] is None:
        if not isinstance(value, list):
            raise HalaError(f"column '{shown(place)}' holds {what(value)}, not a list")
        for number, item in enumerate(value):
            yield from within(item, steps[1:], (*place, number))
    else:
        if not isinstance(value, dict):
            raise HalaError(f"column '{shown(place)}' holds {what(value)}, not an object")
        yield from within(value.get(steps[0]), steps[1:], (*place, steps[0]))


def rebuilt(value: Any, column: str, texts: Mapping[Place, str]) -> Any:
    """A copy of a column's value with other texts at their places; JSON text stays JSON text."""
    inside = {place[1:]: text for place, text in texts.items() if place[0] == column}
    if not inside or () in inside:
        return inside.get((), value)
    is_json = isinstance(value, str)
    whole = json.loads(value) if is_json else copy.deepcopy(value)
    for place, text in inside.items():
        functools.reduce(operator.getitem, place[:-1], whole)[place[-1]] = text
    return json.dumps(whole, ensure_ascii=False) if is_json else whole


def shown(place: Place) -> str:
    """A place as a person writes it: ``choices[1].text``."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).removeprefix(".")


def field_of(path: str, schema: pa.Schema) -> "pa.Field[Any] | None":
    """What a path leads to; None where there is nothing. JSON, whose objects differ, may hold a text anywhere."""
    column, steps = split(path)
    names = [column] if column in schema.names else column.split(".")
    field: pa.Field[Any] | None = pa.field("", pa.struct(list(schema)))
    for step in (*names, *steps):
        if field is None:
            return None
        if is_json(field.type):
            return pa.field(path, pa.string(), metadata=IN_JSON)
        field = _inner(field.type, step)
    return field


def is_in_json(column: str, schema: pa.Schema) -> bool:
    """Whether a column lies in objects that differ from row to row, so that nothing shows its type."""
    field = field_of(column, schema)
    return field is not None and has(field, IN_JSON)


def translations(schema: pa.Schema) -> dict[str, str]:
    """The columns that runs added, each with the column that it is the translation of."""
    return {field.name: (field.metadata or {})[OF].decode() for field in schema if OF in (field.metadata or {})}


def translated_sets(columns: Sequence[str], schema: pa.Schema) -> list[list[str]]:
    """The translations of some columns that stand beside them, by run.

    A run marks the columns that it adds; where the marks were lost, ``hala_row`` shows that a run made the rows.
    """
    marked = translations(schema)
    sets: dict[str, list[str]] = {}
    for column in columns if marked or "hala_row" in schema.names else ():
        flat = column.replace(".", "_")
        for name in schema.names:
            is_like = name.startswith(f"{flat}_") and schema.field(name).type == schema.field(column).type
            if marked.get(name, column if is_like and not marked else None) == column:
                sets.setdefault(name.removeprefix(flat), []).append(name)
    return list(sets.values())


def listed(sets: Iterable[Sequence[str]]) -> str:
    """Sets of columns, as a recipe may name any of them."""
    return " or ".join(f"columns: [{', '.join(names)}]" for names in sets)


def others(schema: pa.Schema, paths: Sequence[str]) -> tuple[str, ...]:
    """The columns that no path names and no run added; where a path names a part of a struct, its other fields."""
    named = [split(path)[0] for path in paths]
    return tuple(_others(list(schema), "", named))


def _others(fields: "Sequence[pa.Field[Any]]", before: str, named: Sequence[str]) -> Iterator[str]:
    for field in fields:
        name = before + field.name
        if name in named or field.name.startswith("hala_") or OF in (field.metadata or {}):
            continue
        if any(column.startswith(f"{name}.") for column in named):
            yield from _others(list(field.type) if pa.types.is_struct(field.type) else [], f"{name}.", named)
        else:
            yield name


def _inner(kind: Any, step: str | None) -> "pa.Field[Any] | None":
    if step is None:
        return kind.value_field if is_list(kind) else None
    is_there = pa.types.is_struct(kind) and kind.get_field_index(step) >= 0
    return kind.field(step) if is_there else None
