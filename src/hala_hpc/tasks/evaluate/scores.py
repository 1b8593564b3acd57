"""The evaluations of one or several runs side by side: which model has which scores on which questions."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from hala_hpc.config.errors import HalaError, did_you_mean
from hala_hpc.tasks.evaluate import results, statistics
from hala_hpc.tasks.evaluate.results import Result
from hala_hpc.tasks.evaluate.statistics import Difference, Mean, Scores

AVERAGE: Final = "average"
"""Stands for a benchmark: the mean of all."""
PERCENT: Final = 100.0
BASES: Final = ("base", "source")
"""Labels of the base where nobody names it; without them it is the first model of the recipe."""


@dataclass(frozen=True)
class Answered:
    """One model's answers to one benchmark: for each task the questions' numbers, ascending, and their scores.

    ``questions`` is a digest of what was asked (tasks, numbers, choices, right answers): scores are compared question
    by question only where it is the same.
    """

    result: Result
    index: Mapping[str, npt.NDArray[np.int64]]
    scores: Mapping[str, Scores]
    questions: str

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

    def has_all(self, model: str) -> bool:
        return all((model, benchmark) in self.cells for benchmark in self.benchmarks)

    def average(self, model: str) -> Mean | None:
        """The mean over all benchmarks; None for a model that lacks one: its mean would be of other things."""
        if not self.has_all(model):
            return None
        return statistics.mean_of([self.cells[model, benchmark].mean for benchmark in self.benchmarks])

    def mean(self, model: str, benchmark: str) -> Mean | None:
        """The mean of one benchmark, or with AVERAGE of all; None where it is missing."""
        cell = self.cells.get((model, benchmark))
        return self.average(model) if benchmark == AVERAGE else cell.mean if cell else None

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
            for name in (*self.benchmarks, AVERAGE)
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


def read(runs: Sequence[Path], base: str = "") -> Evaluations:
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
    index: dict[str, list[int]] = {task: [] for task in result.tasks}
    scores: dict[str, list[float]] = {task: [] for task in result.tasks}
    for task, number, choices, gold, score in rows:
        hashed.update(repr((task, number, choices, gold)).encode())
        if task not in index:
            raise HalaError(f"{result.folder}: samples of {task}, which {results.RESULT} does not know")
        index[task].append(number)
        scores[task].append(score)
    arrays = {task: np.asarray(values, np.float64) for task, values in scores.items()}
    return Answered(result, {task: np.asarray(numbers) for task, numbers in index.items()}, arrays, hashed.hexdigest())


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
