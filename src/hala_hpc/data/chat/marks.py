"""What a chat template renders of a conversation, and where: seen by rendering it with marks in place of its texts.

A template may pass over whatever it does not know: tool calls, reasoning, a system turn, tools. The model would then
learn to answer what it was never shown, or to say nothing. So each conversation that is built in a new way is rendered
once more, with a mark for each of its texts; those of the same build are known from the first.
"""

import contextlib
import json
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Final

from hala_hpc.config.errors import HalaError
from hala_hpc.data.arrow.schema import Row
from hala_hpc.data.chat.documents import CONTENTS, Chat
from hala_hpc.data.shapes import Turn

THINK: Final = re.compile(r"(</?think>)")
NO_TEXTS: Final = ("role", "id", "type", "index", "tool_call_id")
"""Keys of a turn or a call that hold nothing of the conversation; nor does a turn's own ``name``."""
CONTENT_OF: Final = {"system": "system", "tool": "tool"}
"""How the content of a turn is called in ``leave_out``, by role; that of others is ``content``."""
NAMES: Final = frozenset({*CONTENTS, *CONTENT_OF.values(), "content", "tools"})
"""What ``leave_out`` can name; where a template leaves out something else, that is only counted."""
Spans = list[tuple[int, int]]
Render = Callable[[Chat], tuple[str, Spans]]
"""A conversation as text, and the characters of it, from and to, that the assistant says."""


@dataclass(frozen=True)
class Mark:
    """Stands for one text: ``turn`` holds it (None: the tools do), and ``name`` is what ``leave_out`` calls it."""

    word: str
    turn: int | None
    name: str

    @property
    def where(self) -> str:
        """The mark's place, as a person names it."""
        if self.turn is None:
            return self.name
        is_content = self.name in ("content", *CONTENT_OF.values())
        return f"{'the content' if is_content else self.name} of turn {self.turn + 1}"


