"""Turns as a training reads them: who says what, what else they hold, and whether they are to be learned."""

import json
from collections.abc import Sequence
from typing import Any, Final

import pyarrow as pa

from hala_hpc.config.errors import HalaError
from hala_hpc.data import columns as named
from hala_hpc.data.files.readers import what
from hala_hpc.data.schema import Row, is_json
from hala_hpc.data.shapes import ROLES, TEXT_PARTS, Shape, Turn, keys_of, turns_of

CALLS: Final = ("function_call", "tool_call")
"""Turns that ROLES counts among the tool's, because nothing in them is to be translated. The model speaks them."""
ROLE_OF: Final = {word: role for role, words in ROLES.items() for word in words} | dict.fromkeys(CALLS, "assistant")
EMPTY_LINE: Final = "\n\n"
"""Stands between the columns of a prompt, and between a prompt and its answer."""
CONTENTS: Final = ("tool_calls", "function_call", "reasoning", "reasoning_content", "thinking")
"""Keys of a turn, beside its text, that hold what is said."""
WEIGHTS: Final = ("weight", "loss", "train")
"""Keys of a turn that say whether it is to be learned: OpenAI's, AgentInstruct's, axolotl's."""


class Dropped(Exception):
    """The row gives nothing to learn from; the reason as ``reason: detail``."""


def spoken(value: Any, column: str, usual: tuple[str, str]) -> tuple[list[Turn], list[bool | None]]:
    """The messages of a conversation, and for each whether it says that it is to be learned. Raises HalaError.

    ``usual``: the keys of a turn's role and text where it has several.
    """
    turns = turns_of(value, column)
    places = [f"turn {number} of '{column}'" for number in range(1, len(turns) + 1)]
    messages = [_message(turn, where, usual) for turn, where in zip(turns, places, strict=True)]
    return messages, list(map(_weight, turns, places))


def _message(turn: Turn, where: str, usual: tuple[str, str]) -> Turn:
    kept = {key: value for key, value in turn.items() if value is not None}  # Parquet fills in absent keys
    role_key, text_key = keys_of(list(kept), usual)
    word = kept.pop(role_key, None)
    role = ROLE_OF.get(word.lower()) if isinstance(word, str) else None
    if role is None:
        raise HalaError(f"{where} has the {role_key} {word!r}", f"known: {', '.join(sorted(ROLE_OF))}")
    content = _content(kept.pop(text_key, None), where)
    return {**{key: value for key, value in kept.items() if key not in WEIGHTS}, "role": role, "content": content}


def may_be_turns(column: str, schema: pa.Schema) -> bool:
    """Whether a column's type may hold turns, and not only a text."""
    field = named.field_of(column, schema)
    return field is not None and (pa.types.is_nested(field.type) or is_json(field.type))


def turns_with(prompt: list[Turn], turns: list[Turn]) -> int:
    """How many turns there are up to the end of a prompt with which they begin, perhaps after a system turn."""
    if not prompt:
        return 0
    before = next((at for at, turn in enumerate(turns) if turn["role"] != "system"), 0)
    begins = [at for at in (0, before) if turns[at : at + len(prompt)] == prompt]
    return begins[0] + len(prompt) if begins else 0


def joined(columns: Sequence[str], row: Row) -> str:
    """The texts of some columns, with an empty line between them. Raises HalaError where one holds another value."""
    return EMPTY_LINE.join(text for _, text in Shape(columns).texts(row))


def said(column: str, row: Row, role: str) -> tuple[list[Turn], list[bool | None]]:
    """The messages of a column that holds turns, or a text of ``role``; see ``spoken``."""
    value = named.reach(row, column)
    if isinstance(value, str):
        return ([{"role": role, "content": value}], [None]) if value.strip() else ([], [])
    return spoken(value, column, ("role", "content"))


def says_something(message: Turn) -> bool:
    """Whether a turn holds a text, a call or a thought."""
    return bool(message["content"].strip()) or any(message.get(key) for key in CONTENTS)


def _weight(turn: Turn, where: str) -> bool | None:
    """Whether a turn says that it is to be learned, or not to be; None where it says neither. Raises HalaError."""
    weights = [(key, turn[key]) for key in WEIGHTS if turn.get(key) is not None]
    for key, value in weights:
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise HalaError(f"{where} has the {key} {value!r}", "a turn is learned (1, true) or not (0, false)")
    return all(value for _, value in weights) if weights else None


def _content(content: Any, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise HalaError(f"{where} holds {what(content)}, not text", "only texts can be trained on")
    return "".join(_part(part, where) for part in content)


def _part(part: Any, where: str) -> str:
    """The text of one part of a turn. Raises HalaError for anything else: an image, a call, a thought."""
    kind, text = (part.get("type"), part.get("text")) if isinstance(part, dict) else (None, None)
    if kind not in TEXT_PARTS or not isinstance(text, str):
        raise HalaError(f"{where} has a part that is not text ({kind or what(part)})", "only texts can be trained on")
    return text


def turns_before(column: str, given: Any) -> list[dict[str, str]]:
    """The turns of one column that comes before the user's turn. Raises HalaError where it has another form."""
    if column == "system" and isinstance(given, str | None):
        return [{"role": "system", "content": given}] if given and given.strip() else []
    pairs = given or []
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in pairs
    ):
        form = "text" if column == "system" else "a list of pairs: a prompt and its answer"
        raise HalaError(f"column '{column}' holds {what(given)}, not {form}")
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for pair in pairs for role, text in zip(roles, pair, strict=True)]


def tools_of(given: Any) -> list[Row] | None:
    """The tools of a row: a list of descriptions, or JSON text of one; None where there are none."""
    try:
        tools = json.loads(given) if isinstance(given, str) and given.strip() else given or None
        tools = [json.loads(tool) if isinstance(tool, str) else tool for tool in tools or []]
    except (ValueError, TypeError) as error:
        raise HalaError(f"column 'tools' is not a list of tools: {error}") from error
    if not all(isinstance(tool, dict) for tool in tools):
        raise HalaError(f"column 'tools' holds {what(tools)}, not a list of objects")
    return tools or None
