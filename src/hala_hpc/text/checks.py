"""What can be seen of a translation without a model: each check is a named number, and a bound says when it is a flag.

Every check looks at prose only; what is protected is compared byte for byte by ``shape``. The bounds were set so that
each flags at most 2 % of human translations (FLORES-200 English-Arabic and English-Basque, Tatoeba Standard Arabic).
"""

import math
import re
import sys
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Final, NamedTuple

from hala_hpc.text.glossary import Glossary
from hala_hpc.text.languages import Language, is_in

LANGUAGE_LETTERS: Final = 20
"""Letters from which on the language or script of a text can be told (ours)."""
COPIED_WORDS: Final = 4
"""Longer words of the source from which on a copy can be told (ours)."""
LONG_WORD: Final = 4
"""Letters of a longer word."""


@dataclass(frozen=True)
class Length:
    """How long translations are: log(target / source characters) has this mean, and a variance that falls with length.

    ``spread`` is the standard deviation of long texts; ``short``, divided by the source's characters, is added to its
    square.
    """

    mean: float = 0.0
    spread: float = 0.25
    short: float = 3.0

    def deviation(self, source: int, target: int) -> float:
        """By how many standard deviations a translation is longer (shorter: below 0) than others."""
        source, target = max(source, 1), max(target, 1)
        return (math.log(target / source) - self.mean) / math.sqrt(self.spread**2 + self.short / source)


LENGTHS: Final = {("en", "ar"): Length(-0.17, 0.15, 1.5), ("en", "eu"): Length(0.05, 0.12, 1.5)}
"""Measured on FLORES-200 devtest and Tatoeba (see the module); any other pair has ``Length()``."""


@dataclass(frozen=True)
class Pair:
    """From one language to another."""

    source: Language
    target: Language

    @cached_property
    def length(self) -> Length:
        """How long translations of this pair are."""
        return LENGTHS.get((self.source.code, self.target.code), Length())


class Checks(NamedTuple):
    """The numbers of one translated text. None where a text is too short, or of a kind, for which a check says nothing.

    Parameters
    ----------
    numbers : how many numbers of the source became others.
    script : share of the letters that are of the target's script.
    language : 1 where the text is in the target language, or may well be; else 0.
    length : by how many standard deviations the translation is longer than others of its pair; below 0: shorter.
    loops : how often its end stands there in a row; 1 where the source's own does about as often.
    copied : share of the source's longer words that stand in the translation.
    ending : 1 where both end with a question mark, or with a colon, or neither does; else 0.
    zlib : how many times smaller zlib makes it, where that is over twice as often as of the source; else 1.
    chatter : 1 where it begins as an answer to a person does ("Sure!", "Here is the translation"); else 0.
    leftovers : words of chat templates and of the prompt, thoughts and markers that the source does not have.
    glossary : how many of the source's terms are not translated as the glossary has them.
    """

    numbers: int
    script: float | None
    language: float | None
    length: float
    loops: int
    copied: float | None
    ending: float
    zlib: float
    chatter: int
    leftovers: int
    glossary: int | None

    def named(self) -> Iterator[tuple[str, float | None]]:
        """Each number with its name, which is a key of ``BOUNDS``."""
        return ((name, getattr(self, name)) for name in BOUNDS)


