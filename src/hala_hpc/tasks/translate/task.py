"""Translate the texts of a dataset; the originals stay beside them."""

import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Final, Literal

import pyarrow as pa

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Recipe, TaskOptions
from hala_hpc.data import schema as schemas
from hala_hpc.data import shards
from hala_hpc.data.columns import OF, field_of
from hala_hpc.data.cut import estimated_tokens
from hala_hpc.data.schema import Fields, Row, is_json
from hala_hpc.data.shapes import Shape, shape_of
from hala_hpc.data.where import CHECKS
from hala_hpc.engines.base import Completion, Message, Request, request
from hala_hpc.run.manifest import Facts
from hala_hpc.run.verify import CheckShard
from hala_hpc.text import checks, ladder, prompts
from hala_hpc.text.checks import Pair
from hala_hpc.text.ladder import Answer, Ask, Manner, Translation
from hala_hpc.text.languages import language
from hala_hpc.text.skeleton import shape_faults, signature, skeleton
from hala_hpc.worker.rows.task import RowError, RowSteps, RowTask, RowWork, texts_of

TRUNCATED = "hala_truncated"
"""Column: whether any text of the row was cut off by max_tokens (only with ``truncated: keep``)."""
SHAPE: Final = "hala_shape"
"""Column: the signature of the row's skeletons, which `hala verify` computes again."""
LEAST_TOKENS: Final = 16
"""Of a segment, however little room a model's context leaves (ours)."""
WARMER: Final = 0.3
"""Temperature of a second and third attempt, where the recipe's is lower: at 0 they would give the first's answer."""


@dataclass
class Segments:
    """How texts are cut, protected and checked."""

    tokens: int = 400  # most of a segment, by estimate; ours. 0: each text is asked for whole, as it is, unchecked
    again: int = 1  # how often a segment that fails a check is asked for once more; then its parts alone, then apart
    patterns: list[str] = field(default_factory=list)  # of one's own, regular expressions, to stay as they are
    quarantine: list[str] = field(default_factory=lambda: ["shape", "loops", "truncated"])  # flags that spoil a row


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
    segments: Segments = field(default_factory=Segments)

    BEFORE: ClassVar[Mapping[str, Any]] = {"segments": {"tokens": 0}}
    """What runs did that were planned before there was such a key (see ``config.compose.thaw``)."""


