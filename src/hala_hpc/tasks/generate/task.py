"""Make conversations up: a model writes what a user says, then answers it.

An instruct model that is given its chat template up to the place where a user begins writes what a user might say
(Magpie, arXiv 2406.08464). Nothing is dropped: each row is held against the filters, and a rejected one has its reason.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from hala_hpc import engines
from hala_hpc.config.errors import HalaError, first_line
from hala_hpc.config.schema import Data, Recipe, Sampling
from hala_hpc.data import shapes, templates
from hala_hpc.data.cut import Cut, PlanWatch
from hala_hpc.data.files.readers import what
from hala_hpc.data.outputs.judgements import FILTERED, REJECTED
from hala_hpc.data.schema import Fields, Row
from hala_hpc.data.shards import reason_of
from hala_hpc.data.where import CHECKS
from hala_hpc.engines.base import Completion, Message, Request, request
from hala_hpc.engines.encoder import Encoder
from hala_hpc.tasks.generate import seeds
from hala_hpc.tasks.generate.options import PLACE, Manner, Options, TaskKind, manner_of
from hala_hpc.text import filters, prompts
from hala_hpc.text.filters import Turn
from hala_hpc.worker.rows.task import RowError, RowSteps, RowTask, texts_of


class Generate(RowTask):
    """See the module. Raises HalaError for options that cannot be."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self._manner = manner_of(recipe)

    @property
    def is_greedy(self) -> bool:
        return super().is_greedy and self._manner.instructions.temperature == 0

    def data(self, folder: Path) -> Data:
        """Where there is none, the seeds of the rows, which are written into the run."""
        options: Options = self._recipe.task
        if options.rows is None:
            return self._recipe.data
        file = folder / "input" / seeds.FILE
        file.parent.mkdir()
        weights = {name: kind.weight for name, kind in self._manner.kinds.items()}
        seeds.write(file, options.rows, weights, self._recipe.sampling.seed)
        return Data(path=[str(file)])

    def plan(self, folder: Path, watch: PlanWatch) -> Cut:
        """Raises HalaError also where the model's chat template is here and does not take such chats."""
        self._refuse_template()
        cut = super().plan(folder, watch)
        if self._recipe.task.rows is None:
            return cut
        sources = [source | {"original": seeds.ORIGIN} for source in cut.facts.sources]
        return replace(cut, facts=replace(cut.facts, sources=sources))

    def work_on(self, schema: pa.Schema) -> "Drawn | FromRows":
        if self._manner.kinds:
            return Drawn(self._recipe, self._manner)
        return FromRows(self._recipe, self._manner, schema)

    def counts(self, new: Row) -> Iterable[str]:
        reason = new[FILTERED]
        return () if reason is None else (f"{REJECTED}{reason_of(reason)}",)

    def _refuse_template(self) -> None:
        """Raises HalaError where the template refuses what a kind's rows begin with; on the worker all would fail."""
        if not self._manner.kinds or not engines.abilities(self._recipe.engine.kind).loads_model:
            return
        try:
            tokenizer: Any = templates.load_tokenizer(self._recipe.model)
        except HalaError:  # it is not here yet
            return
        encoder = Encoder(tokenizer, self._recipe.model.chat_template_kwargs)
        for name, kind in self._manner.kinds.items():
            try:
                encoder.encode(opening(kind.system, (), self._manner.instructions))
            except Exception as error:
                raise HalaError(
                    f"task.kinds.{name}: the chat template of the model does not take it: {first_line(error)}",
                    "without a system prompt (system: null), where the template has no place for one",
                ) from error


def opening(system: str | None, said: Sequence[Message], sampling: Sampling, number: int = 0) -> Request:
    """Asks for what a user says next: the chat through its template, up to where that begins.

    ``number`` tells rows apart that begin with the same.
    """
    head = [Message("system", system)] if system else []
    span = None if said else (0, 0)  # a system prompt is the recipe's own: names of control tokens are such in it
    return request((*head, *said), sampling, span, speaker="user", number=number)


