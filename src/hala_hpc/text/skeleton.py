"""What of a text is prose, and what must come out of a translation byte for byte.

A text is cut into **pieces** that together are the text: blocks that stay as they are (code, JSON, the marks and empty
lines between paragraphs), and **units**, which are translated: a paragraph, an item of a list, a heading, a cell of a
table. A unit's **spans** are prose, or protected: inline code, formulas, addresses, tags, placeholders.

Blocks are those of CommonMark with GitHub's tables (markdown-it). Added to it: JSON outside of fences, formulas over
several lines, and code that nobody put into a fence, as in most instruction data.
"""

import hashlib
import json
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Final, NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

from hala_hpc.text import inside, patterns
from hala_hpc.text.patterns import Kind, Pattern, Range


class Span(NamedTuple):
    """A part of a text: its characters from ``start`` to ``end``."""

    start: int
    end: int
    kind: Kind


class Piece(NamedTuple):
    """A block that stays as it is (one span), or a unit: spans of prose and protected ones in turn.

    ``is_quoted``: a unit is a text of JSON, in which quotation marks are written as escapes.
    """

    spans: tuple[Span, ...]
    is_unit: bool
    is_quoted: bool = False

    @property
    def start(self) -> int:
        return self.spans[0].start

    @property
    def end(self) -> int:
        return self.spans[-1].end


@dataclass(frozen=True)
class Skeleton:
    """A text and its pieces, which follow each other without a gap."""

    text: str
    pieces: tuple[Piece, ...]

    @cached_property
    def units(self) -> list[Piece]:
        """The pieces that are translated."""
        return [piece for piece in self.pieces if piece.is_unit]

    @cached_property
    def _starts(self) -> list[int]:
        return [piece.spans[0].start for piece in self.pieces]

    def text_of(self, part: Span | Piece) -> str:
        """The characters of a span or piece."""
        return self.text[part.start : part.end]

    def spans(self, start: int, end: int) -> Iterator[Span]:
        """What lies between two places of the text, cut at them."""
        for number in range(max(bisect_right(self._starts, start) - 1, 0), len(self.pieces)):
            piece = self.pieces[number]
            if piece.start >= end:
                return
            for span in piece.spans:
                if span.start < end and start < span.end:
                    yield Span(max(start, span.start), min(end, span.end), span.kind)

    def protected(self) -> Iterator[Span]:
        """Spans that must survive, layout left out."""
        for piece in self.pieces:
            for span in piece.spans:
                if span.kind not in (Kind.PROSE, Kind.LAYOUT):
                    yield span


_LINE: Final = re.compile(r"[^\r\n]*(?:\r\n?|\n|\Z)")
NEWLINE: Final = re.compile(r"\r\n?|\n")
_ITEM: Final = re.compile(
    r"[ \t]*(?:[-*+•‣◦–—][ \t]+|\(?(?:\d{1,3}|[A-Za-z])[.)](?=[ \t])[ \t]*|\d{1,3}[.)](?=[^\W\d])|#{1,6}[ \t]+)"
)
"""What begins an item or heading at the beginning of a line, also where CommonMark does not see it: "1.Eat"."""
_PIPE: Final = re.compile(r"[ \t]*(?<!\\)\|[ \t]*")
MOST_FAILURES: Final = 200
"""Of reading JSON in one text: each may read to its end, and a text of brackets would take for ever."""
_JSON_AT: Final = re.compile(r"\{\s*[\"}]|\[\s*[\[{\"\]\d-]")
_DISPLAY: Final = re.compile(
    r"\$\$.{1,4000}?\$\$|\\\[.{1,4000}?\\\]|\\begin\{(?P<environment>[A-Za-z]+\*?)\}.{0,8000}?\\end\{(?P=environment)\}"
    r"|<!--.{0,4000}?-->|<(?P<element>pre|script|style|code|svg|math)\b[^>]{0,2000}>.{0,8000}?</(?P=element)>",
    re.DOTALL,
)
_FENCE: Final = re.compile(r"^[ \t>]*(?:`{3,}|~{3,})", re.MULTILINE)
_PLAIN: Final = re.compile(
    r"""
    (?:
      (?:
        (?: (?:\d{1,3}[.)] | [-*+]) [ ]{1,4} )?                    # the mark of an item
        (?: ["'“‘«¿¡(]{0,2} [^\W\d_] (?![.)]) | \d++ (?![.)]) )    # a word, or a number that is no mark
        [^\r\n]*+
      | [ \t]*+
      )
      (?: \n | \Z )
    )*+ \Z
    """,
    re.VERBOSE,
)
"""Each line is empty, or begins with a word: paragraphs and items, whatever they hold."""
WORD: Final = re.compile(r"[^\W\d_]")