class Translate(RowTask):
    """See the module. Raises HalaError for a prompt or suffix that cannot be."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        options: Options = recipe.task
        if problem := prompts.problem_of(options.prompt):
            raise HalaError(f"task.prompt: {problem}", "for example: Translate from {source} to {target}: {text}")
        if not options.suffix:
            raise HalaError("task.suffix: empty, so a translation would overwrite its original", "for example _ar")
        if odd := next((key for key in ("tokens", "again") if getattr(options.segments, key) < 0), None):
            raise HalaError(f"task.segments.{odd}: must be 0 or more")
        self.cuts_texts = options.segments.tokens > 0
        if self.cuts_texts:
            manner_of(recipe)

    def work_on(self, schema: pa.Schema) -> RowWork:
        options: Options = self._recipe.task
        kind = InSegments if self.cuts_texts else Whole
        return kind(self._recipe, shape_of(self._recipe.data, options.roles, schema), schema)

    def checker(self, facts: Facts) -> CheckShard:
        """Every row once, in order, its input unchanged, and every translation with the shape of its source."""
        if not self.cuts_texts:
            return super().checker(facts)
        work = self.work_on(schemas.load(facts.schema))
        assert isinstance(work, InSegments)
        return partial(shards.check_output, facts=facts, fields=work.fields, faults=work.faults)


def manner_of(recipe: Recipe) -> Manner:
    """How the texts of a recipe are translated. Raises HalaError for languages, patterns and checks that cannot be."""
    options: Options = recipe.task
    try:
        pair = Pair(language(options.source), language(options.target))
    except LookupError as error:
        raise HalaError(
            f"task: no language is called '{error.args[0]}'",
            "its English name or code; what else a model is to be told stands in task.prompt",
        ) from error
    try:
        own = tuple(map(re.compile, options.segments.patterns))
    except re.error as error:
        raise HalaError(f"task.segments.patterns: {error.pattern!r}: {error}", "a regular expression") from error
    if unknown := set(options.segments.quarantine) - {"shape", "truncated", *checks.BOUNDS}:
        names = ", ".join(["shape", "truncated", *checks.BOUNDS])
        raise HalaError(f"task.segments.quarantine: no check '{min(unknown)}'", f"there are: {names}")
    tokens, context = options.segments.tokens, getattr(recipe.engine, "max_model_len", None)
    if context:  # prompt, segment and answer share it
        around = estimated_tokens(options.prompt + (options.system or ""))
        room = context - around - (recipe.sampling.max_tokens or context // 2)
        tokens = max(LEAST_TOKENS, min(tokens, room))
    return Manner(pair, estimated_tokens, tokens, options.segments.again, own)


class Rows:
    """What both ways of translating rows of one shape share: their texts, requests and new columns."""

    def __init__(self, recipe: Recipe, shape: Shape, schema: pa.Schema) -> None:
        self._options: Options = recipe.task
        self._sampling = recipe.sampling
        self._shape = shape
        self.fields: Fields = [_new_field(schema, column, self._name(column)) for column in shape.columns]

    def texts(self, row: Row) -> list[str]:
        return [text for _, text in self._shape.texts(row)]

    def left(self, row: Row) -> list[str]:
        return self._shape.left(row)

    def _request(self, text: str) -> Request:
        options = self._options
        filled, span = prompts.render(options.prompt, {"text": text}, source=options.source, target=options.target)
        if not options.chat:
            return request(filled, self._sampling, span)
        system = [Message("system", options.system)] if options.system else []
        return request((*system, Message("user", filled)), self._sampling, span)

    def _columns(self, row: Row, translated: Sequence[str]) -> Row:
        """The new columns of a row, from the translations of its texts."""
        places = [place for place, _ in self._shape.texts(row)]
        columns = self._shape.rebuild(row, dict(zip(places, translated, strict=True)))
        return {self._name(column): value for column, value in columns.items()}

    def _name(self, column: str) -> str:
        return column.replace(".", "_") + self._options.suffix


class Whole(Rows):
    """Each text is one request, as it is; what comes back is its translation."""

    def __init__(self, recipe: Recipe, shape: Shape, schema: pa.Schema) -> None:
        super().__init__(recipe, shape, schema)
        if self._options.truncated == "keep":
            self.fields = [*self.fields, pa.field(TRUNCATED, pa.bool_())]

    def do(self, row: Row) -> RowSteps:
        texts = self.texts(row)
        completions = (yield [self._request(text) for text in texts]) if texts else []
        translated = texts_of(completions)
        cut = any(completion.finish_reason == "length" for completion in completions)
        if cut and self._options.truncated == "quarantine":
            most = max(completion.output_tokens for completion in completions)
            raise RowError(f"truncated: a translation was cut off after {most} tokens")
        if not all(text.strip() for text in translated):
            raise RowError("empty: the model wrote nothing for a text")
        return self._columns(row, translated) | ({TRUNCATED: cut} if self._options.truncated == "keep" else {})


NUMBERS: Final[list[tuple[str, pa.DataType]]] = [(name, pa.float64()) for name in checks.BOUNDS]


class InSegments(Rows):
    """Texts are cut into segments, protected, checked, and asked for again where they failed."""

    def __init__(self, recipe: Recipe, shape: Shape, schema: pa.Schema) -> None:
        super().__init__(recipe, shape, schema)
        self._manner = manner_of(recipe)
        kinds = [*NUMBERS, ("rung", pa.string()), ("asks", pa.int64()), ("flags", pa.list_(pa.string()))]
        self.fields = [*self.fields, pa.field(SHAPE, pa.string()), pa.field(CHECKS, pa.struct(kinds))]

    def do(self, row: Row) -> RowSteps:
        steps = ladder.abreast([ladder.translation(text, self._manner) for text in self.texts(row)])
        translations = yield from self._asked(steps)
        if error := next((translation.error for translation in translations if translation.text is None), None):
            raise RowError(error)
        flags = sorted({flag for translation in translations for flag in translation.flags})
        kept = {"truncated"} if self._options.truncated == "keep" else set[str]()
        if spoiled := [flag for flag in flags if flag in self._options.segments.quarantine and flag not in kept]:
            raise RowError(f"{spoiled[0]}: no answer passed ({', '.join(flags)})")
        worst = checks.worst(numbers for translation in translations for numbers in translation.numbers)
        rung = max((translation.rung for translation in translations), default=ladder.Rung.TOGETHER)
        asks = sum(translation.asks for translation in translations)
        return self._columns(row, [str(translation.text) for translation in translations]) | {
            SHAPE: signature(translation.source for translation in translations),
            CHECKS: worst | {"rung": rung.name.lower(), "asks": asks, "flags": flags},
        }

    def faults(self, row: Row, output: Row) -> Iterator[str]:
        """What is wrong with the shape of a row's translations: the signature, and what no flag says."""
        sources = [skeleton(text, self._manner.own) for text in self.texts(row)]
        if output.get(SHAPE) != signature(sources):
            yield f"{SHAPE} is not the signature of its texts"
            return
        if "shape" in (output[CHECKS] or {}).get("flags", ()):
            return
        translated = [text for _, text in self._shape.texts(self._as_source(output))]
        if len(translated) != len(sources):
            yield f"{len(sources)} texts became {len(translated)}"
            return
        for source, text in zip(sources, translated, strict=True):
            yield from shape_faults(source, text, self._manner.own)

    def _as_source(self, output: Row) -> Row:
        """The translations under the names of what they are translations of."""
        row: Row = {}
        for column in self._shape.columns:
            *outer, last = column.split(".")
            inner = row
            for name in outer:
                inner = inner.setdefault(name, {})
            inner[last] = output[self._name(column)]
        return row

    def _asked(self, steps: ladder.Steps) -> Generator[list[Request], list[Completion], list[Translation]]:
        """Send what the ladder asks for, until it has what it needs."""
        answers: list[Answer] | None = None
        while True:
            try:
                asks = next(steps) if answers is None else steps.send(answers)
            except StopIteration as end:
                translations: list[Translation] = end.value
                return translations
            completions = yield [self._ask(ask) for ask in asks]
            answers = [Answer(c.text, c.finish_reason == "length", c.error or "") for c in completions]

    def _ask(self, ask: Ask) -> Request:
        first = self._request(ask.text)
        if not ask.attempt:
            return first
        return replace(first, seed=first.seed ^ ask.attempt, temperature=max(first.temperature, WARMER))


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
