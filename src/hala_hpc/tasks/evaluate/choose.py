"""Evaluations side by side (which model has which scores on which questions), and the choice between their models.

A choice goes by a rule that is stated before, on a split of the questions that is stated too. Whoever picks the best of
several by a score and then reports that score reports too much: part of it is luck. So a choice is made on one part of
the questions, and the other part shows what it is worth.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson

from hala_hpc.config.errors import HalaError, did_you_mean
from hala_hpc.tasks.evaluate import results, statistics
from hala_hpc.tasks.evaluate.results import Result
from hala_hpc.tasks.evaluate.statistics import NORMAL_95, Difference, Mean, Scores

AVERAGE: Final = "average"
"""Stands for a benchmark: the mean of all."""
PERCENT: Final = 100.0
BASES: Final = ("base", "source")
"""Labels of the base where nobody names it; without them it is the first model of the recipe."""


@dataclass(frozen=True)
class Answered:
    """One model's answers to one benchmark: for each task the scores by the questions' numbers, ascending.

    ``questions`` is a digest of what was asked (tasks, numbers, choices, right answers): scores are compared question
    by question only where it is the same.
    """

    result: Result
    by_number: Mapping[str, Mapping[int, float]]
    questions: str

    @cached_property
    def scores(self) -> dict[str, Scores]:
        return {task: np.array([*scores.values()], np.float64) for task, scores in self.by_number.items()}

    @property
    def tasks(self) -> list[Scores]:
        return list(self.scores.values())

    @property
    def mean(self) -> Mean:
        return statistics.mean_of([statistics.mean(task) for task in self.tasks])


@dataclass(frozen=True)
class Evaluations:
    """Models by benchmarks. ``cells`` may lack some; ``base`` is the label that others are compared with."""

    models: list[str]
    benchmarks: list[str]
    cells: Mapping[tuple[str, str], Answered]
    base: str

    @property
    def columns(self) -> list[str]:
        """The benchmarks, and their average."""
        return [*self.benchmarks, AVERAGE]

    def average(self, model: str) -> Mean | None:
        """The mean over all benchmarks; None for a model that lacks one: its mean would be of other things."""
        cells = [self.cells.get((model, benchmark)) for benchmark in self.benchmarks]
        means = [cell.mean for cell in cells if cell is not None]
        return statistics.mean_of(means) if len(means) == len(cells) else None

    def mean(self, model: str, benchmark: str) -> Mean | None:
        """The mean of one benchmark, or with AVERAGE of all; None where it is missing."""
        cell = self.cells.get((model, benchmark))
        return self.average(model) if benchmark == AVERAGE else cell.mean if cell else None

    def means(self, model: str) -> list[Mean | None]:
        """A model's means by ``columns``."""
        return [self.mean(model, column) for column in self.columns]

    def difference(self, model: str, benchmarks: Sequence[str] = (), base: str = "") -> Difference | None:
        """The model less the base, over some benchmarks (default: all); None where their questions differ."""
        base, names = base or self.base, list(benchmarks) or self.benchmarks
        cells = [(self.cells.get((model, name)), self.cells.get((base, name))) for name in names]
        pairs = [(mine, its) for mine, its in cells if mine and its and mine.questions == its.questions]
        if model == base or len(pairs) < len(names):
            return None
        return statistics.compare([mine.tasks for mine, _ in pairs], [its.tasks for _, its in pairs])

    @cached_property
    def differences(self) -> dict[tuple[str, str], Difference]:
        """Every model's difference to the base, by benchmark, and over all of them under AVERAGE."""
        return {
            (model, name): difference
            for model in self.models
            for name in self.columns
            if (difference := self.difference(model, [name] if name != AVERAGE else [])) is not None
        }

    def only(self, models: Sequence[str], benchmarks: Sequence[str]) -> "Evaluations":
        """The cells that match any of the patterns (``*``, ``?``); no patterns: all. The base stays.

        Raises HalaError for a pattern that nothing matches.
        """
        matching = _matching("model", models, self.models)
        columns = _matching("benchmark", benchmarks, self.benchmarks)
        rows = [model for model in self.models if model in matching or model == self.base]
        cells = {key: cell for key, cell in self.cells.items() if key[0] in rows and key[1] in columns}
        return Evaluations(rows, columns, cells, self.base)


def evaluations(runs: Sequence[Path], base: str = "") -> Evaluations:
    """The results of evaluation runs. Scores are those of the samples, not those of summaries.

    Runs that evaluated the same weights under one label are one model. Other weights under the same label are kept
    apart by the run's name.

    Raises HalaError where there are no results, the base is not there, or a model has a benchmark twice.
    """
    by_run = [(run, result) for run in runs for result in results.read(run)]
    if not by_run:
        raise HalaError(f"{', '.join(map(str, runs))}: no benchmark is finished yet", "`hala status RUN`")
    labels = _labels(by_run)
    cells: dict[tuple[str, str], Answered] = {}
    for run, result in by_run:
        label = labels[run, result.model]
        if (label, result.benchmark) in cells:
            raise HalaError(f"{label} has {result.benchmark} twice: {run} has it too", "report on one of the runs")
        cells[label, result.benchmark] = answered(result)
    models, benchmarks = (list(dict.fromkeys(names)) for names in zip(*cells, strict=True))
    if base and base not in models:
        raise HalaError(f"--base: no model '{base}'", did_you_mean(base, models))
    default = next((label for label in BASES if label in models), models[0])
    return Evaluations(models, benchmarks, cells, base or default)


