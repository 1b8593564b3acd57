"""What a row of a source becomes: an example, with the conversations or the preference that are written of it, or a
reason why none.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from hala_hpc.config.errors import HalaError
from hala_hpc.data import schema as schemas
from hala_hpc.data import shards
from hala_hpc.data.columns import reach
from hala_hpc.data.documents import Chat, reader_of
from hala_hpc.data.files.readers import what
from hala_hpc.data.preferences import Preference, preferences_of
from hala_hpc.data.schema import Row
from hala_hpc.data.shapes import require
from hala_hpc.data.spoken import Dropped
from hala_hpc.data.where import Where
from hala_hpc.tasks.mix.options import BACKWARD, FORWARD, PAIRS, Source
from hala_hpc.text import prompts

WHERE: Final = "where"
"""Reason: the condition does not hold."""
PLAIN: Final = frozenset({"role", "content"})
MESSAGES: Final = "conversations"
PREFERENCE: Final = "preferences of turns"
SIDES: Final = "preferences of bare texts"
"""What the rows of a mix are, all of them, in words."""


@dataclass(frozen=True)
class Example:
    """What a row gives: a conversation for each direction ('' where there is none), and of pairs the pair itself; or a
    preference.
    """

    chats: Mapping[str, Chat | Preference]
    pair: tuple[str, str] | None = None

    @property
    def texts(self) -> list[str]:
        """All texts that may be written."""
        return [text for chat in self.chats.values() for text in chat.texts]

    @property
    def form(self) -> str:
        """Which columns it has: a key in ``chunk.FORMS``."""
        only = next(iter(self.chats.values()))
        if isinstance(only, Chat):
            return MESSAGES
        return SIDES if isinstance(only.chosen, str) or isinstance(only.rejected, str) else PREFERENCE

    @property
    def is_plain(self) -> bool:
        """Whether its turns are roles and texts and nothing else."""
        chats = self.chats.values()
        return not any(chat.unlearned or any(turn.keys() != PLAIN for turn in chat.messages) for chat in chats)

    def said(self) -> tuple[list[str], str]:
        """What duplicates are known by: the text of a pair, or all turns before the last answer; and the answer.

        Of a preference, its prompt and both sides.
        """
        if self.pair is not None:
            return [self.pair[0]], self.pair[1]
        messages = self._only.messages
        if isinstance(self._only, Preference):
            before = [text for turn in self._only.prompt for text in (turn["role"], turn["content"])]
            return before, "\n\n".join(self._only.texts[len(self._only.prompt) :])
        last = max(at for at, turn in enumerate(messages) if turn["role"] == "assistant")
        return [text for turn in messages[:last] for text in (turn["role"], turn["content"])], messages[last]["content"]

    def beside(self) -> bytes:
        """Tools, calls and whatever else turns hold beside their texts; empty where there is nothing."""
        if self.pair is not None or (self.is_plain and self._only.tools is None):
            return b""
        others = [{key: turn[key] for key in turn.keys() - PLAIN} for turn in self._only.messages]
        return schemas.row_bytes({"turns": others, "tools": self._only.tools})

    @property
    def _only(self) -> Chat | Preference:
        (chat,) = self.chats.values()
        return chat


Read = Callable[[Row], Example]
"""Raises HalaError for a row of another form, Dropped for one that gives nothing."""


def reader(source: Source, schema: pa.Schema) -> Read:
    """How the rows of a source are read. Raises HalaError for a condition or columns that do not fit the schema."""
    read = _pairs(source, schema) if source.shape == PAIRS else _chats(source, schema)
    if source.where is None:
        return read
    condition = Where(source.where, schema)

    def checked(row: Row) -> Example:
        if not condition.holds(row):
            raise Dropped(WHERE)
        return read(row)

    return checked


def reason(dropped: Dropped) -> str:
    """By which a row that gives nothing is counted."""
    return shards.reason_of(str(dropped))


def _pairs(source: Source, schema: pa.Schema) -> Read:
    require(source.columns, schema)
    directions = (FORWARD, BACKWARD) if source.direction == "both" else (str(source.direction),)
    languages = {FORWARD: (source.source, source.target), BACKWARD: (source.target, source.source)}

    def read(row: Row) -> Example:
        texts = [_text(row, column) for column in source.columns]
        chats = {}
        for direction in directions:
            given, answer = texts if direction == FORWARD else reversed(texts)
            spoken, wanted = languages[direction]
            asked, _ = prompts.render(str(source.prompt), {"text": given}, source=spoken or "", target=wanted or "")
            turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
            chats[direction] = Chat(turns)
        return Example(chats, (texts[0], texts[1]))

    return read


def _text(row: Row, column: str) -> str:
    value = reach(row, column)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise Dropped(f"empty: '{column}' says nothing")
    if not isinstance(value, str):
        raise HalaError(f"column '{column}' holds {what(value)}, not text")
    return value


def _chats(source: Source, schema: pa.Schema) -> Read:
    known = preferences_of(source, schema) or reader_of("chat", source, schema)

    def read(row: Row) -> Example:
        chat = known.read(row)
        assert isinstance(chat, Chat | Preference)
        return Example({"": chat})

    return read
