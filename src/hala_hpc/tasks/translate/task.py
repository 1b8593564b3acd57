"""Translate the texts of a dataset; the originals stay beside them."""

from collections.abc import Iterable, Sequence
from functools import partial

import pyarrow as pa

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Recipe
from hala_hpc.data import schema as schemas
from hala_hpc.data import shards
from hala_hpc.data.schema import Row
from hala_hpc.data.shapes import Shape, shape_of
from hala_hpc.data.where import CHECKS, FLAGGED
from hala_hpc.run.manifest import Facts
from hala_hpc.run.verify import CheckShard
from hala_hpc.tasks.translate.options import GLOSSARY, Options, manner_of
from hala_hpc.tasks.translate.rows import InSegments, Whole
from hala_hpc.text import prompts
from hala_hpc.worker.rows.task import RowTask, RowWork


class Translate(RowTask):
    """See the module. Raises HalaError for a prompt or suffix that cannot be."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        options: Options = recipe.task
        if problem := prompts.problem_of(options.prompt):
            raise HalaError(f"task.prompt: {problem}", "for example: Translate from {source} to {target}: {text}")
        if not options.suffix:
            raise HalaError("task.suffix: empty, so a translation would overwrite its original", "for example _ar")
        if options.segments.tokens < 0:
            raise HalaError("task.segments.tokens: must be 0 or more")
        if options.glossary and GLOSSARY not in options.prompt:
            raise HalaError("task.glossary: the prompt has no place for it", f"write {GLOSSARY} where hints are to go")
        self.cuts_texts = options.segments.tokens > 0
        if self.cuts_texts:
            self.most_asks = 1 + len(manner_of(recipe).rungs)

    def work_on(self, schema: pa.Schema) -> RowWork:
        kind = InSegments if self.cuts_texts else Whole
        return kind(self._recipe, self._shape(schema), schema)

    def takes(self, schema: pa.Schema) -> Sequence[str]:
        return self._shape(schema).columns

    def _shape(self, schema: pa.Schema) -> Shape:
        options: Options = self._recipe.task
        return shape_of(self._recipe.data, options.roles, schema)

    def counts(self, new: Row) -> Iterable[str]:
        return [f"{FLAGGED}{flag}" for flag in new[CHECKS]["flags"]] if self.cuts_texts else ()

    def checker(self, facts: Facts) -> CheckShard:
        """Every row once, in order, its input unchanged, and every translation with the shape of its source."""
        if not self.cuts_texts:
            return super().checker(facts)
        work = self.work_on(schemas.load(facts.schema))
        assert isinstance(work, InSegments)
        return partial(shards.check_output, facts=facts, fields=work.fields, faults=work.faults)


create = Translate
