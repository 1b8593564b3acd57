"""Judge rows: keep or reject pairs and instructions, or choose the better of several translations.

Nothing is dropped: each row gets a score and a verdict, by which a later step takes what it wants.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import fmean
from typing import Any, Final, Literal

import pyarrow as pa

from hala_hpc import engines
from hala_hpc.config.errors import HalaError, did_you_mean, first_twice
from hala_hpc.config.schema import Recipe, TaskOptions
from hala_hpc.data import shapes, spoken
from hala_hpc.data.columns import EACH, OF, reach
from hala_hpc.data.files.readers import what
from hala_hpc.data.outputs.judgements import REJECTED, SCORE, SCORED, VERDICT, label_of
from hala_hpc.data.schema import Fields, Row
from hala_hpc.engines.base import Completion, Message, Request, request
from hala_hpc.tasks.judge.forms import FORMS, Form
from hala_hpc.tasks.judge.scores import combined, expected
from hala_hpc.text import prompts, rules
from hala_hpc.text.checks import Pair, checks
from hala_hpc.text.languages import Language, language
from hala_hpc.worker.rows.task import RowError, RowSteps, RowTask, texts_of


@dataclass
class Options(TaskOptions):
    """The recipe's ``task:`` section for ``kind: judge``.

    The texts stand in ``data.columns``, in this order: a text and its translation; an instruction and its answer, or a
    conversation; a text and two or more translations of it.
    """

    kind: str = "judge"
    rows: Literal["pairs", "instructions", "candidates"] = "pairs"
    source: str = "English"
    target: str = "Arabic"  # of instructions, the language of both texts
    rules: list[str] | None = None  # that reject a row before a model is asked; null: ours (docs/judging.md); []: none
    prompts: list[str] | None = None  # wordings, each asked once; null: ours; []: no model is asked, none is needed
    verdicts: dict[str, float] = field(default_factory=dict)  # words to answer with, and what each is worth; {}: ours
    system: str | None = None
    chat: bool = True  # false: the prompts are given to the model bare, without its chat template
    outliers: int = 0  # so many of the highest and of the lowest scores of a row do not count
    threshold: float = 0.5  # a lower score rejects a row (ours: to be set by a calibration)
    label: str | None = None  # column that says which rows are good: the report tells how well they are told apart
    winner: str = "best"  # candidates: column that gets the text of the best one


class Judge(RowTask):
    """See the module. Raises HalaError for options that cannot be."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self._manner = manner_of(recipe)
        self.asks = bool(self._manner.prompts)
        self.one_per_core = not self.asks
        if self.asks and not engines.abilities(recipe.engine.kind).weighs_choices:
            raise HalaError(
                f"engine.kind: {recipe.engine.kind} does not say how likely an answer is", "engine.kind=vllm"
            )

    def work_on(self, schema: pa.Schema) -> "Graded | Compared":
        options: Options = self._recipe.task
        columns = self.takes(schema)
        shapes.require([*columns, *([options.label] if options.label else [])], schema)
        return (Compared if options.rows == "candidates" else Graded)(self._recipe, self._manner, columns)

    def takes(self, schema: pa.Schema) -> Sequence[str]:
        del schema
        return self._recipe.data.columns or list(self._manner.form.columns)

    def counts(self, new: Row) -> Iterable[str]:
        verdict = new[VERDICT]
        return () if verdict["keep"] else (f"{REJECTED}{verdict['reason']}",)


@dataclass(frozen=True)
class Manner:
    """How the rows of a recipe are judged."""

    form: Form
    pair: Pair
    rules: Sequence[str]
    prompts: Sequence[str]
    verdicts: Mapping[str, float]


def manner_of(recipe: Recipe) -> Manner:
    """Raises HalaError for languages, rules, prompts, verdicts, columns and numbers that cannot be."""
    options: Options = recipe.task
    form = FORMS[options.rows]
    wanted = list(form.rules) if options.rules is None else options.rules
    known = [*form.rules, *form.more]
    if odd := next((rule for rule in wanted if rule not in known), None):
        raise HalaError(f"task.rules: no rule '{odd}' for {options.rows}", did_you_mean(odd, known))
    wordings = list(form.prompts) if options.prompts is None else options.prompts
    for number, prompt in enumerate(wordings):
        if problem := prompts.problem_of(prompt, form.names):
            raise HalaError(f"task.prompts[{number}]: {problem}", f"for example: {form.prompts[-1]!r}")
    if not (wanted or wordings):
        raise HalaError("task: neither rules nor prompts, so nothing is judged", "leave one of the two out")
    if options.outliers < 0 or 0 < len(wordings) <= 2 * options.outliers:
        raise HalaError(
            f"task.outliers: {options.outliers} of the highest and of the lowest of {len(wordings)} scores",
            f"at most {max(0, len(wordings) - 1) // 2} leave one",
        )
    if not 0 <= options.threshold <= 1:
        raise HalaError(f"task.threshold: {options.threshold}: a score is between 0 and 1")
    verdicts = options.verdicts or form.verdicts
    _refuse_verdicts(verdicts)
    _refuse_columns(recipe, form)
    second = _language(options.target)
    first = second if options.rows == "instructions" else _language(options.source)
    return Manner(form, Pair(first, second), wanted, wordings, verdicts)