def skeleton(text: str, own: Sequence[re.Pattern[str]] = (), open_: frozenset[str] = frozenset()) -> Skeleton:
    """The pieces of a text. ``own`` are further patterns to protect; ``open_`` says in which blocks words are
    translated (``inside.CHOICES``).
    """
    pieces: list[Piece] = []
    opaque, known = _opaque(text), patterns.patterns_in(text, own)
    held = [block for block in opaque if not _is_block(text, block)]
    for start, end, kind in _filled(text, _blocks(text, opaque)):
        if kind is Kind.PROSE:
            pieces.extend(_unit(text, start, end, known, held))
            continue
        at = start
        for first, last, is_quoted in inside.words_in(text, start, end, kind, open_) if open_ else ():
            pieces.append(Piece((Span(at, first, kind),), is_unit=False))
            stay = [*(inside.ESCAPES if is_quoted else ()), *known]
            pieces.extend(piece._replace(is_quoted=is_quoted) for piece in _unit(text, first, last, stay))
            at = last
        if at < end:
            pieces.append(Piece((Span(at, end, kind),), is_unit=False))
    return Skeleton(text, tuple(pieces))


def signature(skeletons: Iterable[Skeleton]) -> str:
    """A digest of what must survive of some texts, in their order: blocks, layout, protected spans."""
    hashed = hashlib.blake2b(digest_size=16)
    for source in skeletons:
        for piece in source.pieces:
            held = [source.text_of(span) for span in piece.spans if span.kind is not Kind.PROSE]
            hashed.update(json.dumps([piece.is_unit, sorted(held) if piece.is_unit else held]).encode())
        hashed.update(b"\n")
    return hashed.hexdigest()


def shape_faults(
    source: Skeleton, text: str, own: Sequence[re.Pattern[str]] = (), open_: frozenset[str] = frozenset()
) -> list[str]:
    """In what a translation has another shape than its source, in words; empty where it has the same.

    The same shape: as many pieces in the same order, blocks and layout byte for byte, and in each unit each protected
    span as often.
    """
    target = skeleton(text, own, open_)
    if [piece.is_unit for piece in source.pieces] != [piece.is_unit for piece in target.pieces]:
        return [f"{len(source.units)} units became {len(target.units)}"]
    faults = []
    for piece, other in zip(source.pieces, target.pieces, strict=True):
        if not piece.is_unit:
            if source.text_of(piece) != target.text_of(other):
                faults.append(f"{piece.spans[0].kind} changed: {source.text_of(piece)[:40]!r}")
            continue
        if len(piece.spans) == 1:
            continue
        spans = Counter(source.text_of(span) for span in piece.spans if span.kind not in (Kind.PROSE, Kind.LAYOUT))
        written = target.text_of(other)
        faults += [f"lost: {span[:40]!r}" for span, count in spans.items() if written.count(span) < count]
    return faults


