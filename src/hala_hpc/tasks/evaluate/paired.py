"""Means over questions, tasks and benchmarks, and whether two models differ on the same questions.

The score of a task is the mean over its questions, that of a benchmark the unweighted mean over its tasks, and a
model's average the unweighted mean over benchmarks: as the papers do. Standard errors follow: of a task sd/√n with
n - 1 degrees of freedom, of a mean of k of those √(Σ se²)/k. They cover the choice of questions, not of benchmarks.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from hala_hpc.tasks.evaluate import results

Scores = npt.NDArray[np.float64]
"""One per question of a task."""
ROUNDS: Final = 10_000
"""Sign flips drawn: the smallest p that can be told is about 1/10,000 (ours)."""
SEED: Final = 20_250_914
NORMAL_95: Final = 1.959964
"""Half-width of a 95 % interval in standard errors."""


@dataclass(frozen=True)
class Mean:
    """A mean with its standard error, in the unit of the scores; NaN where a task has a single question."""

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


def mean(scores: Scores) -> Mean:
    """Of one task's questions."""
    values = scores.tolist()
    return Mean(results.mean(values), results.standard_error(values), len(values))


def mean_of(means: Sequence[Mean]) -> Mean:
    """Unweighted: of tasks, a benchmark's; of benchmarks, a model's."""
    count = len(means)
    error = results.standard_error_of_means([one.error for one in means])
    return Mean(sum(one.value for one in means) / count, error, sum(one.questions for one in means))


def average(benchmarks: Sequence[Sequence[Scores]]) -> Mean:
    """Of benchmarks, each a sequence of tasks."""
    return mean_of([mean_of([mean(task) for task in tasks]) for tasks in benchmarks])


def compare(mine: Sequence[Sequence[Scores]], base: Sequence[Sequence[Scores]]) -> Difference:
    """The difference of two averages over the same benchmarks, tasks and questions, and how likely chance made it.

    ``p`` is of a paired permutation test: were the models alike, each question's difference might as well have the
    other sign; how often is the sum of randomly signed ones as far from 0? For one task of right and wrong answers that
    is McNemar's exact test. p = (1 + hits) / (1 + rounds), as Phipson and Smyth (2010) advise.
    """
    gaps = [[left - right for left, right in zip(*pair, strict=True)] for pair in zip(mine, base, strict=True)]
    whole = average(gaps)
    every = np.concatenate([task for tasks in gaps for task in tasks])
    better, worse = int((every > 0).sum()), int((every < 0).sum())
    return Difference(whole.value, whole.error, _p(gaps, abs(whole.value)), better, worse, len(every))


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
    """How often each weighted size of a gap occurs; those of nothing left out."""
    found: Counter[float] = Counter()
    for tasks in gaps:
        for task in tasks:
            weight = 1 / (len(gaps) * len(tasks) * len(task))
            sizes: tuple[Any, Any] = np.unique(np.abs(task[task != 0]), return_counts=True)
            for size, count in zip(*sizes, strict=True):
                found[float(size) * weight] += int(count)
    return found
