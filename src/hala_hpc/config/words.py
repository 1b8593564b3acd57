"""Words around numbers."""

import math
from typing import TypeVar

T = TypeVar("T")


def plural(count: int, noun: str) -> str:
    """A count with its noun: 1 worker, 2,000 workers."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def known(value: T) -> T | None:
    """None in place of NaN and infinity, which neither CSV nor JSON can hold."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
