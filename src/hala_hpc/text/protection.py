"""What is protected does not go through a model: it is left out of the request, and put back into the answer.

Two ways. **Markers**: each protected span of a segment is one short mark in the request, which the answer must hold
once; the model sees where it stands in the sentence. **Apart**: only the prose between the spans is asked for, each
stretch for itself; the model cannot touch the spans, and does not see the whole sentence.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Final

from hala_hpc.text.patterns import Kind
from hala_hpc.text.segments import Part, Segment
from hala_hpc.text.skeleton import NEWLINE, WORD, Skeleton, Span

BRACKETS: Final = ("⟦⟧", "⟪⟫", "⁅⁆", "⦃⦄")
"""What encloses a marker's number: the first pair of which a text has neither."""
DIGIT: Final = "[0-9٠-٩۰-۹]"
"""Models write numbers in the target's digits."""


class Damage(ValueError):
    """An answer that is not the segment's translation: parts, markers or lines are not what they must be."""


@dataclass(frozen=True)
class Masked:
    """A segment as it is asked for.

    ``parts`` are the texts of its parts, ``between`` what stands between them (one less), ``spans`` the protected spans
    by their markers' numbers, from 1; ``quoted`` says of each part whether it is a text of JSON.
    """

    parts: tuple[str, ...]
    between: tuple[str, ...]
    spans: Mapping[int, str]
    brackets: str
    quoted: tuple[bool, ...]

    @property
    def text(self) -> str:
        """What the model is to translate."""
        return "".join(part + after for part, after in zip(self.parts, (*self.between, ""), strict=True))


def masked(source: Skeleton, segment: Segment) -> Masked:
    """A segment with markers in the place of protected spans.

    Raises Damage where that cannot be done: the text has all the brackets itself, or its parts could not be told apart.
    """
    brackets = next((pair for pair in BRACKETS if pair[0] not in source.text and pair[1] not in source.text), None)
    if brackets is None:
        raise Damage("brackets: the text has all that could mark protected spans")
    spans: dict[int, str] = {}

    def text_of(start: int, end: int) -> str:
        words = []
        for span in source.spans(start, end):
            text = source.text_of(span)
            if span.kind not in (Kind.PROSE, Kind.LAYOUT):
                spans[len(spans) + 1] = text
                text = f"{brackets[0]}{len(spans)}{brackets[1]}"
            words.append(text)
        return "".join(words)

    units = source.units
    parts: list[str] = []
    between: list[str] = []
    spaces, at = "", segment.start  # those that end the part before
    for part in segment.parts:
        gap = text_of(at, part.start) if at < part.start else ""
        is_prose = len(units[part.unit].spans) == 1
        text = source.text[part.start : part.end] if is_prose else text_of(part.start, part.end)
        begun, ended = text.lstrip(), text.rstrip()
        if parts:
            between.append(spaces + gap + text[: len(text) - len(begun)])
        parts.append(text.strip())
        spaces, at = text[len(ended) :], part.end
    quoted = tuple(units[part.unit].is_quoted for part in segment.parts)
    request = Masked(tuple(parts), tuple(between), spans, brackets, quoted)
    if between and _aligned(request, request.text) != parts:
        raise Damage("parts: what stands between the segment's parts stands in them, too")
    return request


def restored(request: Masked, answer: str) -> list[str]:
    """The translation of each part of a segment, what is protected put back. Raises Damage."""
    result = []
    texts = _aligned(request, answer.strip())
    for original, text, is_quoted in zip(request.parts, texts, request.quoted, strict=True):
        if not text:
            raise Damage("empty: a part has no translation")
        if _newlines(text) > _newlines(original):
            raise Damage("lines: the answer has more lines than the text")
        result.append(_unmasked(request, original, _escaped(text) if is_quoted else text))
    return result


def stretches(source: Skeleton, part: Part) -> list[Span]:
    """The prose of a part, without the spaces around it, that is asked for where spans are left out."""
    result = []
    for span in source.spans(part.start, part.end):
        text = source.text_of(span)
        if span.kind is Kind.PROSE and WORD.search(text):
            start = span.start + len(text) - len(text.lstrip())
            result.append(Span(start, start + len(text.strip()), Kind.PROSE))
    return result


def joined(source: Skeleton, part: Part, answers: Sequence[str]) -> str:
    """A part's translation from those of its ``stretches``. Raises Damage."""
    words, at = [], part.start
    for span, answer in zip(stretches(source, part), answers, strict=True):
        if not answer.strip():
            raise Damage("empty: a part has no translation")
        if _newlines(answer.strip()) > _newlines(source.text_of(span)):
            raise Damage("lines: the answer has more lines than the text")
        is_quoted = source.units[part.unit].is_quoted
        words += [source.text[at : span.start], _escaped(answer.strip()) if is_quoted else answer.strip()]
        at = span.end
    return "".join([*words, source.text[at : part.end]]).strip()


