"""The shapes of people's datasets: where the texts of a row sit, and how a row looks once they are translated.

A shape finds texts as (place, text) pairs and builds, from translations by place, the new columns of the row. The row
itself is never changed: what is new stands in columns of its own. What is passed over is named in words, to be counted.

A conversation is a list of turns, a single turn, a dict of lists (how `datasets` keeps a sequence of dicts), or JSON
text of one of these. A turn has a role and a content: a text, or parts of several types.
"""

import contextlib
import json
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any, Final

import pyarrow as pa

from hala_hpc.config.errors import HalaError, did_you_mean
from hala_hpc.config.schema import Data
from hala_hpc.data import columns as named
from hala_hpc.data.columns import Place, shown
from hala_hpc.data.files.readers import what
from hala_hpc.data.schema import Row, is_list

Turn = Row
Items = Iterator[tuple[Place | None, str]]
"""Texts with their places; without a place, in words, what is passed over."""

ROLES: Final = {
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "bot", "chatgpt", "bard", "bing", "model"),
    "system": ("system", "developer"),
    "tool": ("tool", "function", "observation", "function_call", "tool_call", "tool_response", "ipython"),
}
"""The words that datasets use for the four roles."""
ROLE_KEYS: Final = ("role", "from", "speaker", "sender")
"""Keys under which a turn says who speaks: OpenAI's, ShareGPT's and others'."""
TEXT_KEYS: Final = ("content", "value", "text", "message", "utterance")
"""Keys under which a turn says what is said."""
TEXT_PARTS: Final = (None, "text", "input_text", "output_text")
"""Types of parts that are text; those without a type are known by their text."""
_PART_KEYS: Final = ("text", "value", "content")


