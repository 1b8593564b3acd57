"""What a training makes of a row: a conversation, a prompt with its answer, or a text."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import pyarrow as pa

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Data
from hala_hpc.data import columns as named
from hala_hpc.data.preferences import preferences_in, two_sided
from hala_hpc.data.schema import Row
from hala_hpc.data.shapes import SHAPES, Turn, name_of, refuse_originals, require, shape_of, turn_keys_of
from hala_hpc.data.spoken import (
    EMPTY_LINE,
    Dropped,
    joined,
    may_be_turns,
    said,
    says_something,
    spoken,
    tools_of,
    turns_before,
    turns_with,
)
from hala_hpc.text.prompts import ControlWords

Kind = Literal["chat", "completion", "text"]
"""Where the loss is: chat on assistant turns only, completion on the answer only, text on every token."""
CONTROL_WORDS: Final = "rows with words of control tokens, which are text in them"
UNHEARD: Final = "turns that are marked to be learned and are not, for only the assistant's are"
TWO_SYSTEMS: Final = "rows whose column 'system' is left out, for their first turn is a system turn"


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
        messages, weights = spoken(row.get(self.column), self.column, (self.role_key, self.text_key))
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
        if not all(says_something(messages[at]) for at in answers):
            raise Dropped("empty: a turn of the assistant says nothing")
        return Chat(messages, tools_of(row.get("tools")), unlearned, tuple(notes))


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
        if self.chat and any(
            isinstance(named.reach(row, column), list | dict) for column in (*self.prompt, self.answer)
        ):
            return self._talk(row)
        prompt, answer = joined(self.prompt, row), joined([self.answer], row)
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
        return [message for column in self.before for message in turns_before(column, row.get(column))]

    def _talk(self, row: Row) -> Chat:
        """Columns of turns, as TRL's prompt and completion: what the assistant says in the last of them is learned.

        The last may hold the prompt as well, as in preferences that are whole conversations.
        """
        messages = [*self._opening(row), *(turn for column in self.prompt for turn in said(column, row, "user")[0])]
        answers, weights = said(self.answer, row, "assistant")
        if held := turns_with(messages, answers):
            messages, answers, weights = answers[:held], answers[held:], weights[held:]
        unlearned = set(_answers(messages))
        unlearned |= {len(messages) + at for at, weight in enumerate(weights) if weight is False}
        messages += answers
        learned = [at for at in _answers(messages) if at not in unlearned]
        if not learned or not all(says_something(messages[at]) for at in learned):
            raise Dropped(f"empty: '{self.answer}' says nothing")
        return Chat(messages, tools_of(row.get("tools")), frozenset(unlearned))


@dataclass(frozen=True)
class Texts:
    """Rows of plain text; several columns are joined."""

    columns: tuple[str, ...]

    def read(self, row: Row) -> Document:
        """Raises HalaError for a row of another form, Dropped for one without text."""
        if not (text := joined(self.columns, row)):
            raise Dropped("empty: no text")
        return Text(text)


Reader = Turns | Columns | Texts


def reader_of(kind: Kind, data: Data, schema: pa.Schema) -> Reader:
    """How rows of this schema are read. Raises HalaError where their columns do not fit the kind."""
    columns: Sequence[str] = data.columns
    before: Sequence[str] = ()
    name = name_of(data, schema.names)
    if name == "preference":
        raise two_sided(kind, preferences_in(columns, schema), columns, schema)
    if name == "completion" and not columns and "label" in schema.names:
        _refuse_labels(schema)
    if columns and not SHAPES[name].names:
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
    if kind == "chat" and len(columns) == 1 and may_be_turns(columns[0], schema):
        return Turns(columns[0], *turn_keys_of(columns[0], schema, ("role", "content")))
    if len(columns) < 2:
        raise HalaError(
            f"a row of kind '{kind}' has a prompt and an answer, and '{', '.join(columns)}' is only one column",
            "kind: text, or columns: [PROMPT, ANSWER]; shape: messages, if it holds conversations as JSON text",
        )
    before = tuple(column for column in before if column in schema.names)
    return Columns(tuple(columns[:-1]), columns[-1], kind == "chat", before)


def _refuse_labels(schema: pa.Schema) -> None:
    """Raises HalaError for completions with a label that says whether they are good: TRL's unpaired preferences."""
    if pa.types.is_boolean(schema.field("label").type):
        columns = SHAPES["completion"].names
        raise HalaError(
            "data: unpaired preferences: no kind of training learns from a completion that its 'label' calls bad",
            f"where: label takes the good ones, {named.listed([*named.translated_sets(columns, schema), columns])}",
        )


def _answers(messages: list[Turn]) -> list[int]:
    """The numbers of the assistant's turns."""
    return [at for at, message in enumerate(messages) if message["role"] == "assistant"]


def holds_control_words(document: Document, words: ControlWords) -> bool:
    """Whether anything of a document that a model is given has such words."""
    return words.held([document.messages, document.tools] if isinstance(document, Chat) else document.texts)
