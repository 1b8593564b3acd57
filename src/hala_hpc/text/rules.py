"""Cheap rules that reject a pair of texts before a model is asked: those of ``checks``, and some that need no bound.

They look at prose; a text's code, formulas and addresses are no part of it.
"""

import re
from collections.abc import Callable, Sequence
from typing import Final

from hala_hpc.text.checks import BOUNDS, Pair, checks, flags
from hala_hpc.text.patterns import Kind
from hala_hpc.text.skeleton import skeleton

LONG: Final = 60
"""Characters of a text from which on one without its end is told from a headline or a short phrase (ours): of human
translations at most 0.7 % (FLORES-200 English-Arabic) then lack a mark that their source ends with; of all, 4 %.
"""
_ENDED: Final = re.compile(r"[.!?؟。！？…۔][\"'”’»)\]*_\s]*$")
MORE: Final = ("ending",)
"""Rules for pairs that one may ask for: a question mark that is missing is a flaw, and rejects 0.4 % of good pairs."""
PAIRS: Final = ("empty", "same", *(name for name in BOUNDS if name not in MORE), "source", "unfinished")
"""Rules for a text and its translation, in the order in which the first that is broken is the reason."""
ANSWERS: Final = ("empty", "same", "script", "language", "loops")
"""Rules for an instruction and its answer, both in one language."""


def broken(first: str, second: str, pair: Pair, rules: Sequence[str]) -> list[str]:
    """Those of ``rules`` that two texts break, in their order: a text and its translation, or the answer to it.

    ``empty``: one of them has neither a letter nor a digit. ``same``: their letters and digits are the same, whatever
    stands between. ``source``: the first is not in the source's script or language. ``unfinished``: the first is long
    and ends as a sentence does, and the second does not. The others are flags of ``checks``.
    """
    if not rules:
        return []
    asked, written = prose(first), prose(second)
    flagged = flags(checks(asked, written, pair))
    back = Pair(pair.target, pair.source)
    tests: dict[str, Callable[[], bool]] = {
        "empty": lambda: not (any(map(str.isalnum, first)) and any(map(str.isalnum, second))),
        "same": lambda: any(map(str.isalpha, first)) and letters(first) == letters(second),
        "source": lambda: not {"script", "language"}.isdisjoint(flags(checks(written, asked, back))),
        "unfinished": lambda: len(first) >= LONG and bool(_ENDED.search(first)) and not _ENDED.search(second),
    }
    return [rule for rule in rules if (tests[rule]() if rule in tests else rule in flagged)]


def prose(text: str) -> str:
    """What of a text is prose: neither code nor formulas nor links."""
    source = skeleton(text)
    spans = (span for unit in source.units for span in unit.spans if span.kind is Kind.PROSE)
    return " ".join(map(source.text_of, spans))


def letters(text: str) -> str:
    """The letters and digits of a text, without their case: what two texts are the same by."""
    return "".join(filter(str.isalnum, text.casefold()))
