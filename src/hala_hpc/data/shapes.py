"""The shapes of people's datasets: where the texts of a row sit, and how a row looks once they are translated.

A shape finds texts as (place, text) pairs and builds, from translations by place, the new columns of the row. The row
itself is never changed: what is new stands in columns of its own.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Data
from hala_hpc.data.digest import Row
from hala_hpc.data.readers import what
from hala_hpc.data.schema import is_json

Place = tuple[str | int, ...]
"""Where a text sits in its row: a column, and for conversations the number of the turn (and of the part in it)."""
Texts = list[tuple[Place, str]]

ROLES = {
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "bot", "chatgpt", "bard", "bing", "model"),
    "system": ("system", "developer"),
    "tool": ("tool", "function", "observation", "function_call", "tool_call", "tool_response", "ipython"),
}
"""The words that datasets use for the four roles."""


class Shape(Protocol):
    """One layout of rows."""

    @property
    def columns(self) -> Sequence[str]:
        """The columns whose texts are worked on; ``a.b`` reaches into a struct."""

    def texts(self, row: Row) -> Texts:
        """The texts of a row, in order, empty ones left out. Raises HalaError where the row has another form."""

    def rebuild(self, row: Row, translated: Mapping[Place, str]) -> Row:
        """The new columns, by the name of the column that each is made from."""


@dataclass(frozen=True)
class ColumnShape:
    """Texts that are columns: Alpaca, prompt and response, plain text, parallel pairs."""

    columns: Sequence[str]

    def texts(self, row: Row) -> Texts:
        found: Texts = []
        for column in self.columns:
            value = _reach(row, column)
            if value is None:
                continue
            if not isinstance(value, str):
                raise HalaError(f"column '{column}' holds {what(value)}, not text")
            if value.strip():
                found.append(((column,), value))
        return found

    def rebuild(self, row: Row, translated: Mapping[Place, str]) -> Row:
        return {column: translated.get((column,), _reach(row, column)) for column in self.columns}


@dataclass(frozen=True)
class TurnShape:
    """Conversations: a list of turns, each with a role and a text; only turns of ``roles`` are worked on."""

    column: str
    role_key: str
    text_key: str
    roles: frozenset[str]

    @property
    def columns(self) -> Sequence[str]:
        return (self.column,)

    def texts(self, row: Row) -> Texts:
        found: Texts = []
        for number, turn in enumerate(self._turns(row)):
            if self._is_kept(turn, number):
                continue
            content = turn.get(self.text_key)
            if isinstance(content, str):
                found.append(((self.column, number), content))
            elif isinstance(content, list):  # OpenAI's parts: text among images
                parts = [self._part(part, number) for part in content]
                found += [((self.column, number, i), text) for i, text in enumerate(parts) if text is not None]
            elif content is not None:
                raise HalaError(f"turn {number} of '{self.column}' holds {what(content)}, not text")
        return [(place, text) for place, text in found if text.strip()]

    def rebuild(self, row: Row, translated: Mapping[Place, str]) -> Row:
        turns = copy.deepcopy(self._turns(row))
        for (_, number, *part), text in translated.items():
            if part:
                turns[int(number)][self.text_key][part[0]]["text"] = text
            else:
                turns[int(number)][self.text_key] = text
        return {self.column: turns if row.get(self.column) is not None else None}

    def _turns(self, row: Row) -> list[dict[str, Any]]:
        turns = row.get(self.column)
        if turns is None:
            return []
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            raise HalaError(f"column '{self.column}' holds {what(turns)}, not a list of turns")
        return turns

    def _part(self, part: Any, number: int) -> str | None:
        """The text of one part of a turn; None for an image and its like."""
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(part, dict) or not isinstance(text, str | None):
            raise HalaError(
                f"turn {number} of '{self.column}' has a part that holds {what(text)}, not an object's text"
            )
        return text

    def _is_kept(self, turn: dict[str, Any], number: int) -> bool:
        role = turn.get(self.role_key)
        if not isinstance(role, str):
            raise HalaError(f"turn {number} of '{self.column}' has no '{self.role_key}'")
        return role.lower() not in self.roles


NAMED = {
    "alpaca": ("instruction", "input", "output"),
    "text": ("text",),
    "messages": ("messages",),
    "conversations": ("conversations",),
}
"""Columns by which a shape is known; those of Alpaca may lack ``input``."""


def shape_of(data: Data, roles: Sequence[str], schema: pa.Schema) -> Shape:
    """The shape that a recipe asks for, or the one that the columns tell. Raises HalaError listing the columns."""
    kind = data.shape if data.shape != "auto" else _guess(data, schema.names)
    if kind in ("messages", "conversations"):
        column = data.columns[0] if data.columns else kind
        keys = ("role", "content") if kind == "messages" else ("from", "value")
        shape: Shape = TurnShape(column, *keys, spoken_by(roles))
    elif kind == "alpaca":
        shape = ColumnShape([name for name in NAMED["alpaca"] if name in schema.names or name != "input"])
    elif kind == "text":
        shape = ColumnShape(data.columns or NAMED["text"])
    else:
        if not data.columns:
            raise HalaError(f"data.columns: shape '{kind}' needs the names of its text columns", _listed(schema))
        shape = ColumnShape(data.columns[:1] if kind == "pairs" else data.columns)
    require(shape.columns, schema)
    return shape


def require(columns: Sequence[str], schema: pa.Schema) -> None:
    """Raises HalaError where a column is missing."""
    for column in columns:
        if field_of(column, schema) is None:
            raise HalaError(f"no column '{column}'", _listed(schema))


def field_of(column: str, schema: pa.Schema) -> "pa.Field[Any] | None":
    """A column by its name, dots and all, else by the way into a struct; None where there is none."""
    if column in schema.names:
        return schema.field(column)
    first, *rest = column.split(".")
    field = schema.field(first) if first in schema.names else None
    for name in rest:
        if field is not None and is_json(field.type):  # its objects differ: some may have it
            return pa.field(column, pa.string())
        inner = list(field.type) if field is not None and pa.types.is_struct(field.type) else []
        field = next((one for one in inner if one.name == name), None)
    return field


def spoken_by(roles: Sequence[str]) -> frozenset[str]:
    """All words that datasets use for the given roles; a word that is no role of ours stands for itself."""
    return frozenset(word for role in roles for word in (role.lower(), *ROLES.get(role, ())))


def _guess(data: Data, names: Sequence[str]) -> str:
    if data.columns:
        return "columns"
    for kind in ("messages", "conversations", "text"):
        if kind in names:
            return kind
    if {"instruction", "output"} <= set(names):
        return "alpaca"
    raise HalaError(
        "data.shape: cannot tell which columns hold the texts", f"set data.columns to some of: {', '.join(names)}"
    )


def _reach(row: Row, column: str) -> Any:
    value: Any = row
    for name in [column] if column in row else column.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _listed(schema: pa.Schema) -> str:
    return f"columns: {', '.join(schema.names)}"
