"""The shapes of people's datasets: where the texts of a row sit, and how a row looks once they are translated.

A shape finds texts as (place, text) pairs and builds, from translations by place, the new columns of the row. The row
itself is never changed: what is new stands in columns of its own. What it passes over it tells in words, to be counted.
"""

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any, Final

import pyarrow as pa

from hala_hpc.config.errors import HalaError, did_you_mean
from hala_hpc.config.schema import Data
from hala_hpc.data.arrow import columns as named
from hala_hpc.data.arrow.columns import Place
from hala_hpc.data.arrow.schema import Row, is_list
from hala_hpc.data.chat import turns
from hala_hpc.data.chat.turns import Items, spoken_by
from hala_hpc.data.files.readers import what


@dataclass(frozen=True)
class Shape:
    """Where the texts of rows sit: in columns, in lists and structs of columns, or in conversations.

    Parameters
    ----------
    paths : columns, as ``data.arrow.columns`` names them.
    roles : of turns that are worked on; a column then holds a text, a list of texts or turns. None: only a text.
    is_talk : the columns hold conversations, perhaps as JSON text, and nothing else.
    others : columns that are not worked on.
    only_text : of ``paths``, those of which nothing tells the type.
    turn_keys : where one column holds conversations, the keys of a turn's role and text: those of its type, or the
        usual ones.
    """

    paths: Sequence[str]
    roles: frozenset[str] | None = None
    is_talk: bool = False
    others: Sequence[str] = ()
    only_text: Sequence[str] = ()
    turn_keys: tuple[str, str] | None = None

    @cached_property
    def columns(self) -> Sequence[str]:
        """The columns that new ones are made from; ``a.b`` reaches into a struct."""
        return tuple(dict.fromkeys(named.split(path)[0] for path in self.paths))

    def texts(self, row: Row) -> list[tuple[Place, str]]:
        """The texts of a row, in order, empty ones left out. Raises HalaError where the row has another form."""
        return [(place, text) for place, text in self._items(row) if place is not None and text.strip()]

    def left(self, row: Row) -> list[str]:
        """What of a row is passed over: "turns of 'tool' are left as they are"."""
        words = [text for place, text in self._items(row) if place is None]
        words += [f"rows lack '{column}'" for column in self.columns if named.reach(row, column) is None]
        return words + [f"{ASIDE}'{column}'" for column in self.others if _holds_text(named.reach(row, column))]

    def rebuild(self, row: Row, translated: Mapping[Place, str]) -> Row:
        """The new columns, by the name of the column that each is made from."""
        return {column: named.rebuilt(named.reach(row, column), column, translated) for column in self.columns}

    def _items(self, row: Row) -> Items:
        for path in self.paths:
            column, steps = named.split(path)
            reached = named.reach(row, column)
            if isinstance(reached, str) and not steps and not self.is_talk and reached[:1] != "[":
                yield (column,), reached  # most are just this, of millions of rows
                continue
            for place, value in named.within(reached, steps, (column,)):
                if self.roles is None or path in self.only_text:
                    yield from _text(value, path)
                else:
                    find = turns.texts_of_turns if self.is_talk else turns.texts_in
                    yield from find(value, place, self.roles)


@dataclass(frozen=True)
class Known:
    """What the name of a shape stands for.

    Parameters
    ----------
    names : its columns; none: the recipe names them.
    may_lack : of ``names``, those that rows need not have.
    before : columns that come before the user's turn when such rows are trained on.
    turn_keys : the usual keys of a turn's role and text, where the columns hold conversations.
    only_first : the other columns are references, which are not worked on.
    """

    names: tuple[str, ...] = ()
    may_lack: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    turn_keys: tuple[str, str] | None = None
    only_first: bool = False

    def are_in(self, names: Iterable[str]) -> bool:
        """Whether all the columns that rows must have are among ``names``."""
        return bool(self.names) and set(self.names) - set(self.may_lack) <= set(names)


SHAPES: Final[dict[str, Known]] = {
    "messages": Known(("messages",), turn_keys=("role", "content")),
    "conversations": Known(("conversations",), turn_keys=("from", "value")),
    "text": Known(("text",)),
    "alpaca": Known(("instruction", "input", "output"), may_lack=("input",), before=("system", "history")),
    "columns": Known(),
    "pairs": Known(only_first=True),
}
"""The values of ``data.shape``, in the order in which ``auto`` looks for their columns. A new shape is a line here."""
ASIDE: Final = "rows hold text in a column that is left as it is: "