class Conversations(ABC):
    """What both ways to begin a conversation share: how it goes on, and how its turns are held against the filters."""

    def __init__(self, recipe: Recipe, manner: Manner) -> None:
        self._options: Options = recipe.task
        self._sampling = recipe.sampling
        self._manner = manner
        self._messages = f"messages{self._options.suffix}"
        turns = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
        numbers = pa.struct([(name, pa.float64() if name == "zlib" else pa.int64()) for name in filters.NUMBERS])
        columns = {self._messages: turns, CHECKS: numbers, FILTERED: pa.string()}
        self.fields: Fields = [pa.field(name, kind) for name, kind in columns.items()]

    def do(self, row: Row) -> RowSteps:
        said: list[Message] = []
        turns: list[Turn] = []
        reason = ""
        while len(said) < 2 * self._options.turns and not reason:  # nobody asks on after what is rejected
            is_answer = len(said) % 2 == 1
            asked = request(tuple(said), self._sampling) if is_answer else self.ask(row, said)
            text, is_cut = (asked, False) if isinstance(asked, str) else (yield from _written(asked))
            before = said[-1].content if is_answer else None
            said.append(Message("assistant" if is_answer else "user", text.strip()))
            turns.append(self._manner.looking.at(said[-1].content, before, is_cut, self.any_language(row)))
            reason = self._manner.looking.rejection(turns[-1])
        return {
            self._messages: [vars(message) for message in said],
            CHECKS: filters.summed(turns),
            FILTERED: reason or None,
        }

    @abstractmethod
    def ask(self, row: Row, said: Sequence[Message]) -> Request | str:
        """What asks for the user's next turn, or that itself. Raises RowError where the row gives none."""

    @abstractmethod
    def any_language(self, row: Row) -> bool:
        """Whether the turns of a row may be in any language."""

    def _asks(self, first: str) -> list[str]:
        """The texts of all requests of a row, as far as they are known when it is planned: the first."""
        begins = self._options.template_is == "request"
        return [first, *[""] * (2 * self._options.turns - 1 - (not begins))]


def _written(asked: Request) -> Generator[list[Request], list[Completion], tuple[str, bool]]:
    """The text that comes back, and whether it was cut off. Raises RowError."""
    completions = yield [asked]
    return texts_of(completions)[0], completions[0].finish_reason == "length"


class Drawn(Conversations):
    """Conversations of a kind of task, from nothing but what the model is told of it."""

    def texts(self, row: Row) -> list[str]:
        return self._asks(self._kind(row).system or "")

    def left(self, row: Row) -> list[str]:
        del row
        return []

    def ask(self, row: Row, said: Sequence[Message]) -> Request:
        return opening(self._kind(row).system, said, self._manner.instructions, row[seeds.NUMBER])

    def any_language(self, row: Row) -> bool:
        return self._kind(row).any_language

    def _kind(self, row: Row) -> TaskKind:
        return self._manner.kinds[row[seeds.KIND]]


class FromRows(Conversations):
    """Conversations that begin with a row of data: a template makes the first instruction of it, or asks for one."""

    def __init__(self, recipe: Recipe, manner: Manner, schema: pa.Schema) -> None:
        super().__init__(recipe, manner)
        self._template = str(self._options.template)
        self._columns = list(dict.fromkeys(PLACE.findall(self._template)))
        shapes.require(self._columns, schema)

    def texts(self, row: Row) -> list[str]:
        texts = self._read(row)
        return self._asks(self._filled(texts)[0]) if any(map(str.strip, texts.values())) else []

    def left(self, row: Row) -> list[str]:
        return [f"rows lack '{column}'" for column in self._columns if row.get(column) is None]

    def ask(self, row: Row, said: Sequence[Message]) -> Request | str:
        options = self._options
        if said:
            return opening(None, said, self._manner.instructions)
        texts = self._read(row)
        if not any(map(str.strip, texts.values())):
            raise RowError(f"no text: nothing in {', '.join(self._columns)}")
        filled, span = self._filled(texts)
        if options.template_is == "instruction":
            return filled
        system = [Message("system", options.system)] if options.system else []
        return request((*system, Message("user", filled)), self._manner.instructions, span)

    def any_language(self, row: Row) -> bool:
        del row
        return False

    def _filled(self, texts: dict[str, str]) -> tuple[str, tuple[int, int]]:
        return prompts.render(self._template, texts)

    def _read(self, row: Row) -> dict[str, str]:
        """The texts of the template's columns, '' where there is none. Raises HalaError for what is no text."""
        for column in self._columns:
            if not isinstance(row.get(column), str | None):
                raise HalaError(f"column '{column}' holds {what(row[column])}, not text", "task.template names texts")
        return {column: row.get(column) or "" for column in self._columns}


create = Generate
