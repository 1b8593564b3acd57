"""From log-probabilities to scores: the expected value of a verdict, and the mean over wordings."""

import math
from collections.abc import Sequence
from statistics import fmean


def expected(weights: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """The value that a verdict has on average, and the probability that the model answers with a verdict at all.

    Parameters
    ----------
    weights : log-probability (nats) of each verdict's word, -inf for none.
    values : what each verdict is worth.

    Note
    ----
    One token read with all its probabilities tells more than one that is drawn: G-Eval (arXiv 2303.16634, section 2.2).
    """
    highest = max(weights)
    shares = [math.exp(weight - highest) for weight in weights]
    value = sum(share * value for share, value in zip(shares, values, strict=True)) / sum(shares)
    return value, min(1.0, sum(map(math.exp, weights)))


def combined(scores: Sequence[float], outliers: int = 0) -> float:
    """The mean of scores without the ``outliers`` highest and as many of the lowest."""
    ranked = sorted(scores)
    return fmean(ranked[outliers : len(ranked) - outliers])
