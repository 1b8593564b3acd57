"""Means over questions, tasks and benchmarks, and whether two models differ on the same questions.

The score of a task is the mean over its questions, that of a benchmark the unweighted mean over its tasks, and a
model's average the unweighted mean over benchmarks: as the papers do. Standard errors follow: sd/√n with n - 1 degrees
of freedom for a task, √(Σ se²)/k for a mean of k of those. They cover the choice of questions, not of benchmarks.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float64]
"""One per question of a task."""
ROUNDS: Final = 10_000
"""Sign flips drawn: the smallest p is about 1/10,000 (ours)."""
SEED: Final = 20_250_914
NORMAL_95: Final = 1.959964
"""Half-width of a 95 % interval in standard errors."""


@dataclass(frozen=True)
class Mean:
    """A mean with its standard error, in the unit of the scores; it is NaN where a task has a single question."""

    value: float
    error: float
    questions: int


@dataclass(frozen=True)
class Difference:
    """One model less another, on the same questions. ``p`` is two-sided; ``better`` and ``worse`` count questions."""

    value: float
    error: float
    p: float
    better: int
    worse: int
    questions: int

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, by the normal distribution."""
        return self.value - NORMAL_95 * self.error, self.value + NORMAL_95 * self.error


def mean(scores: Sequence[float] | Scores) -> Mean:
    """The mean of one task's questions; its error is sd/√n, unknown for a single question."""
    values = list(map(float, scores))
    middle, count, error = fmean(values), len(values), math.nan
    if count > 1:
        error = math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (count - 1) / count)
    return Mean(middle, error, count)


def mean_of(means: Sequence[Mean]) -> Mean:
    """The unweighted mean of a benchmark's tasks, or of a model's benchmarks; its error is √(Σ se²)/k."""
    error = math.sqrt(math.fsum(mean.error**2 for mean in means)) / len(means)
    return Mean(fmean(mean.value for mean in means), error, sum(mean.questions for mean in means))


def compare(mine: Sequence[Sequence[Scores]], base: Sequence[Sequence[Scores]]) -> Difference:
    """The difference of two averages over the same benchmarks, tasks and questions, and how likely chance made it.

    ``p`` is of a paired permutation test: were the models alike, each question's difference might as well have the
    other sign; how often is the sum of randomly signed ones as far from 0? For one task of right and wrong answers that
    is McNemar's exact test. p = (1 + hits) / (1 + rounds), as Phipson and Smyth (2010) advise.
    """
    gaps = [[left - right for left, right in zip(*pair, strict=True)] for pair in zip(mine, base, strict=True)]
    whole = mean_of([mean_of([mean(task) for task in tasks]) for tasks in gaps])
    signs = np.sign(np.concatenate([task for tasks in gaps for task in tasks]))
    better, worse = int((signs > 0).sum()), int((signs < 0).sum())
    return Difference(whole.value, whole.error, _p(gaps, abs(whole.value)), better, worse, whole.questions)


def holm(values: Sequence[float]) -> list[float]:
    """p-values of several comparisons, adjusted so that any false one among them is as rare (Holm, 1979)."""
    adjusted, least, count = [0.0] * len(values), 0.0, len(values)
    for rank, place in enumerate(sorted(range(count), key=lambda place: values[place])):
        least = max(least, min(1.0, (count - rank) * values[place]))
        adjusted[place] = least
    return adjusted


def _p(gaps: Sequence[Sequence[Scores]], observed: float) -> float:
    """Gaps of one size and weight are drawn together: the sum of n random signs is 2·Binomial(n, ½) - n."""
    generator = np.random.default_rng(SEED)
    sums = np.zeros(ROUNDS)
    for size, count in _sizes(gaps).items():
        sums += size * (2 * generator.binomial(count, 0.5, ROUNDS) - count)
    slack = 1e-12 * max(1.0, observed)  # sums of floats that are equal on paper
    return float(1 + (np.abs(sums) >= observed - slack).sum()) / (1 + ROUNDS)


def _sizes(gaps: Sequence[Sequence[Scores]]) -> Mapping[float, int]:
    """How often each weighted size of a gap occurs; gaps of 0 are left out."""
    sizes: Counter[float] = Counter()
    for tasks in gaps:
        for task in tasks:
            weight = 1 / (len(gaps) * len(tasks) * len(task))
            for size, count in zip(*np.unique(np.abs(task[task != 0]), return_counts=True), strict=True):
                sizes[float(size) * weight] += int(count)
    return sizes