@dataclass(frozen=True)
class Seen:
    """What became of a conversation: names of what is left out, and for each span of the assistant its turns."""

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
            seen = self._seen[build] = self._rendered(chat)
        return seen

    def learned(self, chat: Chat, spans: Spans) -> Spans:
        """Spans of turns that are to be learned, and that say something although much may be left out.

        Raises HalaError where the turns cannot be separated.
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

    def _rendered(self, chat: Chat) -> Seen:
        marking = _Marking()
        text, spans = self._render(marking.chat(chat))
        missing = [mark for mark in marking.marks if mark.word not in text]
        for mark in missing:
            if mark.name in NAMES - self._accepted:
                raise HalaError(
                    f"the chat template leaves out {mark.where}",
                    f"give another with task.chat_template, or do without: leave_out: [{mark.name}]",
                )
        spoken = [text[begin:end] for begin, end in spans]
        of_turns = [(mark, mark.turn) for mark in marking.marks if mark.turn is not None and mark.name in NAMES]
        for mark, turn in of_turns:
            if mark not in missing:
                _refuse_wrong_spans(mark, chat.messages[turn]["role"], spoken)
        turns = [frozenset(turn for mark, turn in of_turns if mark.word in span) for span in spoken]
        return Seen(frozenset(mark.name for mark in missing), turns)


def _refuse_wrong_spans(mark: Mark, role: str, spoken: list[str]) -> None:
    hint = "what the assistant says, and nothing else, stands between {% generation %} and {% endgeneration %}"
    is_spoken = any(mark.word in span for span in spoken)
    if role == "assistant" and not is_spoken:
        raise HalaError(f"the chat template does not mark {mark.where} as the assistant's", hint)
    if role != "assistant" and is_spoken:
        raise HalaError(f"the chat template marks {mark.where} as the assistant's, and it is the {role}'s", hint)


class _Marking:
    """Puts marks in place of texts. ``marks`` are all of one conversation."""

    def __init__(self) -> None:
        self.marks: list[Mark] = []

    def chat(self, chat: Chat) -> Chat:
        messages = [self._message(turn, message) for turn, message in enumerate(chat.messages)]
        return Chat(messages, None if chat.tools is None else [self._tool(tool) for tool in chat.tools])

    def _message(self, turn: int, message: Turn) -> Turn:
        content = self._text(message["content"], turn, CONTENT_OF.get(message["role"], "content"))
        skipped = (*NO_TEXTS, "name", "content")
        others = {key: self._deep(value, turn, key) for key, value in message.items() if key not in skipped}
        return message | others | {"content": content}

    def _tool(self, tool: Row) -> Row:
        """What a model has to know to call it: its name, what it does, and the names of its parameters."""
        if isinstance(function := tool.get("function"), dict):
            return tool | {"function": self._tool(function)}
        marked = tool | {key: self._mark(None, "tools") for key in ("name", "description") if tool.get(key)}
        parameters = tool.get("parameters")
        if isinstance(parameters, dict) and isinstance(properties := parameters.get("properties"), dict):
            named = {self._mark(None, "tools"): value for value in properties.values()}
            marked["parameters"] = parameters | {"properties": named}
        return marked

    def _mark(self, turn: int | None, name: str) -> str:
        self.marks.append(Mark(f"hm{len(self.marks)}x", turn, name))
        return self.marks[-1].word

    def _text(self, text: str, turn: int, name: str) -> str:
        """A thought within a text is marked by itself: templates take it out of earlier turns."""
        parts = THINK.split(text)  # text, tag, text, …
        for at in range(0, len(parts), 2):
            if parts[at].strip():
                is_thought = "<think>" in parts[at - 1 : at] or "</think>" in parts[at + 1 : at + 2]
                parts[at] = self._mark(turn, "thinking" if is_thought else name)
        return "".join(parts)

    def _deep(self, value: Any, turn: int, name: str, key: str = "") -> Any:
        """All texts of a value that stands under ``key``, and the names of arguments."""
        if key in NO_TEXTS:
            return value
        if key == "arguments" and (whole := _object(value)) is not None:
            marked = {self._mark(turn, name): argument for argument in whole.values()}  # values need not be texts
            return json.dumps(marked) if isinstance(value, str) else marked
        if isinstance(value, str):
            return self._text(value, turn, name)
        if isinstance(value, list):
            return [self._deep(item, turn, name) for item in value]
        return (
            {key: self._deep(item, turn, name, key) for key, item in value.items()}
            if isinstance(value, dict)
            else value
        )


def _build(chat: Chat) -> Any:
    """What a template can tell conversations apart by: roles, keys, and which of them hold something."""
    turns = tuple((message["role"], *_content(message["content"]), *_others(message)) for message in chat.messages)
    return turns, tuple(map(_shape, chat.tools or ()))


def _content(content: str) -> Iterator[Any]:
    yield bool(content.strip())
    if "think>" in content:
        yield from ((THINK.fullmatch(part) and part) or bool(part.strip()) for part in THINK.split(content))


def _others(message: Turn) -> Iterator[Any]:
    for key, value in message.items():
        if key in CONTENTS:
            yield key, _shape(value)
        elif key not in ("role", "content"):
            yield key, bool(value)


def _shape(value: Any) -> Any:
    """Keys and kinds of a value without what it says; of arguments and parameters only whether there are any."""
    if isinstance(value, dict):
        names = ("arguments", "properties")
        return tuple((k, type(inner), bool(inner)) if k in names else (k, _shape(inner)) for k, inner in value.items())
    return tuple(map(_shape, value)) if isinstance(value, list) else (type(value), bool(value))


def _object(value: Any) -> Row | None:
    """An object, or the one that a JSON text holds."""
    with contextlib.suppress(ValueError):
        value = json.loads(value) if isinstance(value, str) else value
    return value if isinstance(value, dict) else None