def _refuse_verdicts(verdicts: Mapping[str, float]) -> None:
    """Raises HalaError for words that cannot be told apart by their beginning, and for values that tell nothing."""
    words, values = list(verdicts), list(verdicts.values())
    same = next((word for word in words for other in words if word != other and other.startswith(word)), None)
    if same is not None:
        raise HalaError(
            f"task.verdicts: '{same}' is empty, or another begins with it", 'for example {"yes": 1, "no": 0}'
        )
    if not all(0 <= value <= 1 for value in values) or len(set(values)) < 2:
        raise HalaError(f"task.verdicts: values {values}", "from 0 (bad) to 1 (good), at least two different ones")


def _refuse_columns(recipe: Recipe, form: Form) -> None:
    """Raises HalaError where ``data`` names too many or too few texts, or another shape than columns."""
    options, columns = recipe.task, recipe.data.columns
    if recipe.data.shape not in ("auto", "columns", "pairs"):
        raise HalaError(f"data.shape: {recipe.data.shape}: what is judged stands in data.columns", "data.shape=auto")
    if options.rows == "candidates" and len(columns) < 3:
        raise HalaError(f"data.columns: {len(columns)} for candidates", "the text, then two or more translations of it")
    is_talk = options.rows == "instructions" and len(columns) == 1
    if options.rows != "candidates" and columns and len(columns) != 2 and not is_talk:
        raise HalaError(f"data.columns: {len(columns)} for {options.rows}", f"two: {' and '.join(form.names)}")
    odd = first_twice(columns) or next((column for column in columns if EACH in column), None)
    if odd is not None:
        raise HalaError(f"data.columns: '{odd}' stands twice, or for several texts", "one text of a row for each")
    if options.rows == "candidates" and options.label:
        raise HalaError(
            "task.label: says whether a row is good; which candidate is best, it cannot say", "leave it out"
        )
    if not options.winner:
        raise HalaError("task.winner: empty", "a name for the column of the better texts, for example best")


def _language(name: str) -> Language:
    try:
        return language(name)
    except LookupError as error:
        raise HalaError(f"task: no language is called '{error.args[0]}'", "its English name or code") from error


ROUNDING: Final = 1e-9
"""So far apart two scores may be that are the same but for rounding: 0.7 and 1 - 0.3, a draw in both orders."""
VERDICTS: Final[list[tuple[str, pa.DataType]]] = [
    ("keep", pa.bool_()),
    ("reason", pa.string()),
    ("flags", pa.list_(pa.string())),
    ("scores", pa.list_(pa.float64())),
    ("mass", pa.float64()),
]


class Rows:
    """What both ways of judging rows share: their texts and requests."""

    def __init__(self, recipe: Recipe, manner: Manner, columns: Sequence[str]) -> None:
        self._options: Options = recipe.task
        self._sampling = recipe.sampling
        self._manner = manner
        self._columns = columns
        self._values = list(manner.verdicts.values())

    def left(self, row: Row) -> list[str]:
        return [f"rows lack '{column}'" for column in self._columns if reach(row, column) is None]

    def _read(self, row: Row) -> list[str]:
        """The texts of the columns, '' where there is none. Raises HalaError for what is no text, and an odd label."""
        if self._options.label:
            label_of(row, self._options.label)
        if len(self._columns) == 1:
            return list(_of_talk(row, self._columns[0]))
        texts = [reach(row, column) for column in self._columns]
        for column, text in zip(self._columns, texts, strict=True):
            if not isinstance(text, str | None):
                raise HalaError(
                    f"column '{column}' holds {what(text)}, not text", "data.columns names texts; a.b reaches in"
                )
        return [text or "" for text in texts]

    def _request(self, prompt: str, texts: Sequence[str]) -> Request:
        options = self._options
        named = dict(zip(self._manner.form.names, texts, strict=True))
        filled, span = prompts.render(prompt, named, source=options.source, target=options.target)
        system = [Message("system", options.system)] if options.system else []
        asked = (*system, Message("user", filled)) if options.chat else filled
        return request(asked, self._sampling, span, tuple(self._manner.verdicts))

    def _reason(self, score: float) -> str:
        return "" if score >= self._options.threshold - ROUNDING else SCORED

    def _expected(self, completions: Sequence[Completion]) -> list[tuple[float, float]]:
        """Value and mass of each answer. Raises RowError where one failed."""
        texts_of(completions)
        if not all(completion.weights for completion in completions):
            raise RowError("no weights: the engine does not say how likely the verdicts are")
        return [expected(completion.weights, self._values) for completion in completions]


def _of_talk(row: Row, column: str) -> tuple[str, str]:
    """The last answer of a conversation, and before it what it answers: all turns, where they are more than one.

    Raises HalaError for what is no conversation.
    """
    turns, _ = spoken.spoken(row.get(column), column, ("role", "content"))
    while turns and turns[-1]["role"] != "assistant":
        turns.pop()
    *before, last = turns or [{"content": ""}]
    lines = [turn["content"] if len(before) == 1 else f"{turn['role']}: {turn['content']}" for turn in before]
    return spoken.EMPTY_LINE.join(lines), last["content"]


