"""What of a conversation its chat template renders, and where: found by rendering it with marks in place of its texts.

A template may pass over whatever it does not know: tool calls, reasoning, a system turn, tools. The model would then
learn to answer what it was never shown, or to say nothing. So each conversation that is built in a new way is rendered
once more, with a mark for each of its texts; those of the same build are known from the first.
"""

import json
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Final

from hala_hpc.config.errors import HalaError
from hala_hpc.data.chat.documents import CONTENTS, Chat

THINK: Final = re.compile(r"(</?think>)")
NO_TEXTS: Final = ("role", "id", "type", "index", "tool_call_id")
"""Keys of a turn or a call that say nothing of the conversation; so does a turn's own ``name``."""
CONTENT_OF: Final = {"system": "system", "tool": "tool"}
"""How the content of a turn is called in ``leave_out``, by role; that of others is ``content``."""
NAMES: Final = frozenset({*CONTENTS, *CONTENT_OF.values(), "content", "tools"})
"""What ``leave_out`` can name; where a template leaves out something else, that is only counted."""
Spans = list[tuple[int, int]]
Render = Callable[[Chat], tuple[str, Spans]]
"""A conversation as text, and the characters of it, from and to, that the assistant says."""


@dataclass(frozen=True)
class Mark:
    """Stands for one text: of which turn (None: of the tools), and by which name it may be left out."""

    word: str
    turn: int | None
    name: str

    @property
    def where(self) -> str:
        """For a person."""
        if self.turn is None:
            return self.name
        is_content = self.name in ("content", *CONTENT_OF.values())
        return f"{'the content' if is_content else self.name} of turn {self.turn + 1}"


@dataclass(frozen=True)
class Seen:
    """What became of a conversation. ``left_out``: names; ``turns``: of each span of the assistant, whose it is."""

    left_out: frozenset[str]
    turns: list[frozenset[int]]


class Marks:
    """Looks at conversations through one template, and remembers the builds that it has seen."""

    def __init__(self, render: Render, accepted: Collection[str]) -> None:
        """``accepted``: NAMES of what may be left out."""
        self._render, self._accepted = render, frozenset(accepted)
        self._seen: dict[Any, Seen] = {}

    def look(self, chat: Chat) -> Seen:
        """Raises HalaError that names the turn and what the template leaves out, or takes for somebody else's."""
        build = _build(chat)
        if (seen := self._seen.get(build)) is None:
            seen = self._seen[build] = self._looked(chat)
        return seen

    def learned(self, chat: Chat, spans: Spans) -> Spans:
        """Spans of turns that are to be learned, and that say something although much may be left out.

        Raises HalaError where the turns cannot be told apart.
        """
        if not chat.unlearned and not self._accepted:
            return spans
        turns, unlearned = self.look(chat).turns, chat.unlearned
        if len(turns) != len(spans) or not all(whose <= unlearned or not whose & unlearned for whose in turns):
            raise HalaError(
                "the chat template marks turns that are to be learned together with others that are not",
                "it should have {% generation %} once for each turn of the assistant",
            )
        return [span for span, whose in zip(spans, turns, strict=True) if whose and not whose <= unlearned]

    def _looked(self, chat: Chat) -> Seen:
        marking = _Marking()
        text, spans = self._render(marking.chat(chat))
        missing = {mark for mark in marking.made if mark.word not in text}
        for mark in marking.made:
            if mark in missing and mark.name in NAMES - self._accepted:
                raise HalaError(
                    f"the chat template leaves out {mark.where}",
                    f"give another with task.chat_template, or do without: leave_out: [{mark.name}]",
                )
        said = [text[begin:end] for begin, end in spans]
        for mark in marking.made:
            if mark.turn is not None and mark.name in NAMES and mark not in missing:
                _refuse_wrong_spans(mark, chat.messages[mark.turn]["role"], said)
        of_turns = [mark for mark in marking.made if mark.turn is not None and mark.name in NAMES]
        turns = [
            frozenset(mark.turn for mark in of_turns if mark.turn is not None and mark.word in one) for one in said
        ]
        return Seen(frozenset(mark.name for mark in missing), turns)