def check(data: Data) -> None:
    """Raises HalaError where there is no shape of the name."""
    if data.shape != "auto" and data.shape not in SHAPES:
        raise HalaError(f"data.shape: no shape '{data.shape}'", did_you_mean(data.shape, ["auto", *SHAPES]))


def name_of(data: Data, names: Sequence[str]) -> str:
    """The key in SHAPES of the shape that a recipe names, or the columns show. Raises HalaError listing the columns."""
    check(data)
    if data.shape != "auto":
        return data.shape
    shapes = ["columns"] if data.columns else [name for name, known in SHAPES.items() if known.are_in(names)]
    if not shapes:
        raise HalaError(
            "data.shape: cannot tell which columns hold the texts", f"set data.columns to some of: {', '.join(names)}"
        )
    return shapes[0]


def shape_of(data: Data, roles: Sequence[str], schema: pa.Schema) -> Shape:
    """The shape that a recipe names, or the columns show. Raises HalaError listing the columns."""
    name = name_of(data, schema.names)
    known = SHAPES[name]
    paths = data.columns or [name for name in known.names if name in schema.names or name not in known.may_lack]
    if not paths:
        raise HalaError(f"data.columns: shape '{name}' needs the names of its text columns", _listed(schema))
    paths = paths[:1] if known.only_first else paths
    require(paths, schema)
    _refuse_overlap(paths)
    others = named.others(schema, data.columns or paths)
    unsure = [path for path in paths if named.is_in_json(named.split(path)[0], schema)]
    keys = None
    if known.turn_keys and len(paths) == 1 and paths[0] in schema.names:
        keys, unsure = turns.keys_of(_turn_keys(schema.field(paths[0]).type), known.turn_keys), []
    return Shape(tuple(paths), spoken_by(roles), known.turn_keys is not None, others, tuple(unsure), keys)


def require(columns: Sequence[str], schema: pa.Schema) -> None:
    """Raises HalaError where a column is missing."""
    for column in columns:
        if named.field_of(column, schema) is None:
            inside = column.replace(".", "[].")
            parts = [part.strip() for part in column.split(",")]
            hint = _listed(schema)
            if len(parts) > 1 and all(named.field_of(part, schema) for part in parts):
                hint = f"several are data.columns=[{','.join(parts)}]"
            elif named.field_of(inside, schema) is not None:
                hint = f"in each item of a list: {inside}"
            raise HalaError(f"no column '{column}'", hint)


def refuse_originals(columns: Sequence[str], schema: pa.Schema) -> None:
    """Raises HalaError where columns that nobody named stand beside their translations, as in a collected folder.

    A run marks the columns that it adds; where the marks were lost, ``hala_row`` tells that a run made the rows.
    """
    marked = named.translations(schema)
    is_made = bool(marked) or "hala_row" in schema.names
    sets: dict[str, list[str]] = {}
    for column in columns:
        flat = column.replace(".", "_")
        for name in schema.names:
            is_like = name.startswith(f"{flat}_") and schema.field(name).type == schema.field(column).type
            if marked.get(name, column if is_like and not marked else None) == column:
                sets.setdefault(name.removeprefix(flat), []).append(name)
    if is_made and sets:
        choices = [f"columns: [{', '.join(names)}]" for names in [*sets.values(), list(columns)]]
        raise HalaError(
            f"data: rows that a run translated: '{columns[0]}' is the original of '{next(iter(sets.values()))[0]}'",
            f"say which is meant: {' or '.join(choices)}",
        )


def _refuse_overlap(paths: Sequence[str]) -> None:
    """Raises HalaError where two paths lead to one text."""
    for first, second in combinations(paths, 2):
        (column, steps), (other, further) = named.split(first), named.split(second)
        if column == other and all(map(operator.eq, steps, further)):
            raise HalaError(f"data.columns: '{first}' and '{second}' lead to the same texts", "name them once")


def _turn_keys(kind: Any) -> list[str]:
    """The keys of turns, where a column's type tells them."""
    item = kind.value_type if is_list(kind) else kind
    return [field.name for field in item] if pa.types.is_struct(item) else []


def _text(value: Any, path: str) -> Items:
    if isinstance(value, str):
        yield (named.split(path)[0],), value
    elif value is not None:
        raise HalaError(f"column '{path}' holds {what(value)}, not text")


def _holds_text(value: Any) -> bool:
    """Whether there is a word in a value, at any depth."""
    if isinstance(value, str):
        return any(map(str.isalpha, value))
    if isinstance(value, dict):
        return any(map(_holds_text, value.values()))
    return isinstance(value, list) and any(map(_holds_text, value))


def _listed(schema: pa.Schema) -> str:
    return f"columns: {', '.join(schema.names)}"
