"""Thinking aloud is not the answer: what a reasoning model writes before it is taken off."""

from typing import Final

MARKS: Final = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
)
"""How models open and close a thought, as their chat templates have it."""


class EndlessThought(ValueError):
    """A thought that never ends: there is no answer."""


def is_opened(prompt: str) -> bool:
    """Whether a prompt ends in an opened thought, so that the model goes on thinking without a mark."""
    return prompt.rstrip().endswith(tuple(opening for opening, _ in MARKS))


def answer_of(written: str, given: str = "", opened: bool = False) -> str:
    """What was written, without a thought at its beginning; the same text where there is none.

    Marks that ``given`` (the text that was sent) has too are the text's own: a translated thought is not thinking.
    Raises EndlessThought.
    """
    for opening, closing in MARKS:
        thought, mark, answer = written.partition(closing)
        if mark and (opened or written.count(closing) > given.count(closing)):
            return answer.lstrip()
        if not mark and thought.lstrip().startswith(opening) and opening not in given:
            raise EndlessThought(f"{opening} was never closed")
    if opened:
        raise EndlessThought("the thought that the prompt opens was never closed")
    return written