def _filled(text: str, blocks: Sequence[Range]) -> Iterator[Range]:
    """The blocks with the layout between them; units lose the spaces around them."""
    at = 0
    for start, end, kind in blocks:
        if kind is Kind.PROSE:
            if not WORD.search(text, start, end):
                continue
            if text[start].isspace() or text[end - 1].isspace():
                inner = text[start:end]
                start, end = start + len(inner) - len(inner.lstrip()), end - len(inner) + len(inner.rstrip())
        if start > at:
            yield at, start, Kind.LAYOUT
        yield start, end, kind
        at = end
    if at < len(text):
        yield at, len(text), Kind.LAYOUT


def _unit(text: str, start: int, end: int, known: Sequence[Pattern], inside: Sequence[Range] = ()) -> Iterator[Piece]:
    """A unit with its protected spans; blocks where it has no prose beside them."""
    if not known and not inside and WORD.search(text, start, end):
        yield Piece((Span(start, end, Kind.PROSE),), is_unit=True)
        return
    spans, at = [], start
    held = [block for block in inside if start <= block[0] and block[1] <= end]
    for a, b, kind in patterns.matches(text, start, end, known, held):
        if a > at:
            spans.append(Span(at, a, Kind.PROSE))
        spans.append(Span(a, b, kind))
        at = b
    if at < end:
        spans.append(Span(at, end, Kind.PROSE))
    is_unit = any(span.kind is Kind.PROSE and WORD.search(text, span.start, span.end) for span in spans)
    if is_unit:
        yield Piece(tuple(spans), is_unit=True)
    else:
        yield from (
            Piece((Span(span.start, span.end, Kind.LAYOUT if span.kind is Kind.PROSE else span.kind),), is_unit=False)
            for span in spans
        )


@cache
def parser() -> MarkdownIt:
    """Finds blocks alone, those of CommonMark and GitHub's tables; the text inside of them is left as it is."""
    blocks = MarkdownIt("commonmark").enable("table")
    blocks.core.ruler.enableOnly(["normalize", "block"])
    return blocks


def _is_block(text: str, block: Range) -> bool:
    """Whether it has its lines for itself."""
    before = text[max(text.rfind("\n", 0, block[0]), text.rfind("\r", 0, block[0])) + 1 : block[0]]
    after = _LINE.match(text, block[1])
    return not before.strip(" \t>") and (after is None or not after[0].strip())


def _blocks(text: str, opaque: Sequence[Range]) -> list[Range]:
    """Blocks that stay, and units, in their order; what lies between them is layout."""
    alone = [block for block in opaque if _is_block(text, block)]
    if _PLAIN.match(text):
        units = list(_plain(text))
        return _without(units, alone) if alone else units
    masked = _masked(text, opaque)
    lines = [match.span() for match in _LINE.finditer(text)]
    blocks: list[Range] = []
    table_end = 0
    for token in parser().parse(masked):
        if token.map is None:
            continue
        first, last = token.map
        if first < table_end:  # a cell: the table has them
            continue
        if token.type in ("fence", "code_block"):
            blocks.append(
                (lines[first][0], _end_of(text, lines[last - 1]), Kind.FENCE if token.type == "fence" else Kind.CODE)
            )
        elif token.type == "html_block":
            blocks.append((lines[first][0], _end_of(text, lines[last - 1]), Kind.PROSE))
        elif token.type == "table_open":
            blocks.extend(_cells(text, lines[first:last]))
            table_end = last
        elif token.type == "inline":
            blocks.extend(_paragraph(text, masked, token, lines))
    return _without(blocks, alone)


def _end_of(text: str, line: tuple[int, int]) -> int:
    return line[0] + len(text[line[0] : line[1]].rstrip("\r\n"))


def _plain(text: str) -> Iterator[Range]:
    """The units of a text of ``_PLAIN`` lines, as ``parser`` and ``_paragraph`` find them, and much sooner."""
    start = end = -1
    at = 0
    for line in text.split("\n"):
        content = line.rstrip()
        item = None if content[:1].isalpha() else _ITEM.match(content)
        if start >= 0 and (item is not None or not content):
            yield start, end, Kind.PROSE
            start = -1
        if content:
            start = start if start >= 0 else at + (item.end() if item is not None else 0)
            end = at + len(content)
        at += len(line) + 1
    if start >= 0:
        yield start, end, Kind.PROSE


