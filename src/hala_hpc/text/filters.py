"""Filters for conversations that a model made up: numbers of each turn, and which of them reject the row.

Latxa-Instruct's filters are not in its paper; the card of the dataset that it released shows some (*observed*). All
other bounds are ours, and set by no measurement. They need neither a model nor the other rows: duplicates are for a
mix, which sees all rows, and quality is for a judge.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from hala_hpc.text.checks import LANGUAGE_LETTERS, leftovers, repeats, shrinkage
from hala_hpc.text.languages import Language, is_in
from hala_hpc.text.rules import letters, prose


@dataclass
class Filters:
    """What rejects a row; null or false: nothing. Lengths are characters of a turn."""

    truncated: bool = True  # max_tokens cut the turn off (ours)
    min_instruction: int | None = 10  # of each user's turn (ours)
    max_instruction: int | None = 8_000  # ours
    min_response: int | None = None  # of each answer: "4" is one (ours)
    max_response: int | None = None  # ours
    leftovers: bool = True  # words of chat templates, thoughts, "Human:" (ours)
    loops: int | None = 4  # the end of a turn stands there so often in a row (ours: as in translations)
    zlib: float | None = 5.0  # zlib makes it more than so many times smaller (ours: as in translations)
    words: int | None = 100  # a word stands in it more often (observed: the card of Latxa's filtered instructions)
    same: bool = True  # the answer repeats the instruction (ours)
    refusals: bool = True  # the answer begins as an English refusal does (ours)
    patterns: list[str] = field(default_factory=list)  # or as one of these regular expressions


REFUSED: Final = (
    "help|assist|provide|create|fulfil|generate|write|comply|do that|do this|answer|support|engage|share|give|discuss|"
    "offer|satisfy|continue|complete|process|access|browse|view|recommend|participate|produce|translate|perform"
)
"""What a model says that it cannot do. Not "I can't wait", "I cannot stress enough"."""
REFUSAL: Final = re.compile(
    r"\W*(?:(?:(?:i(?:['’]m| am) )?(?:very |so |really |truly )?sorry|my apologies|i apologi[sz]e|unfortunately)\b"
    r"[^.!?\n]{0,60}?[,.!:;]?\s*(?:but|that)?\s*)?"
    rf"(?:i (?:can(?:no|['’])t|can not|could ?n['’]t|won['’]t|will not|am (?:not able|unable) to|must decline to)"
    rf"|i['’]m (?:not able|unable) to) (?:\w+ )?(?:{REFUSED})"
    r"|\W*as an? (?:ai|artificial intelligence)\b|\W*i['’]?a?m (?:just |only )?an? (?:ai|artificial intelligence)\b",
    re.IGNORECASE,
)
"""How an answer begins that is a refusal, in English (ours)."""


@dataclass(frozen=True)
class Turn:
    """The numbers of one turn. None where a text is too short, or of a kind, for which a number says nothing.

    Parameters
    ----------
    length : characters.
    truncated : 1 where it was cut off; else 0.
    leftovers : words of chat templates, thoughts and markers in it.
    loops : how often its end stands there in a row.
    zlib : how many times smaller zlib makes it.
    words : how often its most frequent word stands in it.
    language : 1 where its prose is in the language, or may well be; else 0.
    same : 1 where its letters and digits are those of the turn before; else 0.
    refusals : 1 where it begins as a refusal; else 0.
    empty : 1 where it has neither a letter nor a digit; else 0.
    """

    is_answer: bool
    length: int
    truncated: int
    leftovers: int
    loops: int
    zlib: float
    words: int
    language: int | None
    same: int
    refusals: int
    empty: int


SUMS: Final = ("truncated", "leftovers", "same", "refusals")
"""Numbers of a row that are the sums over its turns; others are those of the worst turn."""
LENGTHS: Final = ("shortest_instruction", "longest_instruction", "shortest_response", "longest_response")
NUMBERS: Final = (*LENGTHS, *SUMS, "loops", "zlib", "words", "language")
"""The numbers of a row, by name."""


class Looking:
    """Looks at turns, and says what is wrong with them. Raises re.error for patterns that are none."""

    def __init__(self, filters: Filters, language: Language | None) -> None:
        """``language``: that of each turn; None: any."""
        self._filters, self._language = filters, language
        self._refusals = [*([REFUSAL] if filters.refusals else []), *map(re.compile, filters.patterns)]

    def at(self, text: str, before: str | None, is_cut: bool, any_language: bool = False) -> Turn:
        """The numbers of a turn: an answer to ``before``, or what a user says (None)."""
        is_answer = before is not None
        return Turn(
            is_answer,
            len(text),
            int(is_cut),
            leftovers("", text),
            repeats(text),
            shrinkage(text),
            max(Counter(text.split()).values(), default=0),
            None if any_language or self._language is None else _is_in(text, self._language),
            int(before is not None and letters(text) == letters(before) != ""),
            int(is_answer and any(refusal.match(text) for refusal in self._refusals)),
            int(not any(map(str.isalnum, text))),
        )

    def rejection(self, turn: Turn) -> str:
        """Why a turn rejects its row, as ``reason: detail``; '' where it does not."""
        filters, who = self._filters, "answer" if turn.is_answer else "instruction"
        kind = "response" if turn.is_answer else "instruction"
        least = filters.min_response if turn.is_answer else filters.min_instruction
        most = filters.max_response if turn.is_answer else filters.max_instruction
        loops, zlib, words = filters.loops, filters.zlib, filters.words
        tongue = self._language.name if self._language else ""
        tests = {
            "empty": (turn.empty, f"the {who} has neither a letter nor a digit"),
            "truncated": (filters.truncated and turn.truncated, f"the {who} was cut off by max_tokens"),
            f"short {kind}": (least is not None and turn.length < least, f"{turn.length} characters"),
            f"long {kind}": (most is not None and turn.length > most, f"{turn.length} characters"),
            "leftovers": (filters.leftovers and turn.leftovers, f"words of a chat template in the {who}"),
            "loops": (loops is not None and turn.loops >= loops, f"the {who} ends with {turn.loops} times the same"),
            "zlib": (zlib is not None and turn.zlib > zlib, f"the {who} says the same, {turn.zlib:.1f} times"),
            "words": (words is not None and turn.words > words, f"a word stands in the {who} {turn.words} times"),
            "language": (turn.language == 0, f"the {who} is not {tongue}"),
            "same": (filters.same and turn.same, "the answer repeats the instruction"),
            "refusal": (turn.refusals, "the answer begins as a refusal"),
        }
        return next((f"{reason}: {detail}" for reason, (is_so, detail) in tests.items() if is_so), "")


def summed(turns: Sequence[Turn]) -> dict[str, int | float | None]:
    """The numbers of a row (``NUMBERS``), of its turns; None where none of them says anything."""
    asked, answered = ([turn.length for turn in turns if turn.is_answer == kind] for kind in (False, True))
    numbers: dict[str, int | float | None] = {name: sum(getattr(turn, name) for turn in turns) for name in SUMS}
    numbers |= {name: max((getattr(turn, name) for turn in turns), default=None) for name in ("loops", "zlib", "words")}
    known = [turn.language for turn in turns if turn.language is not None]
    lengths = (min(asked, default=None), max(asked, default=None), min(answered, default=None))
    return {
        **dict(zip(LENGTHS, (*lengths, max(answered, default=None)), strict=True)),
        **numbers,
        "language": min(known, default=None),
    }


def _is_in(text: str, language: Language) -> int | None:
    words = prose(text)
    if sum(map(str.isalpha, words)) < LANGUAGE_LETTERS:
        return None
    known = is_in(words, language.code)
    return None if known is None else int(known)
