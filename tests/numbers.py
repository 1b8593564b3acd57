"""How near two computations of the same numbers come, by the format that they are computed in.

Two libraries, or two processors, add up the same products in another order. A sum of n products in float32 is off by at
most n · 2⁻²⁴ of the sum of their sizes; the longest sums of the tiny models are over their hidden size.
"""

from typing import Any, Final

import pytest

HIDDEN: Final = 128
FLOAT32: Final = HIDDEN * 2.0**-24
"""Relative, of a logit."""
LOGITS: Final = 10.0
"""No logit of a tiny random model is larger; a log-probability is the difference of two numbers of that size."""
LOG_PROBABILITY: Final = 2 * LOGITS * FLOAT32
"""Absolute, of one token's log-probability, in nats (1.5e-4): a token of another text is off by nats."""


def same_log_probabilities(expected: Any) -> Any:
    """Equal but for rounding: log-probabilities of tokens, or their sums over a text (in nats)."""
    return pytest.approx(expected, rel=2 * FLOAT32, abs=LOG_PROBABILITY)


def same_losses(expected: Any) -> Any:
    """Equal but for rounding: mean losses of steps whose sums were added up in another order."""
    return pytest.approx(expected, rel=2 * FLOAT32)


def best_of(values: list[float]) -> set[int]:
    """The places of the highest value and of those that rounding may put above it."""
    slack = max(2 * FLOAT32 * abs(value) for value in values) + LOG_PROBABILITY
    return {place for place, value in enumerate(values) if value >= max(values) - slack}
