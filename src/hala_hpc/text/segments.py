"""Texts cut into segments that a model translates in one piece, and joined again.

A segment is one or several units of a skeleton that follow each other, or a part of one unit that alone is longer than
the budget. Cut is where it harms least: between units, else after a sentence, a clause, a word, and in a text without
any border between two characters; never inside of what is protected.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from hala_hpc.text.patterns import Kind
from hala_hpc.text.skeleton import WORD, Piece, Skeleton, Span

MARKER_TOKENS: Final = 6
"""What a protected span costs in a request, at most: its marker (ours)."""

Count = Callable[[str], int]
"""How many tokens a text has."""


@dataclass(frozen=True, slots=True)
class Part:
    """A unit, or what of it goes into one request: its characters from ``start`` to ``end``."""

    unit: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Segment:
    """Parts that are asked for together, of about so many ``tokens``; between them is only what stays as it is."""

    parts: tuple[Part, ...]
    tokens: int = field(default=0, compare=False)

    @property
    def start(self) -> int:
        return self.parts[0].start

    @property
    def end(self) -> int:
        return self.parts[-1].end


_BORDERS: Final = (
    re.compile(r"\n"),
    re.compile(r"(?<=[.!?…。！？؟۔])[\"'”’»)\]]*\s+|(?<=[。！？])"),
    re.compile(r"(?<=[,;:،؛，；：—–])\s+|(?<=[，；：])"),
    re.compile(r"\s+"),
)
"""Ends of lines, sentences, clauses, words. The border belongs to what stands before it."""


def segments(skeleton: Skeleton, budget: int, count: Count) -> list[Segment]:
    """The segments of a text, in their order, each of at most ``budget`` tokens.

    Raises ValueError for a budget below 1.
    """
    if budget < 1:
        raise ValueError(f"a segment of {budget} tokens")
    result: list[Segment] = []
    room = 0
    for part, tokens in _parts(skeleton, budget, count):
        if tokens > room:
            result.append(Segment((part,), tokens))
            room = budget - tokens
        else:
            result[-1] = Segment((*result[-1].parts, part), result[-1].tokens + tokens)
            room -= tokens
    return result


def _parts(skeleton: Skeleton, budget: int, count: Count) -> Iterator[tuple[Part, int]]:
    for number, unit in enumerate(skeleton.units):
        tokens = _tokens(skeleton, unit.spans, count)
        if tokens <= budget:
            yield Part(number, unit.start, unit.end), tokens
        else:
            for start, end, tokens in _cut(skeleton, unit, budget, count):
                if any(
                    s.kind is Kind.PROSE and WORD.search(skeleton.text, s.start, s.end)
                    for s in skeleton.spans(start, end)
                ):
                    yield Part(number, start, end), tokens


def _tokens(skeleton: Skeleton, spans: Sequence[Span], count: Count) -> int:
    return sum(count(skeleton.text_of(span)) if span.kind is Kind.PROSE else MARKER_TOKENS for span in spans)


def _cut(skeleton: Skeleton, unit: Piece, budget: int, count: Count) -> Iterator[tuple[int, int, int]]:
    """Pieces of a long unit, as long as the budget lets them be: from, to, tokens."""
    start = end = unit.start
    tokens = 0
    for span in unit.spans:
        fine = (
            [(span.start, span.end, MARKER_TOKENS)]
            if span.kind is not Kind.PROSE
            else _fine(skeleton.text, span.start, span.end, budget, count, 0)
        )
        for _, piece_end, piece_tokens in fine:
            if tokens and tokens + piece_tokens > budget:
                yield start, end, tokens
                start, tokens = end, 0
            end, tokens = piece_end, tokens + piece_tokens
    yield start, end, tokens


def _fine(text: str, start: int, end: int, budget: int, count: Count, level: int) -> Iterator[tuple[int, int, int]]:
    """Prose cut at the borders of one level; what is still too long, at those of the next."""
    tokens = count(text[start:end])
    if tokens <= budget or end - start == 1:
        yield start, end, tokens
        return
    if level == len(_BORDERS):
        middle = (start + end) // 2
        cuts = [middle]
    else:
        cuts = [match.end() for match in _BORDERS[level].finditer(text, start, end) if start < match.end() < end]
        level += 1
    for a, b in zip([start, *cuts], [*cuts, end], strict=True):
        yield from _fine(text, a, b, budget, count, level)
