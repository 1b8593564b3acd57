"""Turns of conversations and lists of texts, in the forms that datasets have: which texts they hold, and what else.

A conversation is a list of turns, a single turn, a dict of lists (how `datasets` keeps a sequence of dicts), or JSON
text of one of these. A turn has a role and a content: a text, or parts of several types.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

from hala_hpc.config.errors import HalaError
from hala_hpc.data.arrow.columns import Place, shown
from hala_hpc.data.files.readers import what

Turn = dict[str, Any]
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
"""Types of parts that are text; those without a type are told by their text."""
_PART_KEYS: Final = ("text", "value", "content")


def spoken_by(roles: Sequence[str]) -> frozenset[str]:
    """All words that datasets use for the given roles; a word that is no role of ours stands for itself."""
    return frozenset(word for role in roles for word in (role.lower(), *ROLES.get(role, ())))


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
        yield from _texts_of_turns(value, place, roles)
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
    """The texts of a conversation, in any of its forms. Raises HalaError for what is none."""
    if isinstance(value, str):
        value = _parsed(value, place)
    yield from _texts_of_turns(value, place, roles)


def turns_of(value: Any, column: str) -> list[Turn]:
    """A conversation, in any of its forms, as a list of turns. Raises HalaError for what is none."""
    if isinstance(value, str):
        value = _parsed(value, (column,))
    return [turn for turn, _, _ in _turns(value, (column,))]


def keys_of(names: Sequence[str], usual: tuple[str, str]) -> tuple[str, str]:
    """The key of the role and of the text among a turn's keys; where it has none, the usual ones."""
    role = next((key for key in (usual[0], *ROLE_KEYS) if key in names), usual[0])
    return role, next((key for key in (usual[1], *TEXT_KEYS) if key in names), usual[1])


def _parsed(text: str, place: Place) -> Any:
    try:
        value = json.loads(text) if text.strip() else None
    except ValueError:
        value = text
    if not isinstance(value, dict | list | None):
        raise HalaError(f"column '{shown(place)}' holds a text, not a list of turns")
    return value


def _texts_of_turns(value: Any, place: Place, roles: frozenset[str]) -> Items:
    for number, (turn, before, after) in enumerate(_turns(value, place)):
        yield from _texts_of_turn(turn, before, after, number, roles)


def _turns(value: Any, place: Place) -> Iterator[tuple[Turn, Place, Place]]:
    """Each turn, and what stands before and after one of its keys in a place."""
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
    if isinstance(part, str):
        yield place, part
        return
    if not isinstance(part, dict):
        raise HalaError(f"{where} has a part that holds {what(part)}, not text")
    kind = part.get("type")
    key = next((key for key in _PART_KEYS if part.get(key) is not None), None)
    if kind not in TEXT_PARTS or (kind is None and key is None):
        yield (
            None,
            f"parts of type '{kind}' are left as they are" if kind else "parts without text are left as they are",
        )
        return
    if key is None:
        return
    text, place = part[key], (*place, key)
    if isinstance(text, dict) and isinstance(text.get("value"), str):  # OpenAI's assistants: text with annotations
        text, place = text["value"], (*place, "value")
    if not isinstance(text, str):
        raise HalaError(f"{where} has a part that holds {what(text)}, not text")
    yield place, text


def _role_key(turn: Turn) -> str | None:
    return next((key for key in ROLE_KEYS if isinstance(turn.get(key), str)), None)


def _is_columns(value: Turn) -> bool:
    """Whether a dict holds lists, of roles and what belongs to them."""
    return any(isinstance(value.get(key), list) for key in ROLE_KEYS)
