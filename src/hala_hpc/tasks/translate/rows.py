"""How a row is translated: its texts whole, or in segments that are protected, checked and asked for again."""

from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final

import pyarrow as pa

from hala_hpc import engines
from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Recipe
from hala_hpc.data import templates
from hala_hpc.data.columns import OF, Place, field_of
from hala_hpc.data.cut import estimated_tokens
from hala_hpc.data.schema import Fields, Row, is_json
from hala_hpc.data.shapes import Shape
from hala_hpc.data.where import CHECKS
from hala_hpc.engines.base import Completion, Message, Request, request
from hala_hpc.tasks.translate.options import GATE, PLACES, Options, manner_of
from hala_hpc.text import checks, ladder, prompts
from hala_hpc.text.ladder import Answer, Ask, Manner, Translation
from hala_hpc.text.segments import Count
from hala_hpc.text.skeleton import signature
from hala_hpc.worker.rows.task import RowError, RowSteps, texts_of

TRUNCATED = "hala_truncated"
"""Column: whether any text of the row was cut off by max_tokens (only with ``truncated: keep``)."""
SHAPE: Final = "hala_shape"
"""Column: the signature of the row's skeletons, which `hala verify` computes again."""
ATTEMPTS: Final = "hala_attempts"
"""Column: each request that a row took, and what became of it; `hala explain` shows them."""


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

    def _request(self, text: str, places: Mapping[str, str] = MappingProxyType({})) -> Request:
        """``places`` fill the prompt's own places beside that of the text."""
        options = self._options
        words = {"source": options.source, "target": options.target}
        filled, span = prompts.render(options.prompt, {**places, "text": text}, **words)
        if not options.chat:
            return request(filled, self._sampling, span)
        system = [Message("system", prompts.filled(options.system, words))] if options.system else []
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
        items = self._shape.texts(row)
        asked = asked_for(items)
        own = sorted(set(asked))
        completions = (yield [self._request(items[number][1]) for number in own]) if own else []
        written = dict(zip(own, texts_of(completions), strict=True))
        translated = [written[number] for number in asked]
        cut = any(completion.finish_reason == "length" for completion in completions)
        if cut and self._options.truncated == "quarantine":
            most = max(completion.output_tokens for completion in completions)
            raise RowError(f"truncated: a translation was cut off after {most} tokens")
        if not all(text.strip() for text in translated):
            raise RowError("empty: the model wrote nothing for a text")
        return self._columns(row, translated) | ({TRUNCATED: cut} if self._options.truncated == "keep" else {})


def asked_for(items: Sequence[tuple[Place, str]]) -> list[int]:
    """For each text of a row the number of the one that is asked for: the same words in an earlier column, or itself.

    So the prompt is the same on both sides of a preference, whatever a model draws.
    """
    times: Counter[tuple[str | int, str]] = Counter()
    first: dict[tuple[str, int], int] = {}
    numbers = []
    for number, (place, text) in enumerate(items):
        times[place[0], text] += 1
        numbers.append(first.setdefault((text, times[place[0], text]), number))
    return numbers


NUMBERS: Final[list[tuple[str, pa.DataType]]] = [(name, pa.float64()) for name in ("shape", *checks.BOUNDS)]


