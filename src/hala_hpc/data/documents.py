"""What a training makes of a row: a conversation, a prompt with its answer, or a text."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import pyarrow as pa

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Data
from hala_hpc.data.files.readers import what
from hala_hpc.data.schema import Row
from hala_hpc.data.shapes import (
    ROLES,
    SHAPES,
    TEXT_PARTS,
    Shape,
    Turn,
    keys_of,
    name_of,
    refuse_originals,
    require,
    shape_of,
    turns_of,
)
from hala_hpc.text.prompts import ControlWords

Kind = Literal["chat", "completion", "text"]
"""Where the loss is: chat on assistant turns only, completion on the answer only, text on every token."""
CONTROL_WORDS: Final = "rows with words of control tokens, which are text in them"
CALLS: Final = ("function_call", "tool_call")
"""Turns that ROLES counts among the tool's, because nothing in them is to be translated. The model speaks them."""
ROLE_OF: Final = {word: role for role, words in ROLES.items() for word in words} | dict.fromkeys(CALLS, "assistant")
EMPTY_LINE: Final = "\n\n"
"""Stands between the columns of a prompt, and between a prompt and its answer."""
CONTENTS: Final = ("tool_calls", "function_call", "reasoning", "reasoning_content", "thinking")
"""Keys of a turn, beside its text, that hold what is said."""
WEIGHTS: Final = ("weight", "loss", "train")
"""Keys of a turn that say whether it is to be learned: OpenAI's, AgentInstruct's, axolotl's."""
UNHEARD: Final = "turns that are marked to be learned and are not, for only the assistant's are"
TWO_SYSTEMS: Final = "rows whose column 'system' is left out, for their first turn is a system turn"


class Dropped(Exception):
    """The row gives nothing to learn from; the reason as ``reason: detail``."""


@dataclass(frozen=True)
class Chat:
    """Turns as chat templates want them, and the tools that the system offers.

    ``unlearned``: numbers of the assistant's turns that the row wants not to be learned. ``notes``: what was left out.
    """

    messages: list[Turn]
    tools: list[Row] | None = None
    unlearned: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()

    @property
    def texts(self) -> list[str]:
        """The content of each turn."""
        return [message["content"] for message in self.messages]

    def hiding(self, words: ControlWords) -> "Chat":
        """The same, with words that are control tokens hidden from the chat template, for ``words.encode``."""
        if not words.held([self.messages, self.tools]):
            return self
        return replace(self, messages=words.hide(self.messages), tools=words.hide(self.tools))


@dataclass(frozen=True)
class PromptAnswer:
    """A prompt and its answer, each tokenized by itself."""

    prompt: str
    answer: str

    @property
    def texts(self) -> list[str]:
        return [self.prompt, self.answer]


@dataclass(frozen=True)
class Text:
    """A text to be learned as it is."""

    text: str

    @property
    def texts(self) -> list[str]:
        return [self.text]


Document = Chat | PromptAnswer | Text


@dataclass(frozen=True)
class Turns:
    """Rows of conversations: OpenAI's messages, ShareGPT's conversations."""

    column: str
    role_key: str
    text_key: str

    def read(self, row: Row) -> Document:
        """Raises HalaError for a row of another form, Dropped for one without an answer."""
        messages, weights = self.spoken(row)
        notes = [UNHEARD for at, weight in enumerate(weights) if weight and messages[at]["role"] != "assistant"]
        system = row.get("system")
        if isinstance(system, str) and system.strip() and messages:
            if messages[0]["role"] == "system":
                notes.append(TWO_SYSTEMS)
            else:
                messages.insert(0, {"role": "system", "content": system})
                weights.insert(0, None)
        answers = _answers(messages)
        unlearned = frozenset(at for at in answers if weights[at] is False)
        if not answers:
            raise Dropped("no answer: no turn is the assistant's")
        if len(unlearned) == len(answers):
            raise Dropped("no answer: no turn of the assistant is to be learned")
        if not all(_says_something(messages[at]) for at in answers):
            raise Dropped("empty: a turn of the assistant says nothing")
        return Chat(messages, _tools(row.get("tools")), unlearned, tuple(notes))

    def spoken(self, row: Row) -> tuple[list[Turn], list[bool | None]]:
        """The messages, and for each whether it says that it is to be learned. Raises HalaError."""
        turns = turns_of(row.get(self.column), self.column)
        places = [f"turn {number} of '{self.column}'" for number in range(1, len(turns) + 1)]
        return list(map(self._message, turns, places)), list(map(_weight, turns, places))

    def _message(self, turn: Turn, where: str) -> Turn:
        kept = {key: value for key, value in turn.items() if value is not None}  # Parquet fills in absent keys
        role_key, text_key = keys_of(list(kept), (self.role_key, self.text_key))
        word = kept.pop(role_key, None)
        role = ROLE_OF.get(word.lower()) if isinstance(word, str) else None
        if role is None:
            raise HalaError(f"{where} has the {role_key} {word!r}", f"known: {', '.join(sorted(ROLE_OF))}")
        content = _content(kept.pop(text_key, None), where)
        return {**{key: value for key, value in kept.items() if key not in WEIGHTS}, "role": role, "content": content}


