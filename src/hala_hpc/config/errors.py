"""The one exception a person is meant to read, where it happened, and the word that was meant."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


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


def first_line(error: BaseException) -> str:
    """The first line of a foreign error; its class where it says nothing."""
    return next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