def _verdict(reason: str, flags: Sequence[str] = (), scores: Sequence[float] = (), mass: float | None = None) -> Row:
    return {"keep": not reason, "reason": reason, "flags": list(flags), "scores": list(scores), "mass": mass}


class Graded(Rows):
    """Two texts a row get a score."""

    fields: Fields = (pa.field(SCORE, pa.float64()), pa.field(VERDICT, pa.struct(VERDICTS)))

    def texts(self, row: Row) -> list[str]:
        texts = self._read(row)
        return ["\n".join(texts)] * max(1, len(self._manner.prompts)) if any(map(str.strip, texts)) else []

    def do(self, row: Row) -> RowSteps:
        manner = self._manner
        texts = first, second = self._read(row)
        if flags := rules.broken(first, second, manner.pair, manner.rules):
            return {SCORE: None, VERDICT: _verdict(flags[0], flags)}
        if not manner.prompts:
            return {SCORE: None, VERDICT: _verdict("")}
        answers = self._expected((yield [self._request(prompt, texts) for prompt in manner.prompts]))
        scores = [value for value, _ in answers]
        score = combined(scores, self._options.outliers)
        return {SCORE: score, VERDICT: _verdict(self._reason(score), (), scores, fmean(mass for _, mass in answers))}


class Compared(Rows):
    """The best of several translations of a row's text: each two are compared, in both orders.

    A score is how often, on average, a candidate is better than another.
    """

    def __init__(self, recipe: Recipe, manner: Manner, columns: Sequence[str]) -> None:
        super().__init__(recipe, manner, columns)
        winner = pa.field(self._options.winner, pa.string()).with_metadata({OF: columns[0].encode()})
        verdict = pa.struct([*VERDICTS, ("chosen", pa.string())])
        self.fields: Fields = [winner, pa.field(SCORE, pa.float64()), pa.field(VERDICT, verdict)]

    def texts(self, row: Row) -> list[str]:
        original, *candidates = self._read(row)
        if not any(map(str.strip, (original, *candidates))):
            return []
        compared = ["\n".join((original, *two)) for two in combinations(candidates, 2)]
        return compared * max(1, 2 * len(self._manner.prompts))

    def do(self, row: Row) -> RowSteps:
        manner, (original, *candidates) = self._manner, self._read(row)
        broken = [rules.broken(original, text, manner.pair, manner.rules) for text in candidates]
        names = self._columns[1:]
        flags = [f"{name}: {rule}" for name, own in zip(names, broken, strict=True) for rule in own]
        left = [place for place, own in enumerate(broken) if not own]
        if not left:
            return self._row(None, candidates, None, _verdict(broken[0][0], flags))
        if not manner.prompts:
            left = [min(left, key=lambda place: _rank(original, candidates[place], manner.pair))]
        if len({candidates[place] for place in left}) == 1:
            return self._row(left[0], candidates, None, _verdict("", flags))
        pairs = [two for two in combinations(left, 2) if candidates[two[0]] != candidates[two[1]]]
        orders = [order for first, second in pairs for order in ((first, second), (second, first))]
        asked = [(prompt, order) for prompt in manner.prompts for order in orders]
        sent = [self._request(prompt, (original, *(candidates[place] for place in order))) for prompt, order in asked]
        answers = self._expected((yield sent))
        scores = {place: self._wins(place, orders, [value for value, _ in answers]) for place in left}
        means = {place: combined(own, self._options.outliers) for place, own in scores.items()}
        best = next(place for place in left if means[place] >= max(means.values()) - ROUNDING)
        mass = fmean(mass for _, mass in answers)
        verdict = _verdict(self._reason(means[best]), flags, scores[best], mass)
        return self._row(best, candidates, means[best], verdict)

    def _wins(self, place: int, orders: Sequence[tuple[int, int]], values: Sequence[float]) -> list[float]:
        """Of each wording, how often a candidate is better than another that differs from it."""
        size = len(orders)
        return [
            fmean(
                value if order[0] == place else 1 - value
                for order, value in zip(orders, values[start : start + size], strict=True)
                if place in order
            )
            for start in range(0, len(values), size)
        ]

    def _row(self, place: int | None, candidates: Sequence[str], score: float | None, verdict: Row) -> Row:
        text, chosen = (None, None) if place is None else (candidates[place], self._columns[1 + place])
        return {self._options.winner: text, SCORE: score, VERDICT: verdict | {"chosen": chosen}}


def _rank(original: str, text: str, pair: Pair) -> tuple[Any, ...]:
    """Orders translations without a model, the best first: more letters of the target's script, then a more usual
    length, as SmolKalam (arXiv 2511.18411) ranks by both beside a model's estimate.
    """
    numbers = checks(original, text, pair)
    return (-(numbers.script if numbers.script is not None else 1.0), abs(numbers.length))


create = Judge
