"""Translators that do what models do to a text, good and bad: each from a request's text to an answer."""

import hashlib
import random
import re
from collections.abc import Callable, Generator
from typing import TypeVar

MARKER = re.compile(r"[⟦⟪]\s*\d+\s*[⟧⟫]")
Translator = Callable[[str], str]
Yield, Send, Return = TypeVar("Yield"), TypeVar("Send"), TypeVar("Return")


def driven(steps: Generator[list[Yield], list[Send], Return], answer: Callable[[Yield], Send]) -> Return:
    """What a generator returns that yields what it asks for and takes the answers."""
    answers: list[Send] | None = None
    while True:
        try:
            asks = next(steps) if answers is None else steps.send(answers)
        except StopIteration as end:
            returned: Return = end.value
            return returned
        answers = [answer(ask) for ask in asks]


def _random(text: str) -> random.Random:
    return random.Random(hashlib.blake2b(text.encode()).digest())


def upper(text: str) -> str:
    """A good one: each word becomes another, everything else stays."""
    return MARKER.sub(lambda marker: marker[0], text.upper())


def reverse(text: str) -> str:
    """Another word order, as in another language."""
    return "\n".join(" ".join(reversed(line.split(" "))) for line in text.split("\n"))


def _on_a_marker(change: Callable[[str, re.Match[str]], str]) -> Translator:
    def translate(text: str) -> str:
        markers = [*MARKER.finditer(text)]
        return (change(text, _random(text).choice(markers)) if markers else text).upper()

    return translate


def reorder(text: str) -> str:
    markers = MARKER.findall(text)
    _random(text).shuffle(markers)
    return MARKER.sub(lambda _: markers.pop(), text).upper()


TRANSLATORS: dict[str, Translator] = {
    "upper": upper,
    "reverse": reverse,
    "reorder": reorder,
    "drop": _on_a_marker(lambda text, marker: text[: marker.start()] + text[marker.end() :]),
    "double": _on_a_marker(lambda text, marker: text[: marker.end()] + marker[0] + text[marker.end() :]),
    "translate": _on_a_marker(lambda text, marker: text.replace(marker[0], marker[0].translate({0x27E6: "["}))),
    "chatter": lambda text: f"Sure! Here is the translation:\n\n{upper(text)}",
    "answer": lambda text: f"{len(text)} is the answer.",
    "loop": lambda text: f"{upper(text)} {'again and again ' * 40}",
    "early": lambda text: upper(text[: len(text) // 2]),
    "thinking": lambda text: f"<think>\nLet me see.\n</think>\n\n{upper(text)}",
}
"""By name; the first two are good, the others are not to be silent about what they spoil."""
