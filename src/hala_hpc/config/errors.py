"""The one exception that a person is meant to read, words for it, and the modules that the open sections of a recipe
name by their ``kind``.
"""

import difflib
import importlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Final, TypeVar


class HalaError(Exception):
    """Bad input or a refusal: one clear line, and what to do next.

    The command line prints it as ``error: message (hint)`` and exits with code 2; it is never a bug of ours.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message} ({hint})" if hint else message)
        self.message = message
        self.hint = hint


@contextmanager
def within(place: str) -> Iterator[None]:
    """Errors of the block begin with ``place``, unless that is empty."""
    try:
        yield
    except HalaError as error:
        if not place:
            raise
        raise HalaError(f"{place}: {error.message}", error.hint) from error


def did_you_mean(word: str, valid: Iterable[str]) -> str:
    """A hint that names the nearest valid word, and all of them."""
    words = sorted(valid)
    near = difflib.get_close_matches(word, words, n=1)
    choices = f"valid: {', '.join(words)}" if words else "nothing is valid here"
    return f"did you mean '{near[0]}'? {choices}" if near else choices


T = TypeVar("T")


def first_twice(items: Iterable[T]) -> T | None:
    """The first item that is there more than once; None where none is."""
    return next((item for item, count in Counter(items).items() if count > 1), None)


def first_line(error: BaseException) -> str:
    """The first line of a foreign error; its class where it says nothing."""
    return next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)


_PART_OF_A_FOLDER: Final = re.compile(r"[\w-][\w.-]{0,99}")


def refuse_odd_name(where: str, name: str, what: str) -> None:
    """Raises HalaError for a name that cannot become part of a folder's; ``what`` it should be: a label."""
    if not _PART_OF_A_FOLDER.fullmatch(name):
        raise HalaError(f"{where}: {name!r} cannot be {what}", "letters, digits, -, _ and .; no . in front")


def plural(count: int, noun: str) -> str:
    """A count with its noun: 1 worker, 2,000 workers."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def few(items: Sequence[object], most: int, rest: str = ", …") -> str:
    """The first of some items, and that there are more: ``{}`` in ``rest`` stands for how many."""
    return ", ".join(map(str, items[:most])) + (rest.format(len(items) - most) if len(items) > most else "")


def known(value: T) -> T | None:
    """None in place of NaN and infinity, which neither CSV nor JSON can hold."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Kinds:
    """What a recipe's ``section`` may name: ``modules`` gives the module of each kind, and imports none of them."""

    section: str
    modules: Callable[[], Mapping[str, str]]

    def names(self) -> list[str]:
        """The kinds there are."""
        return sorted(self.modules())

    def load(self, kind: str) -> ModuleType:
        """The module of a kind. Raises HalaError listing the kinds there are."""
        modules = self.modules()
        if kind not in modules:
            raise HalaError(f"{self.section}.kind: no {self.section} '{kind}'", did_you_mean(kind, sorted(modules)))
        return importlib.import_module(modules[kind])