def answered(result: Result) -> Answered:
    """The samples of a result. Raises HalaError where they are not those of its summary."""
    table = results.samples(result.folder).select(["task", "index", "choices", "gold", "score"])
    if table.num_rows != result.questions:
        raise HalaError(f"{result.folder}: {table.num_rows} samples, {result.questions} in {results.RESULT}")
    rows = sorted(zip(*(table[name].to_pylist() for name in table.column_names), strict=True), key=lambda row: row[:2])
    hashed = hashlib.blake2b(digest_size=16)
    by_number: dict[str, dict[int, float]] = {task: {} for task in result.tasks}
    for task, number, choices, gold, score in rows:
        hashed.update(repr((task, number, choices, gold)).encode())
        if task not in by_number:
            raise HalaError(f"{result.folder}: samples of {task}, which {results.RESULT} does not know")
        by_number[task][number] = score
    return Answered(result, by_number, hashed.hexdigest())


def _labels(by_run: Sequence[tuple[Path, Result]]) -> dict[tuple[Path, str], str]:
    """A label for each run's each model: its own, or with the run's name where it stands for several weights."""
    weights: dict[str, set[str]] = {}
    for _, result in by_run:
        weights.setdefault(result.model, set()).add(result.weights)
    return {
        (run, result.model): result.model if len(weights[result.model]) == 1 else f"{run.name}/{result.model}"
        for run, result in by_run
    }


def _matching(what: str, patterns: Sequence[str], names: list[str]) -> list[str]:
    matching = {pattern: [name for name in names if fnmatchcase(name, pattern)] for pattern in patterns}
    if strange := next((pattern for pattern, some in matching.items() if not some), None):
        raise HalaError(f"no {what} '{strange}'", did_you_mean(strange, names))
    return [name for name in names if not patterns or any(name in some for some in matching.values())]


RULES: Final[dict[str, str]] = {
    "average": "the highest average of benchmarks; of equal ones the first in the recipe",
    "one-se": "the first in the recipe that is within one standard error of the difference from the highest average",
    "no-loss": "the highest average among models that are on no benchmark below the base by a 95 % interval",
}
"""What each rule says. one-se is that of Breiman et al. (1984): among equals the nearest to the base."""
TIE: Final = 1e-12
"""Averages nearer than this are equal: they are sums of floats."""


@dataclass(frozen=True)
class Split:
    """Which questions choose: all, or by a hash of each question's name about ``share`` of them.

    The rest is held out. The hash depends on ``seed``, benchmark, task and number, so it is the same for every model.
    """

    share: float = 0.5
    seed: int = 0
    by: str = "hash of the question's name"

    def chooses(self, benchmark: str, task: str, number: int) -> bool:
        name = f"{self.seed}\0{benchmark}\0{task}\0{number}".encode()
        drawn = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")
        return drawn < self.share * 2**64


@dataclass(frozen=True)
class Candidate:
    """One model: its average on the questions that choose, and on those held out (None where there are none).

    ``scores`` are those of benchmarks, over all questions.
    """

    model: str
    fits: bool
    chosen_by: Mean
    held_out: Mean | None
    path: str
    weights: str
    scores: dict[str, float]


@dataclass(frozen=True)
class Lead:
    """How far the chosen model is ahead of the best of the others, ``over``: on the questions that chose, and on those
    held out (None where there are none).
    """

    over: str
    chosen_by: Difference
    held_out: Difference | None

    @property
    def fair(self) -> Difference:
        """The lead on questions that had no say, if there are any: on the others it is ahead because it was chosen."""
        return self.held_out or self.chosen_by


@dataclass(frozen=True)
class Choice:
    """The chosen model with its folder and weights, by what, and the table it was chosen from: as ``best.json`` has it.

    ``benchmarks`` has a digest of the questions of each, ``limit`` is the most questions of a task, if not all.
    ``lead`` is None where there was no other model.
    """

    model: str
    path: str
    weights: str
    rule: dict[str, str]  # its name, and what it says
    split: Split
    base: str
    benchmarks: dict[str, str]
    limit: int | None
    lead: Lead | None
    candidates: list[Candidate]


