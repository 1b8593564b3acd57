"""Translate the texts of a dataset; the originals stay beside them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Recipe, TaskOptions
from hala_hpc.data.columns import OF, field_of
from hala_hpc.data.schema import Fields, Row, is_json
from hala_hpc.data.shapes import Shape, shape_of
from hala_hpc.engines.base import Completion, Message, Request, request
from hala_hpc.text import prompts
from hala_hpc.worker.rows.task import RowError, RowTask, RowWork

TRUNCATED = "hala_truncated"
"""Column: whether any text of the row was cut off by max_tokens (only with ``truncated: keep``)."""


@dataclass
class Options(TaskOptions):
    """The recipe's ``task:`` section for ``kind: translate``."""

    kind: str = "translate"
    source: str = "English"
    target: str = "Arabic"
    suffix: str = "_ar"  # instruction becomes instruction_ar
    prompt: str = "Translate everything that follows into {target}:\n\n{text}"  # observed (Hala's light translator)
    system: str | None = None
    chat: bool = True  # false: the prompt is given to the model bare, without its chat template
    roles: list[str] = field(default_factory=lambda: ["user", "assistant"])  # turns of others are kept as they are
    truncated: Literal["quarantine", "keep"] = "quarantine"  # a text that max_tokens cut off is spoiled


class Translate(RowTask):
    """See the module."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        options: Options = recipe.task
        if problem := prompts.problem_of(options.prompt):
            raise HalaError(f"task.prompt: {problem}", "for example: Translate from {source} to {target}: {text}")
        if not options.suffix:
            raise HalaError("task.suffix: empty, so a translation would overwrite its original", "for example _ar")

    def work_on(self, schema: pa.Schema) -> RowWork:
        options: Options = self._recipe.task
        return Translation(self._recipe, shape_of(self._recipe.data, options.roles, schema), schema)


class Translation:
    """How rows of one shape are translated."""

    def __init__(self, recipe: Recipe, shape: Shape, schema: pa.Schema) -> None:
        self._options: Options = recipe.task
        self._sampling = recipe.sampling
        self._shape = shape
        self.fields: Fields = [_new_field(schema, column, self._name(column)) for column in shape.columns]
        if self._options.truncated == "keep":
            self.fields = [*self.fields, pa.field(TRUNCATED, pa.bool_())]

    def texts(self, row: Row) -> list[str]:
        return [text for _, text in self._shape.texts(row)]

    def left(self, row: Row) -> list[str]:
        return self._shape.left(row)

    def requests(self, row: Row) -> list[Request]:
        return [self._request(text) for text in self.texts(row)]

    def finish(self, row: Row, completions: Sequence[Completion]) -> Row:
        cut = any(completion.finish_reason == "length" for completion in completions)
        if cut and self._options.truncated == "quarantine":
            most = max(completion.output_tokens for completion in completions)
            raise RowError(f"truncated: a translation was cut off after {most} tokens")
        if not all(completion.text.strip() for completion in completions):
            raise RowError("empty: the model wrote nothing for a text")
        places = [place for place, _ in self._shape.texts(row)]
        translated = {place: answer.text for place, answer in zip(places, completions, strict=True)}
        columns = self._shape.rebuild(row, translated)
        new = {self._name(column): value for column, value in columns.items()}
        return new | ({TRUNCATED: cut} if self._options.truncated == "keep" else {})

    def _request(self, text: str) -> Request:
        options = self._options
        filled, span = prompts.place(options.prompt, text, source=options.source, target=options.target)
        if not options.chat:
            return request(filled, self._sampling, span)
        system = [Message("system", options.system)] if options.system else []
        return request((*system, Message("user", filled)), self._sampling, span)

    def _name(self, column: str) -> str:
        return column.replace(".", "_") + self._options.suffix


create = Translate


def _new_field(schema: pa.Schema, column: str, name: str) -> "pa.Field[Any]":
    """A translation has the type of its original; a text is a plain string whatever its original's encoding.

    Its metadata say of which column it is the translation.
    """
    original = field_of(column, schema)
    assert original is not None  # shape_of has looked
    is_text = not pa.types.is_nested(original.type) and not is_json(original.type)
    field = pa.field(name, pa.string()) if is_text else original.with_name(name)
    metadata: Any = original.metadata or {}
    return field.with_metadata({**metadata, OF: column.encode()})