@dataclass(frozen=True)
class Columns:
    """Rows of a prompt in some columns and its answer in another: Alpaca and its like.

    ``before``: the columns that the rows have of those that come before the user's turn (see ``shapes.Known``): a
    system text, and pairs of a prompt and its answer.
    """

    prompt: tuple[str, ...]
    answer: str
    chat: bool
    before: tuple[str, ...] = ()

    def read(self, row: Row) -> Document:
        """Raises HalaError for a row of another form, Dropped for one without an answer."""
        if self.chat and any(isinstance(row.get(column), list | dict) for column in (*self.prompt, self.answer)):
            return self._talk(row)
        prompt, answer = _joined(self.prompt, row), _joined([self.answer], row)
        if not answer:
            raise Dropped(f"empty: '{self.answer}' says nothing")
        before = self._opening(row)
        if self.chat:
            return Chat([*before, {"role": "user", "content": prompt}, {"role": "assistant", "content": answer}])
        if before:
            raise HalaError(
                f"column '{'system' if before[0]['role'] == 'system' else 'history'}' has no place in a completion",
                "kind: chat; or data.columns, with all columns of the prompt and last that of the answer",
            )
        is_apart = not prompt or prompt[-1].isspace() or answer[0].isspace()
        return PromptAnswer(prompt if is_apart else prompt + EMPTY_LINE, answer)

    def _opening(self, row: Row) -> list[Turn]:
        return [message for column in self.before for message in _before(column, row.get(column))]

    def _talk(self, row: Row) -> Chat:
        """Columns of turns, as TRL's prompt and completion: what the assistant says in the last of them is learned."""
        messages = self._opening(row)
        for column in self.prompt:
            messages += _said(column, row, "user")[0]
        unlearned = set(_answers(messages))
        answers, weights = _said(self.answer, row, "assistant")
        unlearned |= {len(messages) + at for at, weight in enumerate(weights) if weight is False}
        messages += answers
        learned = [at for at in _answers(messages) if at not in unlearned]
        if not learned or not all(_says_something(messages[at]) for at in learned):
            raise Dropped(f"empty: '{self.answer}' says nothing")
        return Chat(messages, _tools(row.get("tools")), frozenset(unlearned))


@dataclass(frozen=True)
class Texts:
    """Rows of plain text; several columns are joined."""

    columns: tuple[str, ...]

    def read(self, row: Row) -> Document:
        """Raises HalaError for a row of another form, Dropped for one without text."""
        if not (text := _joined(self.columns, row)):
            raise Dropped("empty: no text")
        return Text(text)


Reader = Turns | Columns | Texts


def reader_of(kind: Kind, data: Data, schema: pa.Schema) -> Reader:
    """How rows of this schema are read. Raises HalaError where their columns do not fit the kind."""
    columns: Sequence[str] = data.columns
    before: Sequence[str] = ()
    if columns and not SHAPES[name_of(data, schema.names)].names:
        require(columns, schema)
    else:
        shape = shape_of(data, ["assistant"], schema)
        refuse_originals(data, shape.columns, schema)
        if shape.turn_keys and kind == "chat":
            return Turns(shape.columns[0], *shape.turn_keys)
        if shape.turn_keys:
            raise HalaError(f"rows of conversations are not of kind '{kind}'", "kind: chat")
        before = next((known.before for known in SHAPES.values() if known.before and known.are_in(shape.columns)), ())
        columns = [column for column in shape.columns if column not in before]
    if kind == "text":
        return Texts(tuple(columns))
    if len(columns) < 2:
        raise HalaError(
            f"a row of kind '{kind}' has a prompt and an answer, and '{', '.join(columns)}' is only one column",
            "kind: text, or columns: [PROMPT, ANSWER]; shape: messages, if it holds conversations",
        )
    before = tuple(column for column in before if column in schema.names)
    return Columns(tuple(columns[:-1]), columns[-1], kind == "chat", before)


def _joined(columns: Sequence[str], row: Row) -> str:
    return EMPTY_LINE.join(text for _, text in Shape(columns).texts(row))


def _answers(messages: list[Turn]) -> list[int]:
    """The numbers of the assistant's turns."""
    return [at for at, message in enumerate(messages) if message["role"] == "assistant"]


def _said(column: str, row: Row, role: str) -> tuple[list[Turn], list[bool | None]]:
    """The messages of a column that holds turns, or a text of ``role``; see ``Turns.spoken``."""
    value = row.get(column)
    if isinstance(value, str):
        return ([{"role": role, "content": value}], [None]) if value.strip() else ([], [])
    return Turns(column, "role", "content").spoken(row)


def _says_something(message: Turn) -> bool:
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


def _before(column: str, given: Any) -> list[dict[str, str]]:
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


def _tools(given: Any) -> list[Row] | None:
    """The tools of a row: a list of descriptions, or JSON text of one; None where there are none."""
    try:
        tools = json.loads(given) if isinstance(given, str) and given.strip() else given or None
        tools = [json.loads(tool) if isinstance(tool, str) else tool for tool in tools or []]
    except (ValueError, TypeError) as error:
        raise HalaError(f"column 'tools' is not a list of tools: {error}") from error
    if not all(isinstance(tool, dict) for tool in tools):
        raise HalaError(f"column 'tools' holds {what(tools)}, not a list of objects")
    return tools or None


def holds_control_words(document: Document, words: ControlWords) -> bool:
    """Whether anything of a document that a model is given has such words."""
    return words.held([document.messages, document.tools] if isinstance(document, Chat) else document.texts)