def choose(evaluations: Evaluations, rule: str, split: Split, with_base: bool = False) -> Choice:
    """Pick a model; the base is a candidate only ``with_base``.

    Raises HalaError where a candidate lacks a benchmark or was asked other questions, no model fits the rule, or the
    rule looks at standard errors that are unknown, since a task has a single question.
    """
    models = [model for model in evaluations.models if with_base or model != evaluations.base]
    _refuse_unequal(evaluations, models)
    part = _part(evaluations, split, True)
    rest = _part(evaluations, split, False) if split.share < 1 else None
    averages = {model: mean for model in models if (mean := part.average(model)) is not None}
    fitting = _fitting(part, models, averages, rule)
    if not fitting:
        raise HalaError(f"no model fits the rule {rule}", RULES[rule])
    highest = max(averages[model].value for model in fitting)
    ranked = fitting if rule == "one-se" else [model for model in fitting if averages[model].value >= highest - TIE]
    candidates = []
    for model in models:
        cells = {name: evaluations.cells[model, name] for name in evaluations.benchmarks}
        result, scores = next(iter(cells.values())).result, {name: cell.mean.value for name, cell in cells.items()}
        held_out = rest.average(model) if rest else None
        fits = model in fitting
        candidates.append(Candidate(model, fits, averages[model], held_out, result.path, result.weights, scores))
    chosen = next(candidate for candidate in candidates if candidate.model == ranked[0])
    cells = {name: evaluations.cells[chosen.model, name] for name in evaluations.benchmarks}
    return Choice(
        model=chosen.model,
        path=chosen.path,
        weights=chosen.weights,
        rule={"name": rule, "says": RULES[rule]},
        split=split,
        base=evaluations.base,
        benchmarks={name: cell.questions for name, cell in cells.items()},
        limit=max((cell.result.limit for cell in cells.values() if cell.result.limit is not None), default=None),
        lead=_lead(chosen.model, averages, part, rest),
        candidates=candidates,
    )


def _lead(model: str, averages: dict[str, Mean], part: Evaluations, rest: Evaluations | None) -> Lead | None:
    others = [other for other in averages if other != model]
    if not others:
        return None
    over = max(others, key=lambda other: averages[other].value)
    chosen_by = part.difference(model, base=over)
    assert chosen_by is not None  # unequal questions were refused
    return Lead(over, chosen_by, rest.difference(model, base=over) if rest else None)


def _fitting(part: Evaluations, models: Sequence[str], averages: dict[str, Mean], rule: str) -> list[str]:
    if rule == "average":
        return list(models)
    if any(math.isnan(averages[model].error) for model in models):
        raise HalaError(
            f"--rule {rule}: a task has a single question to choose by, so no standard error is known",
            "--rule average, --split all, or leave its benchmark out by --benchmarks",
        )
    if rule == "one-se":
        top = max(models, key=lambda model: averages[model].value)
        to_top = {model: part.difference(model, base=top) for model in models}
        return [model for model, gap in to_top.items() if gap is None or gap.value >= -gap.error - TIE]
    gaps = {key: gap for key, gap in part.differences.items() if key[1] != AVERAGE}
    lost = {model for (model, _), gap in gaps.items() if gap.value + NORMAL_95 * gap.error < 0}
    return [model for model in models if model not in lost]


def _refuse_unequal(evaluations: Evaluations, models: Sequence[str]) -> None:
    if not models:
        raise HalaError("no model to choose from", "name the base with --base, or take it too: --with-base")
    for benchmark in evaluations.benchmarks:
        cells = {model: evaluations.cells.get((model, benchmark)) for model in {*models, evaluations.base}}
        if lacking := sorted(model for model, cell in cells.items() if cell is None):
            raise HalaError(f"{lacking[0]} has no result of {benchmark}", "wait for it, or leave out by --benchmarks")
        if len({cell.questions for cell in cells.values() if cell is not None}) > 1:
            raise HalaError(f"{benchmark}: not all models were asked the same questions", "the same limit for all")


def _part(evaluations: Evaluations, split: Split, chooses: bool) -> Evaluations:
    """The evaluations on the questions that choose, or on the others. Raises HalaError where a benchmark has none."""

    def taken(benchmark: str, cell: Answered) -> Answered:
        by_number: dict[str, dict[int, float]] = {}
        for task, scores in cell.by_number.items():
            part = {number: scores[number] for number in scores if split.chooses(benchmark, task, number) == chooses}
            by_number |= {task: part} if part else {}  # a task of few questions may be all on one side
        if not by_number:
            side = "choose by" if chooses else "hold out"
            raise HalaError(f"{benchmark}: too few questions to {side}", "--split all, or another --share or --seed")
        return replace(cell, by_number=by_number)

    cells = {key: taken(key[1], cell) for key, cell in evaluations.cells.items()}
    return Evaluations(evaluations.models, evaluations.benchmarks, cells, evaluations.base)


def as_json(choice: Choice) -> dict[str, Any]:
    """The fields of a choice; standard errors that are unknown are None."""
    fields: dict[str, Any] = orjson.loads(orjson.dumps(choice))  # which writes NaN as null
    return fields