@dataclass(frozen=True)
class Shape:
    """Where the texts of rows sit: in columns, in lists and structs of columns, or in conversations.

    Parameters
    ----------
    paths : columns, as ``data.columns`` names them.
    roles : of turns that are worked on; a column then holds a text, a list of texts or turns. None: only a text.
    is_talk : the columns hold conversations, perhaps as JSON text, and nothing else.
    others : columns that are not worked on.
    only_text : those of ``paths`` whose type nothing shows.
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

    def roles_of(self, row: Row, places: Iterable[Place]) -> list[str]:
        """Who says the texts at some places: the role of a turn, as ``ROLES`` has it, elsewhere the column."""
        said: dict[str | int, list[str]] = {}
        for column in self.columns if self.is_talk else ():
            said[column] = [_role(turn) for turn in turns_of(named.reach(row, column), column)]
        return [
            said[place[0]][next(step for step in place if isinstance(step, int))]
            if place[0] in said and len(place) > 2
            else _speaker(named.reach(row, str(place[0])), place)
            for place in places
        ]

    def left(self, row: Row) -> list[str]:
        """What is passed over in a row: "turns of 'tool' are left as they are"."""
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
                if self.roles is not None and path not in self.only_text:
                    yield from (texts_of_turns if self.is_talk else texts_in)(value, place, self.roles)
                elif isinstance(value, str):
                    yield (column,), value
                elif value is not None:
                    raise HalaError(f"column '{path}' holds {what(value)}, not text")


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

    def columns_in(self, names: Iterable[str]) -> list[str]:
        """Its columns, without those that rows of other columns may lack."""
        return [name for name in self.names if name in names or name not in self.may_lack]

    def are_in(self, names: Iterable[str]) -> bool:
        """Whether all the columns that rows must have are among ``names``."""
        return bool(self.names) and set(self.names) - set(self.may_lack) <= set(names)


CHOSEN: Final = "chosen"
REJECTED: Final = "rejected"
"""Names of the two sides of a preference, as TRL has them."""
SHAPES: Final[dict[str, Known]] = {
    "messages": Known(("messages",), turn_keys=("role", "content")),
    "conversations": Known(("conversations",), turn_keys=("from", "value")),
    "text": Known(("text",)),
    "alpaca": Known(("instruction", "input", "output"), may_lack=("input",), before=("system", "history")),
    "preference": Known(("prompt", CHOSEN, REJECTED), may_lack=("prompt",)),
    "completion": Known(("prompt", "completion")),
    "columns": Known(),
    "pairs": Known(only_first=True),
}
"""The values of ``data.shape``, in the order in which ``auto`` looks for their columns. A new shape is a line here."""
ASIDE: Final = "rows hold text in a column that is left as it is: "


def check(data: Data) -> None:
    """Raises HalaError where no shape has the name."""
    if data.shape != "auto" and data.shape not in SHAPES:
        raise HalaError(f"data.shape: no shape '{data.shape}'", did_you_mean(data.shape, ["auto", *SHAPES]))


def name_of(data: Data, names: Sequence[str]) -> str:
    """The key in SHAPES of the shape that a recipe names, or the columns show. Raises HalaError listing the columns."""
    check(data)
    if data.shape != "auto":
        return data.shape
    if data.columns:
        return "preference" if sides_of(data.columns) else "columns"
    shapes = [name for name, known in SHAPES.items() if known.are_in(names)]
    if not shapes:
        raise HalaError(
            "data.shape: cannot tell which columns hold the texts", f"set data.columns to some of: {', '.join(names)}"
        )
    return shapes[0]


def sides_of(columns: Sequence[str]) -> tuple[str, str] | None:
    """The two sides of a preference among some columns, by their names: ``chosen_ar`` and ``rejected_ar``."""
    pairs = ((name, name.replace(CHOSEN, REJECTED, 1)) for name in columns if CHOSEN in name)
    return next((pair for pair in pairs if pair[1] in columns), None)


def shape_of(data: Data, roles: Sequence[str], schema: pa.Schema) -> Shape:
    """The shape that a recipe names, or the columns show. Raises HalaError listing the columns."""
    name = name_of(data, schema.names)
    known = SHAPES[name]
    paths = data.columns or known.columns_in(schema.names)
    if not paths:
        raise HalaError(f"data.columns: shape '{name}' needs the names of its text columns", _listed(schema))
    paths = paths[:1] if known.only_first else paths
    require(paths, schema)
    _refuse_overlap(paths)
    others = named.others(schema, data.columns or paths)
    unsure = [path for path in paths if named.is_in_json(named.split(path)[0], schema)]
    keys = None
    if known.turn_keys and len(paths) == 1 and paths[0] in schema.names:
        keys, unsure = turn_keys_of(paths[0], schema, known.turn_keys), []
    # A word that is not a role of ours stands for itself.
    spoken = frozenset(word for role in roles for word in (role.lower(), *ROLES.get(role, ())))
    return Shape(tuple(paths), spoken, known.turn_keys is not None, others, tuple(unsure), keys)


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


def refuse_originals(data: Data, columns: Sequence[str], schema: pa.Schema) -> None:
    """Raises HalaError where columns that ``data`` does not name stand beside their translations, as of a run.

    For plans alone: a run that was planned goes on. A shape says how columns are read, not which: every translation of
    a conversation is one too.
    """
    if not data.columns and (sets := named.translated_sets(columns, schema)):
        raise HalaError(
            f"data: rows that a run translated: '{columns[0]}' is the original of '{sets[0][0]}'",
            f"say which is meant: {named.listed([*sets, columns])}",
        )


def _refuse_overlap(paths: Sequence[str]) -> None:
    """Raises HalaError where two paths lead to one text."""
    for first, second in combinations(paths, 2):
        (column, steps), (other, further) = named.split(first), named.split(second)
        if column == other and all(map(operator.eq, steps, further)):
            raise HalaError(f"data.columns: '{first}' and '{second}' lead to the same texts", "name them once")


def turn_keys_of(column: str, schema: pa.Schema, usual: tuple[str, str]) -> tuple[str, str]:
    """The keys of the role and the text of a column's turns: those of its type, else the usual ones."""
    kind = schema.field(column).type
    item = kind.value_type if is_list(kind) else kind
    return keys_of([field.name for field in item] if pa.types.is_struct(item) else [], usual)


def _holds_text(value: Any) -> bool:
    """Whether there is a word in a value, at any depth."""
    if isinstance(value, str):
        return any(map(str.isalpha, value))
    if isinstance(value, dict):
        return any(map(_holds_text, value.values()))
    return isinstance(value, list) and any(map(_holds_text, value))


def _listed(schema: pa.Schema) -> str:
    return f"columns: {', '.join(schema.names)}"


def texts_in(value: Any, place: Place, roles: frozenset[str]) -> Items:
    """The texts of a value that may be a text, a list of texts at any depth, or turns; only turns of ``roles``.

    Raises HalaError for a value of another form.
    """
    if isinstance(value, str):
        yield place, value
        if value.startswith('[{"'):
            words = "look like turns in JSON and are taken as one text (data.shape=messages reads them)"
            yield None, f"texts of '{shown(place[:1])}' {words}"
    elif isinstance(value, dict) and (_role_key(value) or _is_columns(value)):
        yield from texts_of_turns(value, place, roles)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            if isinstance(item, dict) and _role_key(item):
                yield from _texts_of_turn(item, (*place, number), (), number, roles)
            else:
                yield from texts_in(item, (*place, number), roles)
    elif value is not None:
        hint = "name what is in it: a.b, or a[].b in a list" if isinstance(value, dict) else ""
        raise HalaError(f"column '{shown(place)}' holds {what(value)}, not text", hint)