def _refuse_wrong_spans(mark: Mark, role: str, said: list[str]) -> None:
    hint = "what the assistant says, and nothing else, stands between {% generation %} and {% endgeneration %}"
    is_said = any(mark.word in one for one in said)
    if role == "assistant" and not is_said:
        raise HalaError(f"the chat template does not mark {mark.where} as the assistant's", hint)
    if role != "assistant" and is_said:
        raise HalaError(f"the chat template marks {mark.where} as the assistant's, and it is the {role}'s", hint)


class _Marking:
    """Puts marks in place of texts. ``made`` are all of one conversation."""

    def __init__(self) -> None:
        self.made: list[Mark] = []

    def chat(self, chat: Chat) -> Chat:
        messages = [self._message(turn, message) for turn, message in enumerate(chat.messages)]
        return Chat(messages, None if chat.tools is None else [self._tool(tool) for tool in chat.tools])

    def _message(self, turn: int, message: dict[str, Any]) -> dict[str, Any]:
        content = self._text(message["content"], turn, CONTENT_OF.get(message["role"], "content"))
        skipped = (*NO_TEXTS, "name", "content")
        others = {key: self._deep(one, turn, key) for key, one in message.items() if key not in skipped}
        return message | others | {"content": content}

    def _tool(self, tool: dict[str, Any]) -> dict[str, Any]:
        """What a model has to know to call it: its name, what it does, and the names of its parameters."""
        if isinstance(function := tool.get("function"), dict):
            return tool | {"function": self._tool(function)}
        found = tool | {key: self._mark(None, "tools") for key in ("name", "description") if tool.get(key)}
        parameters = tool.get("parameters")
        if isinstance(parameters, dict) and isinstance(properties := parameters.get("properties"), dict):
            named = {self._mark(None, "tools"): one for one in properties.values()}
            found["parameters"] = parameters | {"properties": named}
        return found

    def _mark(self, turn: int | None, name: str) -> str:
        self.made.append(Mark(f"hm{len(self.made)}x", turn, name))
        return self.made[-1].word

    def _text(self, given: str, turn: int, name: str) -> str:
        """A thought within a text is marked by itself: templates take it out of earlier turns."""
        parts = THINK.split(given)  # text, tag, text, …
        for at in range(0, len(parts), 2):
            if parts[at].strip():
                is_thought = "<think>" in parts[at - 1 : at] or "</think>" in parts[at + 1 : at + 2]
                parts[at] = self._mark(turn, "thinking" if is_thought else name)
        return "".join(parts)

    def _deep(self, given: Any, turn: int, name: str) -> Any:
        """All texts of a value, and the names of arguments."""
        if isinstance(given, str):
            return self._text(given, turn, name)
        if isinstance(given, list):
            return [self._deep(one, turn, name) for one in given]
        if not isinstance(given, dict):
            return given
        return {
            key: one
            if key in NO_TEXTS
            else self._arguments(one, turn, name)
            if key == "arguments"
            else self._deep(one, turn, name)
            for key, one in given.items()
        }

    def _arguments(self, given: Any, turn: int, name: str) -> Any:
        """An object, or JSON text of one: each entry gets a name that is a mark, for values need not be texts."""
        whole = _object(given)
        if whole is None:
            return self._deep(given, turn, name)
        marked = {self._mark(turn, name): one for one in whole.values()}
        return json.dumps(marked) if isinstance(given, str) else marked


def _build(chat: Chat) -> Any:
    """What tells conversations apart to a template: roles, keys, and which of them hold something."""
    turns = tuple((message["role"], *_content(message["content"]), *_others(message)) for message in chat.messages)
    return turns, tuple(map(_shape, chat.tools or ()))


def _content(content: str) -> Iterator[Any]:
    yield bool(content.strip())
    if "think>" in content:
        yield from ((THINK.fullmatch(part) and part) or bool(part.strip()) for part in THINK.split(content))


def _others(message: dict[str, Any]) -> Iterator[Any]:
    for key, value in message.items():
        if key in CONTENTS:
            yield key, _shape(value)
        elif key not in ("role", "content"):
            yield key, bool(value)


def _shape(value: Any) -> Any:
    """Keys and kinds of a value without what it says; of arguments and parameters only whether there are any."""
    if isinstance(value, dict):
        names = ("arguments", "properties")
        return tuple((key, type(one), bool(one)) if key in names else (key, _shape(one)) for key, one in value.items())
    return tuple(map(_shape, value)) if isinstance(value, list) else (type(value), bool(value))


def _object(given: Any) -> dict[str, Any] | None:
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            return None
    return given if isinstance(given, dict) else None
