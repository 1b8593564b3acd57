"""What row tasks share: a row becomes requests, completions become new columns; the worker does everything else."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

import pyarrow as pa

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Data, Recipe
from hala_hpc.data import cut as cutting
from hala_hpc.data import schema as schemas
from hala_hpc.data import shards
from hala_hpc.data.cut import Cut, PlanWatch
from hala_hpc.data.schema import Fields, Row
from hala_hpc.data.shapes import ASIDE, refuse_originals
from hala_hpc.engines.base import Completion, Request
from hala_hpc.run.manifest import Facts
from hala_hpc.run.verify import CheckShard
from hala_hpc.worker.task import ROWS, Task

MOST_NOTES: Final = 30
"""So many things that are left as they are get a count of their own; roles may be people's names."""


class RowError(Exception):
    """The row cannot be done, with the reason as ``reason: detail``; it goes to quarantine."""


RowSteps = Generator[list[Request], list[Completion], Row]
"""Work on one row, see ``RowWork.do``."""


def texts_of(completions: Sequence[Completion]) -> list[str]:
    """The texts of completions. Raises RowError where one of them failed."""
    if error := next((completion.error for completion in completions if completion.error), None):
        raise RowError(error)
    return [completion.text for completion in completions]


class RowWork(Protocol):
    """How the rows of one schema are done."""

    @property
    def fields(self) -> Fields:
        """The columns that are added to each row."""

    def texts(self, row: Row) -> list[str]:
        """What will be sent to the engine, to be measured when the run is planned. Raises HalaError."""

    def left(self, row: Row) -> list[str]:
        """What of a row is not worked on, in words that are counted when the run is planned."""

    def do(self, row: Row) -> RowSteps:
        """Work on a row: yields requests, takes their completions in the same order, as often as it needs to, and
        returns the added columns. It gets no completions at once where it yields no requests.

        Raises RowError for a row that cannot be done (``texts_of`` does where a completion failed), HalaError for one
        of another form.
        """


@runtime_checkable
class KeepsRequests(Protocol):
    """Work that notes in its columns which requests a row took."""

    def sent(self, row: Row, output: Row) -> Iterable[tuple[Request, Row]]:
        """The requests of a finished row as they were sent, each with what its ``output`` says of the answer."""


class RowTask(Task, ABC):
    """A task whose shards are rows: all of it but how rows are done."""

    environment = "serve"
    loop = ROWS
    suffix = ".parquet"
    cuts_texts = False
    """Whether texts are cut to what fits, so that none is too long for a model."""
    most_asks = 1
    """How often a text is asked for at most, where its answers fail checks."""
    asks = True
    """Whether rows ask a model: else no engine is started, and no GPU asked for."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe

    @property
    def is_greedy(self) -> bool:
        """Whether a row comes out the same whatever the seed."""
        return bool(self._recipe.sampling.temperature == 0)

    @abstractmethod
    def work_on(self, schema: pa.Schema) -> RowWork:
        """How rows of this schema are done. Raises HalaError where a column is missing."""

    def takes(self, schema: pa.Schema) -> Sequence[str]:
        """The columns that are worked on where ``data.columns`` names none: a plan refuses them beside translations."""
        del schema
        return ()

    def data(self, folder: Path) -> Data:
        """The rows to plan; a task that makes its own puts them into the run at ``folder``."""
        del folder
        return self._recipe.data

    def plan(self, folder: Path, watch: PlanWatch) -> Cut:
        """Cut the recipe's data into shards, every row looked at.

        Each source is looked at by its own columns, the worker sees the columns of all: both must find the same texts.
        """
        recipe = self._recipe
        promised: set[str] = set()
        tally = _Tally(recipe, self.cuts_texts)

        def texts_of(schema: pa.Schema) -> cutting.TextsOf:
            work = self.work_on(schema)
            refuse_originals(recipe.data, self.takes(schema), schema)
            names = [field.name for field in work.fields]
            shards.refuse_reserved(schema, names)
            promised.update(names)
            return lambda row: tally.counted(work, row)

        cut = cutting.cut(self.data(folder), recipe.run, recipe.task.kind, folder, texts_of, watch, tally.notes)
        whole = schemas.load(cut.facts.schema)
        added = [field.name for field in self.work_on(whole).fields]
        shards.refuse_reserved(whole, added)
        if lost := sorted(promised.difference(added)):
            raise HalaError(
                f"data: rows of different shapes: some would get '{lost[0]}', all together '{added[0]}'",
                "set data.shape or data.columns, or plan them as runs of their own",
            )
        if not cut.facts.texts:
            raise HalaError(
                f"data: none of the {cut.facts.rows} rows holds a text to work on",
                "see data.shape, data.columns and task.roles",
            )
        pairs = zip(whole.names, shards.as_stored(whole.names), strict=True)
        if renamed := [f"{name} to {stored}" for name, stored in pairs if name != stored]:
            tally.notes[f"columns of an earlier run are renamed: {', '.join(renamed)}"] = len(renamed)
        tally.conclude(cut.facts)
        return replace(cut, facts=replace(cut.facts, notes=dict(tally.notes), most_asks=self.most_asks))

    def counts(self, new: Row) -> Iterable[str]:
        """Names under which a row that is done, by its new columns, is counted for `hala status`."""
        del new
        return ()

    def checker(self, facts: Facts) -> CheckShard:
        """Every row once, in order, its input unchanged."""
        fields = self.work_on(schemas.load(facts.schema)).fields
        return partial(shards.check_output, facts=facts, fields=fields)


class _Tally:
    """Counts, while rows are looked at, what of them stays as it is."""

    def __init__(self, recipe: Recipe, cuts_texts: bool) -> None:
        self.notes: Counter[str] = Counter()
        self._is_guessed = recipe.data.shape == "auto" and not recipe.data.columns
        self._elsewhere = 0
        context: int | None = getattr(recipe.engine, "max_model_len", None)
        self._room = context - (recipe.sampling.max_tokens or 0) if context and not cuts_texts else None

    def counted(self, work: RowWork, row: Row) -> list[str]:
        """The texts of a row. Raises HalaError where the row has another form."""
        texts, left = work.texts(row), work.left(row)
        for words in left:
            self._add(words)
        if not texts:
            self._add("rows hold no text to work on")
            self._elsewhere += any(words.startswith(ASIDE) for words in left)
        if self._room is not None:
            long = sum(cutting.estimated_tokens(text) > self._room for text in texts)
            self._add(
                f"texts are, by estimate, longer than the {self._room:,} tokens that the model has for them", long
            )
        return texts

    def conclude(self, facts: Facts) -> None:
        """Raises HalaError where a guess at the columns misses most of the rows."""
        if self._is_guessed and 2 * self._elsewhere > facts.rows:
            columns = ", ".join(words.removeprefix(ASIDE) for words in self.notes if words.startswith(ASIDE))
            raise HalaError(
                f"data: {self._elsewhere:,} of {facts.rows:,} rows hold text only in other columns ({columns})",
                "set data.columns; or data.shape, then such rows are counted and left as they are",
            )

    def _add(self, words: str, count: int = 1) -> None:
        if count:
            is_kept = words in self.notes or len(self.notes) < MOST_NOTES
            self.notes[words if is_kept else "other things of other kinds are left as they are"] += count