def texts_of_turns(value: Any, place: Place, roles: frozenset[str]) -> Items:
    """The texts of a conversation, in any of its forms. Raises HalaError for anything else."""
    for number, (turn, before, after) in enumerate(_turns(value, place)):
        yield from _texts_of_turn(turn, before, after, number, roles)


def turns_of(value: Any, column: str) -> list[Turn]:
    """A conversation, in any of its forms, as a list of turns. Raises HalaError for anything else."""
    return [turn for turn, _, _ in _turns(value, (column,))]


def keys_of(names: Sequence[str], usual: tuple[str, str]) -> tuple[str, str]:
    """The key of the role and of the text among a turn's keys; where it has none, the usual ones."""
    role = next((key for key in (usual[0], *ROLE_KEYS) if key in names), usual[0])
    return role, next((key for key in (usual[1], *TEXT_KEYS) if key in names), usual[1])


def _turns(value: Any, place: Place) -> Iterator[tuple[Turn, Place, Place]]:
    """Each turn, and what stands before and after one of its keys in a place."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            parsed = json.loads(value) if value.strip() else None
            value = parsed if isinstance(parsed, dict | list | None) else value
    if value is None:
        return
    if isinstance(value, dict) and _is_columns(value):
        columns = {key: items for key, items in value.items() if isinstance(items, list)}
        for number in range(max(map(len, columns.values()))):
            yield {key: items[number] for key, items in columns.items() if number < len(items)}, place, (number,)
    elif isinstance(value, dict) and _role_key(value):
        yield value, place, ()
    elif isinstance(value, list) and all(isinstance(turn, dict) for turn in value):
        for number, turn in enumerate(value):
            yield turn, (*place, number), ()
    else:
        raise HalaError(f"column '{shown(place)}' holds {what(value)}, not a list of turns")


def _texts_of_turn(turn: Turn, before: Place, after: Place, number: int, roles: frozenset[str]) -> Items:
    where = f"turn {number} of '{before[0]}'"
    role_key = _role_key(turn)
    if role_key is None:
        raise HalaError(f"{where} has no 'role'", f"keys of a role: {', '.join(ROLE_KEYS)}")
    role = turn[role_key]
    if role.lower() not in roles:
        yield None, f"turns of '{role}' are left as they are"
        return
    text_key = next((key for key in TEXT_KEYS if turn.get(key) is not None), None)
    for key, value in turn.items():
        if value and isinstance(value, str | list | dict) and key not in (role_key, text_key):
            yield None, f"turns hold '{key}' beside their text, which is left as it is"
    if text_key is None:
        return
    content, place = turn[text_key], (*before, text_key, *after)
    if isinstance(content, str):
        yield place, content
    elif isinstance(content, list):  # OpenAI's parts: text among images
        for index, part in enumerate(content):
            yield from _texts_of_part(part, (*place, index), where)
    else:
        raise HalaError(f"{where} holds {what(content)}, not text")


def _texts_of_part(part: Any, place: Place, where: str) -> Items:
    text = part
    if isinstance(part, dict):
        kind = part.get("type")
        key = next((key for key in _PART_KEYS if part.get(key) is not None), None)
        if kind not in TEXT_PARTS or (kind is None and key is None):
            sort = f"of type '{kind}'" if kind else "without text"
            yield None, f"parts {sort} are left as they are"
            return
        if key is None:
            return
        text, place = part[key], (*place, key)
        if isinstance(text, dict) and isinstance(text.get("value"), str):  # OpenAI's assistants: text with annotations
            text, place = text["value"], (*place, "value")
    if not isinstance(text, str):
        raise HalaError(f"{where} has a part that holds {what(text)}, not text")
    yield place, text


def _role(turn: Turn) -> str:
    """The role of a turn: that of ``ROLES``, else its own word."""
    word = str(turn.get(_role_key(turn) or ""))
    return next((role for role, words in ROLES.items() if word.lower() in words), word)


def _speaker(value: Any, place: Place) -> str:
    """Who says the text at a place in the value of its column: the role of the turn around it, else the column."""
    for step in place[1:]:
        if isinstance(value, dict) and _role_key(value):
            return _role(value)
        if isinstance(value, str):
            break
        value = value[step]
    return str(place[0])


def _role_key(turn: Turn) -> str | None:
    return next((key for key in ROLE_KEYS if isinstance(turn.get(key), str)), None)


def _is_columns(value: Turn) -> bool:
    """Whether a dict holds lists, of roles and what belongs to them."""
    return any(isinstance(value.get(key), list) for key in ROLE_KEYS)