def assembled(source: Skeleton, translations: Mapping[Part, str]) -> str:
    """The whole text with its parts translated; everything else, spaces around parts included, is the source's own."""
    words, at = [], 0
    for part, translation in sorted(translations.items(), key=lambda item: item[0].start):
        text = source.text[part.start : part.end]
        before, after = len(text) - len(text.lstrip()), len(text) - len(text.rstrip())
        words += [source.text[at : part.start + before], translation]
        at = part.end - after
    return "".join([*words, source.text[at:]])


_WRAPPED: Final = re.compile(r"\A```[\w-]*\n(?P<inner>.*)\n```\Z", re.DOTALL)
_COLONS: Final = (":", "：")
_QUOTES: Final = ('""', "“”", "«»", "''", "‘’")


def without_chatter(answer: str, prompt: str) -> str:
    """An answer without what models put around a translation: a line that announces it, a fence, quotation marks.

    Only what the text of the ``prompt`` does not have itself is taken off, and a line only where the
    answer has more of them than the prompt.
    """
    answer = answer.strip()
    first, _, rest = answer.partition("\n")
    if first.rstrip().endswith(_COLONS) and not prompt.split("\n")[0].rstrip().endswith(_COLONS):
        answer = rest.strip() if rest.strip() and _newlines(answer) > _newlines(prompt.strip()) else answer
    if (wrapped := _WRAPPED.match(answer)) and not prompt.lstrip().startswith("```"):
        answer = wrapped["inner"].strip()
    for opening, closing in _QUOTES:
        has_both = len(answer) > 1 and answer[0] == opening and answer[-1] == closing
        if has_both and not prompt.startswith(opening) and answer.count(opening) + answer.count(closing) in (2, 4):
            answer = answer[1:-1].strip()
    return answer


def unmarked(text: str, brackets: str) -> str:
    """A text without its markers, to be checked."""
    return (_markers(brackets).sub(" ", text) if brackets[0] in text else text).strip()


def _escaped(text: str) -> str:
    """A text as it stands between the quotation marks of JSON."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _newlines(text: str) -> int:
    return len(NEWLINE.findall(text)) if "\r" in text else text.count("\n")


def _marker(brackets: str, number: str = rf"({DIGIT}{{1,6}})") -> str:
    return rf"{re.escape(brackets[0])}\s*{number}\s*{re.escape(brackets[1])}"


@cache
def _markers(brackets: str) -> re.Pattern[str]:
    return re.compile(_marker(brackets))


def _unmasked(request: Masked, original: str, text: str) -> str:
    if not request.spans and not any(bracket in text for bracket in request.brackets):
        return text
    marker = _markers(request.brackets)
    expected = Counter(int(match[1]) for match in marker.finditer(original))
    present = Counter(int(match[1]) for match in marker.finditer(text))
    if present != expected:
        lost, added = expected - present, present - expected
        raise Damage(f"markers: {lost.total()} lost, {added.total()} too many")
    if any(bracket in marker.sub("", text) for bracket in request.brackets):
        raise Damage("markers: a bracket without its number")
    return marker.sub(lambda match: request.spans[int(match[1])], text)


def _aligned(request: Masked, answer: str) -> list[str]:
    """The answer cut where the parts of the segment end. Raises Damage."""
    texts, at = [], 0
    for between in request.between:
        match = _border(between, request.brackets).search(answer, at)
        if match is None:
            raise Damage("parts: the answer does not have the text's paragraphs, items or cells")
        texts.append(answer[at : match.start()].strip())
        at = match.end()
    return [*texts, answer[at:].strip()]


_TOKEN: Final = re.compile(r"\s+|\d+|.", re.DOTALL)
_BREAK: Final = r"(?:\r\n|\r(?!\n)|(?<!\r)\n)"
_BULLETS: Final = "-*+•‣◦–—"


@lru_cache(maxsize=4096)
def _border(between: str, brackets: str) -> re.Pattern[str]:
    """Finds what stands between two parts, as a translator may write it: other digits, spaces."""
    patterns: list[str] = []
    rest = between
    marker = _markers(brackets)
    for match in [*marker.finditer(between), None]:
        plain = rest if match is None else between[len(between) - len(rest) : match.start()]
        patterns += map(_tolerant_token, _TOKEN.findall(plain))
        if match is not None:
            patterns.append(_marker(brackets, number=_digits(match[1])))
            rest = between[match.end() :]
    return re.compile("".join(patterns))


def _tolerant_token(token: str) -> str:
    if "\n" in token or "\r" in token:
        return rf"[ \t]*{_BREAK}\s*{_BREAK}\s*" if _newlines(token) > 1 else rf"[ \t]*{_BREAK}[ \t]*"
    if token.isspace():
        return r"\s*"
    if token.isdigit():
        return _digits(token)
    if token in _BULLETS:
        return f"[{re.escape(_BULLETS)}]"
    return r"\s*[.)]" if token in ".)" else re.escape(token)


def _digits(number: str) -> str:
    """A number in Western, Arabic-Indic or Persian digits."""
    return "".join(f"[{int(digit)}{chr(0x660 + int(digit))}{chr(0x6F0 + int(digit))}]" for digit in number)
