"""What row tasks share: a row becomes requests, completions become new columns; the worker does everything else."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Recipe
from hala_hpc.data import cut as cutting
from hala_hpc.data import schema as schemas
from hala_hpc.data import shards
from hala_hpc.data.cut import Cut, Watch
from hala_hpc.data.digest import Row
from hala_hpc.data.schema import Fields
from hala_hpc.engines.base import Completion, Request
from hala_hpc.run.manifest import Facts
from hala_hpc.run.verify import CheckShard
from hala_hpc.tasks.base import Task


class RowError(Exception):
    """The row cannot be done, with the reason as ``reason: detail``; it goes to quarantine."""


class RowWork(Protocol):
    """How the rows of one schema are done."""

    @property
    def fields(self) -> Fields:
        """The columns that are added to each row."""

    def texts(self, row: Row) -> list[str]:
        """What will be sent to the engine, to be measured when the run is planned. Raises HalaError."""

    def requests(self, row: Row) -> list[Request]:
        """The requests of a row, none if nothing is to be done. Raises HalaError for a row of another form."""

    def finish(self, row: Row, completions: Sequence[Completion]) -> Row:
        """The added columns, given the completions in the order of the requests, none failed. Raises RowError."""


class RowTask(Task, Protocol):
    """A task whose shards are rows."""

    def work_on(self, schema: pa.Schema) -> RowWork:
        """How rows of this schema are done. Raises HalaError where a column is missing."""


def plan(task: RowTask, kind: str, recipe: Recipe, folder: Path, watch: Watch) -> Cut:
    """Cut the recipe's data into shards, every row looked at.

    Each source is looked at by its own columns, the worker sees the columns of all: both must find the same texts.
    """
    promised: set[str] = set()

    def texts_of(schema: pa.Schema) -> cutting.TextsOf:
        work = task.work_on(schema)
        names = [field.name for field in work.fields]
        shards.refuse_reserved(schema, names)
        promised.update(names)
        return work.texts

    found = cutting.cut(recipe.data, recipe.run, kind, folder, texts_of, watch)
    whole = schemas.load(found.facts.schema)
    made = [field.name for field in task.work_on(whole).fields]
    shards.refuse_reserved(whole, made)
    if lost := sorted(promised.difference(made)):
        raise HalaError(
            f"data: rows of different shapes: some would get '{lost[0]}', all together '{made[0]}'",
            "set data.shape or data.columns, or plan them as runs of their own",
        )
    if not found.facts.texts:
        raise HalaError(
            f"data: none of the {found.facts.rows} rows holds a text to work on",
            "see data.shape, data.columns and task.roles",
        )
    return found


def checker(task: RowTask, facts: Facts) -> CheckShard:
    """Every row once, in order, its input unchanged."""
    fields = task.work_on(schemas.load(facts.schema)).fields
    return partial(shards.check_output, facts=facts, fields=fields)