class InSegments(Rows):
    """Texts are cut into segments, protected, checked, and asked for again where they failed."""

    def __init__(self, recipe: Recipe, shape: Shape, schema: pa.Schema) -> None:
        super().__init__(recipe, shape, schema)
        self._recipe = recipe
        self._manner = manner_of(recipe)
        gate = GATE | self._options.segments.gate | ({"truncated": "flag"} if self._options.truncated == "keep" else {})
        self._spoils = {check for check, action in gate.items() if action == "quarantine"}
        kinds = [*NUMBERS, ("rung", pa.string()), ("asks", pa.int64()), ("flags", pa.list_(pa.string()))]
        attempts = pa.list_(pa.struct(ATTEMPT))
        ours = {SHAPE: pa.string(), CHECKS: pa.struct(kinds), ATTEMPTS: attempts}
        self.fields = [*self.fields, *(pa.field(name, kind) for name, kind in ours.items())]

    @cached_property
    def _measured(self) -> Manner:
        """The manner with the model's own tokens, where its tokenizer is here."""
        return replace(self._manner, count=_count_of(self._recipe))

    def do(self, row: Row) -> RowSteps:
        items = self._shape.texts(row)
        asked = asked_for(items)
        own = sorted(set(asked))
        roles = self._shape.roles_of(row, [items[number][0] for number in own])
        attempts: list[Row] = []
        steps = ladder.translation([items[number][1] for number in own], self._measured, roles)
        translation = yield from self._asked(steps, attempts)
        if translation.texts is None:
            raise RowError(translation.error)
        flags = sorted(translation.flags)
        if spoiled := [flag for flag in flags if flag in self._spoils]:
            raise RowError(f"{spoiled[0]}: no answer passed ({', '.join(flags)})")
        numbers = checks.worst(translation.numbers) | {"shape": float("shape" not in flags)}
        taken = {"rung": translation.rung.name.lower(), "asks": len(attempts), "flags": flags}
        for attempt in attempts:
            attempt["texts"] = [own[at] for at in attempt["texts"]]
        at_own = {number: at for at, number in enumerate(own)}
        places = [at_own[number] for number in asked]
        return self._columns(row, [translation.texts[at] for at in places]) | {
            SHAPE: signature([translation.sources[at] for at in places]),
            CHECKS: numbers | taken,
            ATTEMPTS: attempts,
        }

    def faults(self, row: Row, output: Row) -> Iterator[str]:
        """What is wrong with the shape of a row's translations: the signature, and what no flag says."""
        sources = [self._manner.skeleton(text) for text in self.texts(row)]
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
            yield from self._manner.shape_faults(source, text)

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

    def _asked(
        self, steps: Generator[list[Ask], list[Answer], Translation], attempts: list[Row]
    ) -> Generator[list[Request], list[Completion], Translation]:
        """Send what the ladder asks for, until it has what it needs; note each request in ``attempts``."""
        answers: list[Answer] | None = None
        while True:
            try:
                asks = next(steps) if answers is None else steps.send(answers)
            except StopIteration as end:
                translation: Translation = end.value
                for noted, ask in zip(attempts, translation.asks, strict=True):
                    noted["outcome"] = ask.outcome
                return translation
            requests = [self.request(ask) for ask in asks]
            completions = yield requests
            attempts += map(_noted, asks, requests, completions)
            answers = [Answer(c.text, c.finish_reason == "length", c.error or "") for c in completions]

    def sent(self, row: Row, output: Row) -> Iterator[tuple[Request, Row]]:
        """The requests that a row took, as they were sent, with its ``hala_attempts``."""
        items = self._shape.texts(row)
        roles = self._shape.roles_of(row, [place for place, _ in items])
        sources = [self._manner.skeleton(text) for _, text in items]
        for known in output[ATTEMPTS] or ():
            places = tuple(zip(known["texts"], known["starts"], known["ends"], strict=True))
            rung, before = ladder.Rung[known["rung"].upper()], known.get("before")
            ask = ladder.asked(sources, roles, places, rung, self._manner)
            ask.attempt, ask.before = known["attempt"], tuple(before) if before else None
            yield self.request(ask), known

    def request(self, ask: Ask) -> Request:
        """The request for what the ladder asks."""
        options, form = self._options, self._manner.form
        places = dict.fromkeys(PLACES, "")
        if ask.before is not None:
            words = {"source_before": ask.before[0], "translation_before": ask.before[1]}
            places["context"] = prompts.filled(options.context, words)
        if ask.terms:
            terms = "; ".join(f"{term} → {translation}" for term, translation in ask.terms.items())
            places["glossary"] = prompts.filled(options.hints, {"terms": terms})
        first = self._request(form.write(ask.texts, ask.roles), places)
        if schema := form.schema(ask.roles):
            first = replace(first, schema=schema)
        if not ask.attempt:
            return first
        warmer = max(first.temperature, options.segments.warmer)
        return replace(first, seed=first.seed ^ ask.attempt, temperature=warmer, attempt=ask.attempt)


ATTEMPT: Final[list[tuple[str, pa.DataType]]] = [
    ("rung", pa.string()),
    ("attempt", pa.int32()),
    ("texts", pa.list_(pa.int32())),
    ("starts", pa.list_(pa.int32())),
    ("ends", pa.list_(pa.int32())),
    ("before", pa.list_(pa.string())),
    ("seed", pa.int64()),
    ("prompt_tokens", pa.int32()),
    ("output_tokens", pa.int32()),
    ("finish_reason", pa.string()),
    ("outcome", pa.string()),
]
"""Fields of ``hala_attempts``: a request asks for characters ``starts`` to ``ends`` of the row's ``texts``."""


def _noted(ask: Ask, sent: Request, completion: Completion) -> Row:
    texts, starts, ends = map(list, zip(*ask.places, strict=True))
    return {
        "rung": ask.rung.name.lower(),
        "attempt": ask.attempt,
        "texts": texts,
        "starts": starts,
        "ends": ends,
        "before": list(ask.before) if ask.before else None,
        "seed": sent.seed,
        "prompt_tokens": completion.prompt_tokens,
        "output_tokens": completion.output_tokens,
        "finish_reason": completion.finish_reason,
    }


def _count_of(recipe: Recipe) -> Count:
    """How many tokens of the recipe's model a text has; by estimate where its tokenizer is not here."""
    if not engines.KINDS.load(recipe.engine.kind).ABILITIES.loads_model:
        return estimated_tokens
    try:
        tokenizer = templates.load_tokenizer(recipe.model).backend_tokenizer
    except HalaError:
        return estimated_tokens
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


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
