"""Trying again what may pass: broken connections and busy servers, but no refusals."""

import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, TypeVar

from hala_hpc.config.errors import HalaError

ATTEMPTS: Final = 8
"""Of one step, besides the client's own five: with the pauses below, an outage of a quarter of an hour."""
LONGEST_PAUSE: Final = 300.0
STATUS_THAT_PASSES: Final = frozenset({408, 409, 412, 425, 429})
"""Besides all from 500 on: time-outs, other commits at the same time, too many requests."""
STATUS_IN_WORDS: Final = re.compile(r"HTTP status (?:client|server) error \((\d{3})\b")

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How long to try. ``pause`` is the first, in seconds; each is twice the one before, and a little by chance."""

    attempts: int = ATTEMPTS
    pause: float = 5.0

    def seconds(self, attempt: int) -> float:
        return float(min(LONGEST_PAUSE, self.pause * 2**attempt) * random.uniform(0.75, 1.25))


def persist(what: str, act: Callable[[], T], say: Callable[[str], None], patience: Patience) -> T:
    """Do it, again and again where what failed may pass. Raises HalaError at last, or for what will not pass."""
    for attempt in range(patience.attempts):
        try:
            return act()
        except Exception as error:
            if not _passes(error) or attempt == patience.attempts - 1:
                raise HalaError(f"{what}: {_first_line(error)}", _hint(error)) from error
            pause = patience.seconds(attempt)
            say(f"{what}: {_first_line(error)}; again in {pause:.0f} s")
            time.sleep(pause)
    raise AssertionError("no attempts")


def _passes(error: BaseException) -> bool:
    """Whether another attempt may do better: broken connections and busy servers, but not a refusal or a lost file."""
    status = _status(error)
    if status is not None:
        return status >= 500 or status in STATUS_THAT_PASSES
    for each in _causes(error):
        if isinstance(each, (ValueError, TypeError, FileNotFoundError, PermissionError)):
            return False
    return isinstance(error, (OSError, RuntimeError)) or type(error).__module__.partition(".")[0] in (
        "httpx",
        "httpcore",
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it came from: the client wraps what a file's upload raised."""
    while error is not None:
        yield error
        error = error.__cause__


def _status(error: BaseException) -> int | None:
    """What the server said, if that is why: Xet's part of the client tells it in words alone."""
    for each in _causes(error):
        if isinstance(status := getattr(getattr(each, "response", None), "status_code", None), int):
            return status
        if said := STATUS_IN_WORDS.search(str(each)):
            return int(said[1])
    return None


def _hint(error: BaseException) -> str:
    if _status(error) in (401, 403):
        return "may this key write there? `hf auth whoami`"
    return "the same command goes on where it stopped"


def _first_line(error: BaseException) -> str:
    lines = [line for each in list(_causes(error))[::-1] for line in str(each).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