def _paragraph(text: str, masked: str, token: Token, lines: Sequence[tuple[int, int]]) -> Iterator[Range]:
    """The units of a paragraph or heading: one, or one for each line that looks like an item."""
    assert token.map is not None
    start = end = -1
    for content, (begin, stop) in zip(token.content.split("\n"), lines[token.map[0] : token.map[1]], strict=False):
        content = content.strip()
        place = masked.rfind(content, begin, stop)
        item = _ITEM.match(text, place, place + len(content))
        if item is not None and start >= 0:
            yield start, end, Kind.PROSE
            start = -1
        if start < 0:
            start = item.end() if item is not None else place
        end = place + len(content)
    if start >= 0:
        yield start, end, Kind.PROSE


def _cells(text: str, lines: Sequence[tuple[int, int]]) -> Iterator[Range]:
    for number, line in enumerate(lines):
        if number == 1:  # the row of dashes
            continue
        at, end = line[0], _end_of(text, line)
        for pipe in [*_PIPE.finditer(text, line[0], end), None]:
            stop = pipe.start() if pipe else end
            if at < stop:
                yield at, stop, Kind.PROSE
            at = pipe.end() if pipe else end


def _opaque(text: str) -> list[Range]:
    """What is to be taken out before Markdown is looked for: JSON, formulas of several lines, programs."""
    taken: list[Range] = []
    if "{" in text or "[" in text:
        taken.extend((start, end, Kind.JSON) for start, end in _json(text))
    if "$$" in text or "\\" in text or "<" in text:
        for match in _DISPLAY.finditer(text):
            if not _FENCE.search(match[0], 1):
                kind = Kind.TAG if match[0].startswith("<!--") else Kind.CODE if match["element"] else Kind.MATH
                taken.append((*match.span(), kind))
    if "\n" in text:
        fences = _FENCE.search(text)
        if fences is None:
            taken.extend((start, end, Kind.CODE) for start, end in patterns.code_runs(text))
    return _outermost(taken) if taken else taken


def _json(text: str) -> Iterator[tuple[int, int]]:
    """Objects and lists of JSON, the outermost."""
    decoder, end, failures = json.JSONDecoder(), 0, 0
    for match in _JSON_AT.finditer(text):
        if match.start() >= end and failures < MOST_FAILURES:
            try:
                _, end = decoder.raw_decode(text, match.start())
            except (ValueError, RecursionError):
                failures += 1
                continue
            yield match.start(), end


def _masked(text: str, opaque: Sequence[Range]) -> str:
    """The text with what is opaque as words of x, so that every line and place stays what it was."""
    parts, at = [], 0
    for start, end, _ in opaque:
        parts += [text[at:start], re.sub(r"[^\s]|(?<=\S)[ \t]", "x", text[start:end])]
        at = end
    return "".join([*parts, text[at:]]).replace("\0", "x")  # which markdown-it would replace


def _without(blocks: Sequence[Range], opaque: Sequence[Range]) -> list[Range]:
    """Units without what is opaque in them; what is opaque is a block of its own. Nothing overlaps in the result."""
    fixed = _outermost([*opaque, *(block for block in blocks if block[2] is not Kind.PROSE)])
    units: list[Range] = []
    for start, end, kind in sorted(block for block in blocks if block[2] is Kind.PROSE):
        for hole_start, hole_end, _ in fixed:
            if start < hole_end and hole_start < end:
                if start < hole_start:
                    units.append((start, hole_start, kind))
                start = hole_end
        if start < end:
            units.append((start, end, kind))
    return sorted([*fixed, *units])


def _outermost(ranges: Sequence[Range]) -> list[Range]:
    """Ranges in their order, without those that begin in another."""
    result: list[Range] = []
    for block in sorted(ranges, key=lambda block: (block[0], -block[1])):
        if not result or block[0] >= result[-1][1]:
            result.append(block)
    return result