BOUNDS: Final[dict[str, Callable[[float], bool]]] = {
    "numbers": lambda value: value > 0,
    "script": lambda value: value < 0.6,
    "language": lambda value: value < 1,
    "length": lambda value: abs(value) > 2.5,
    "loops": lambda value: value >= 4,
    "copied": lambda value: value > 0.6,
    "ending": lambda value: value < 1,
    "zlib": lambda value: value > 5,
    "chatter": lambda value: value > 0,
    "leftovers": lambda value: value > 0,
    "glossary": lambda value: value > 0,
}
"""When a check's number is a flag."""
ZLIB_BYTES: Final = 200
"""From so many on zlib has something to find (ours)."""
_CHATTER: Final = re.compile(
    r"\W*(?:sure\b|certainly\b|of course[,!.]|okay[,!.]|absolutely[!,]|i can help\b|as an ai\b"
    r"|here(?:'s|’s| is| are) (?:the|your|a|my) (?:\w+ ){0,3}translat|(?:the|my) translation\b"
    r"|translat(?:ed|ion)[^.\n]{0,40}:)",
    re.IGNORECASE,
)
_LEFTOVER: Final = re.compile(
    r"<\|[^|<>\s]{1,60}\|>|</?(?:s|think|thinking|bos|eos|pad|start_of_turn|end_of_turn)>|\[/?(?:INST|THINK)\]|<</?SYS>>"
    r"|^#{2,4} ?(?:Instruction|Response|Input|Output|Human|Assistant|User|System)\b:?|^(?:Human|Assistant|User):"
    r"|[⟦⟧⟪⟫⁅⁆⦃⦄]",
    re.MULTILINE,
)
_LEFTOVER_SIGNS: Final = ("<", "[", "#", "Human:", "Assistant:", "User:", *"⟦⟧⟪⟫⁅⁆⦃⦄")
"""A text without any of them has no leftover, which is quicker to see."""
_WORD: Final = re.compile(r"[^\W\d_]+")
_SPACES: Final = "".join(filter(str.isspace, map(chr, range(sys.maxunicode + 1))))
_ENDS: Final = ((_SPACES + "\"'”’»)]*_", ("?", "؟", "？")), (_SPACES, (":", "：")))
"""How a text ends that asks, or that lets something follow: what may come after the sign, and the signs."""


def checks(
    source: str, target: str, pair: Pair, glossary: Glossary | None = None, phrases: Sequence[str] = ()
) -> Checks:
    """The numbers of a translation; both texts without what is protected in them. ``phrases`` are the prompt's own."""
    written = _WORD.findall(target)
    letters = sum(map(len, written))
    is_long = letters >= LANGUAGE_LETTERS
    script = _letters_in(target, pair.target.script, letters) / letters if is_long else None
    language = is_in(target, pair.target.code) if is_long else None
    return Checks(
        changed_numbers(source, target),
        script,
        None if language is None else float(language),
        pair.length.deviation(len(source), len(target)),
        loops if (loops := repeats(target)) > 2 and loops > 2 * repeats(source) else 1,
        _copied(source, written) if pair.source.code != pair.target.code else None,
        float(all(_ends(source, *end) == _ends(target, *end) for end in _ENDS)),
        squeezed if (squeezed := shrinkage(target)) > 2 and squeezed > 2 * shrinkage(source) else 1.0,
        int(_CHATTER.match(target) is not None and _CHATTER.match(source) is None),
        leftovers(source, target, phrases),
        glossary.missing(source, target) if glossary else None,
    )


def _ends(text: str, after: str, signs: tuple[str, ...]) -> bool:
    return text.rstrip(after).endswith(signs)


def _letters_in(text: str, script: str, letters: int) -> int:
    """How many of a text's ``letters`` are of a script."""
    if text.isascii():  # which is quicker to see
        return letters if script == "LATIN" else 0
    return sum(map(len, _letters_of(script).findall(text)))


def _copied(source: str, written: Iterable[str]) -> float | None:
    """The share of the source's longer words that are written, too; None where it has few."""
    words = {word.lower() for word in _WORD.findall(source) if len(word) >= LONG_WORD}
    if len(words) < COPIED_WORDS:
        return None
    return len(words.intersection(map(str.lower, written))) / len(words)


def leftovers(source: str, target: str, phrases: Sequence[str] = ()) -> int:
    """How many words of chat templates, thoughts, markers and ``phrases`` of the prompt the target has of its own."""
    words = _LEFTOVER.findall(target) if any(map(target.__contains__, _LEFTOVER_SIGNS)) else []
    more = (Counter(words) - Counter(_LEFTOVER.findall(source))).total() if words else 0
    return more + sum(phrase in target and phrase not in source for phrase in phrases)


