"""Preferences: a prompt and two ways to go on. No kind of training learns both sides; a mix carries them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Data
from hala_hpc.data import columns as named
from hala_hpc.data.schema import Row
from hala_hpc.data.shapes import SHAPES, Turn, name_of, refuse_originals, require, shape_of, sides_of
from hala_hpc.data.spoken import Dropped, joined, may_be_turns, said, says_something, tools_of, turns_before

PREFERENCE: Final = "preference"
"""The key in SHAPES."""
Side = list[Turn] | str
"""Turns; or a text, where rows have neither a prompt nor turns."""


@dataclass(frozen=True)
class Preference:
    """A prompt and two ways to go on, of which the first is better.

    ``notes`` and ``unlearned`` as of a ``documents.Chat``: there are none.
    """

    prompt: list[Turn]
    chosen: Side
    rejected: Side
    tools: list[Row] | None = None
    notes: tuple[str, ...] = ()
    unlearned: frozenset[int] = frozenset()

    @property
    def messages(self) -> list[Turn]:
        """All turns, those of the chosen side before those of the other; of bare texts none."""
        return [*self.prompt, *(turn for side in self._sides if not isinstance(side, str) for turn in side)]

    @property
    def texts(self) -> list[str]:
        """The content of each turn, or the bare texts."""
        return [side for side in self._sides if isinstance(side, str)] or [turn["content"] for turn in self.messages]

    @property
    def _sides(self) -> tuple[Side, Side]:
        return self.chosen, self.rejected


@dataclass(frozen=True)
class Preferences:
    """Rows of preferences: with a prompt in columns of its own, or in the turns with which both sides begin."""

    prompt: tuple[str, ...]
    chosen: str
    rejected: str

    def read(self, row: Row) -> Preference:
        """Raises HalaError for a row of another form, Dropped for one that prefers nothing."""
        better, worse = (named.reach(row, column) for column in (self.chosen, self.rejected))
        if better == worse and better:
            raise Dropped("no preference: both sides are the same")
        if not self.prompt and isinstance(better, str) and isinstance(worse, str):
            return self._preference([], better, worse, row)
        prompt = self._prompt(row)
        chosen, rejected = (said(column, row, "assistant")[0] for column in (self.chosen, self.rejected))
        if all(turns and turns[0]["role"] in ("system", "user") for turns in (chosen, rejected)):
            shared = _shared(chosen, rejected)
            if any(turn not in chosen[:shared] for turn in prompt):
                raise HalaError(
                    f"'{self.chosen}' and '{self.rejected}' do not begin with what is in '{', '.join(self.prompt)}'",
                    f"without it: shape: preference, columns: [{self.chosen}, {self.rejected}]",
                )
            prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
        if not prompt:
            raise Dropped("no prompt: the two sides do not begin alike, and no column has a prompt")
        return self._preference(prompt, chosen, rejected, row)

    def _prompt(self, row: Row) -> list[Turn]:
        if all(isinstance(named.reach(row, column), str | None) for column in self.prompt):
            text = joined(self.prompt, row)
            turns = [{"role": "user", "content": text}] if text else []
        else:
            turns = [turn for column in self.prompt for turn in said(column, row, "user")[0]]
        is_apart = "system" not in self.prompt and turns and turns[0]["role"] != "system"
        return [*(turns_before("system", row.get("system")) if is_apart else ()), *turns]

    def _preference(self, prompt: list[Turn], chosen: Side, rejected: Side, row: Row) -> Preference:
        for column, side in ((self.chosen, chosen), (self.rejected, rejected)):
            if not (side.strip() if isinstance(side, str) else any(map(says_something, side))):
                raise Dropped(f"empty: '{column}' says nothing")
        return Preference(prompt, chosen, rejected, tools_of(row.get("tools")))


def preferences_of(data: Data, schema: pa.Schema) -> Preferences | None:
    """How rows of this schema are read where they are preferences. Raises HalaError as ``reader_of``."""
    if name_of(data, schema.names) != PREFERENCE:
        return None
    refuse_originals(data, shape_of(data, ["assistant"], schema).columns, schema)
    return preferences_in(data.columns, schema)


def preferences_in(columns: Sequence[str], schema: pa.Schema) -> Preferences:
    """How preferences in some columns, or in the usual ones, are read. Raises HalaError where they are not there."""
    columns = columns or SHAPES[PREFERENCE].columns_in(schema.names)
    if len(columns) < 2:
        raise HalaError("data.columns: a preference has two sides", "columns: [PROMPT, CHOSEN, REJECTED]")
    require(columns, schema)
    chosen, rejected = sides_of(columns) or columns[-2:]
    return Preferences(tuple(name for name in columns if name not in (chosen, rejected)), chosen, rejected)


def _shared(one: Sequence[Turn], other: Sequence[Turn]) -> int:
    """With how many turns both begin."""
    most = min(len(one), len(other))
    return next((at for at in range(most) if one[at] != other[at]), most)


def two_sided(kind: str, rows: Preferences, columns: Sequence[str], schema: pa.Schema) -> HalaError:
    """Why preferences are nothing to a training, and how to learn from their better side."""
    learned = [*rows.prompt, rows.chosen]
    is_bare = not rows.prompt and not may_be_turns(rows.chosen, schema)
    fitting = "text" if is_bare else "chat" if may_be_turns(rows.chosen, schema) else kind
    meant = [*([] if columns else named.translated_sets(learned, schema)), learned]
    return HalaError(
        f"data: preferences: no kind of training learns '{rows.chosen}' against '{rows.rejected}'",
        f"name what is to be learned: {named.listed(meant)}" + (f", with kind: {fitting}" if fitting != kind else ""),
    )