def shrinkage(text: str) -> float:
    """How many times smaller zlib makes a text; 1 for a short one."""
    written = text.encode()
    return len(written) / len(zlib.compress(written, 1)) if len(written) >= ZLIB_BYTES else 1.0


WORST: Final[dict[str, Callable[[float], float]]] = {
    "script": lambda value: -value,
    "language": lambda value: -value,
    "length": abs,
    "ending": lambda value: -value,
}
"""By what a number is worse than another; else by itself."""


def worst(many: Iterable[Checks]) -> dict[str, float | None]:
    """The worst number of each check; None where none of them says anything."""
    numbers: dict[str, float | None] = dict.fromkeys(BOUNDS)
    for checks in many:
        for name, value in checks.named():
            known, badness = numbers[name], WORST.get(name, float)
            if value is not None and (known is None or badness(value) > badness(known)):
                numbers[name] = float(value)
    return numbers


def flags(checks: Checks) -> list[str]:
    """The names of the checks that are beyond their bounds."""
    return [name for name, value in checks.named() if value is not None and BOUNDS[name](value)]


@cache
def _letters_of(script: str) -> re.Pattern[str]:
    """Finds runs of the letters of a script, by their names in Unicode."""
    letters = (chr(code) for code in range(sys.maxunicode + 1))
    known = (letter for letter in letters if letter.isalpha() and unicodedata.name(letter, "").startswith(script))
    return re.compile(f"[{''.join(known)}]+" if script else r"(?!)")


_DIGITS: Final = str.maketrans("٠١٢٣٤٥٦٧٨٩۰۱۲۳۴۵۶۷۸۹٫٬", "01234567890123456789.,")
_DIGIT: Final = re.compile(r"\d")
_NUMBER: Final = re.compile(r"\d+(?:[.,:/]\d+)*")
_BETWEEN: Final = dict.fromkeys(map(ord, ".,:/"))


def numbers(text: str) -> Counter[str]:
    """The numbers of a text by their digits, whichever script and separators they have; leading zeros do not count."""
    written = _NUMBER.findall(text if text.isascii() else text.translate(_DIGITS))
    return Counter(number.translate(_BETWEEN).lstrip("0") or "0" for number in written)


def changed_numbers(source: str, target: str) -> int:
    """How many numbers of the source are others in the target.

    A number that is only missing may be spelled out ("the 1960s", "5 minutes"), and one that is only there may have
    been a word: neither is counted.
    """
    if _DIGIT.search(source) is None or _DIGIT.search(target) is None:
        return 0
    before, after = numbers(source), numbers(target)
    if before == after:
        return 0
    missing, added = before - after, after - before
    for number in list(missing):
        for other in list(added):
            if _is_same(number, other):
                del missing[number], added[other]
                break
    return min(missing.total(), added.total())


def _is_same(number: str, other: str) -> bool:
    """Thousands may be a word beside the number (10,000 and "10 thousand"), and hours may count to 12 or to 24."""
    short, long = sorted((number, other), key=len)
    if long.startswith(short) and set(long[len(short) :]) <= {"0"}:
        return True
    return len(number) in (3, 4) and abs(int(number) - int(other)) == 1200


def repeats(text: str) -> int:
    """How often the end of a text stands there in a row: 1 where nothing repeats.

    Looked for are ends of 4 to 200 characters; shorter ones (dots, laughter) have to fill 40 characters.
    """
    most, last = 1, len(text) - 1
    first = max(0, last - min(200, len(text) // 2))
    nearest = last
    while text and (nearest := text.rfind(text[last], first, nearest)) >= 0:
        size = last - nearest
        end = text[-size:]
        if not end.strip() or text[-2 * size : -size] != end:
            continue
        count = 2
        while text[-(count + 1) * size : -count * size] == end:
            count += 1
        if size >= 4 or count * size >= 40:
            most = max(most, count)
    return most
