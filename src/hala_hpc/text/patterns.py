"""What a translation may not touch inside of a sentence, and code and formulas that no Markdown marks."""

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import Final


class Kind(StrEnum):
    """What a span is. All but prose stays byte for byte; layout is what lies between units."""

    PROSE = "prose"
    LAYOUT = "layout"
    FENCE = "fence"
    CODE = "code"
    INLINE_CODE = "inline_code"
    MATH = "math"
    JSON = "json"
    URL = "url"
    EMAIL = "email"
    PATH = "path"
    PLACEHOLDER = "placeholder"
    TAG = "tag"
    OWN = "own"


@dataclass(frozen=True)
class Pattern:
    """What a kind looks like. ``triggers``: a text without any of them has none, which is quicker to see."""

    kind: Kind
    triggers: tuple[str, ...]
    regex: re.Pattern[str]

    @cached_property
    def signs(self) -> frozenset[str]:
        """Characters, of each trigger one."""
        return frozenset(next(sign for sign in trigger if not sign.isalnum()) for trigger in self.triggers)

    @cached_property
    def trigger(self) -> re.Pattern[str]:
        """Finds any of the triggers."""
        return re.compile("|".join(map(re.escape, self.triggers)))


_ATTRIBUTE = r"""\s+[\w:@.-]+\s*=\s*(?:"[^"<>]*"|'[^'<>]*'|[^\s"'=<>`]+)"""
_BARE = r"\s+(?:disabled|checked|required|selected|readonly|multiple|async|defer|controls|autoplay|hidden|novalidate)"
_EXTENSIONS = (
    "py|js|ts|jsx|tsx|java|cpp|hpp|cs|rb|go|rs|php|sh|sql|html|htm|css|json|jsonl|xml|yaml|yml|toml|ini|cfg|csv|tsv|txt|md|"
    "pdf|docx?|xlsx?|pptx?|png|jpe?g|gif|svg|mp[34]|wav|zip|gz|tar|parquet|ipynb|exe|dll|log"
)
_BEGINNINGS = tuple(sorted({f".{extension[:2]}" for extension in _EXTENSIONS.split("|")}))

PATTERNS: Final = tuple(
    Pattern(kind, triggers, re.compile(regex, re.VERBOSE | re.DOTALL))
    for kind, triggers, regex in (
        (Kind.INLINE_CODE, ("`",), r"(?<!`)(`+)(?!`)(?:(?!\n[ \t]*\n).){1,1000}?(?<!`)\1(?!`)"),
        (Kind.MATH, ("$$",), r"\$\$ .{1,4000}? \$\$"),
        (Kind.MATH, ("\\[", "\\("), r"\\\[ .{1,4000}? \\\] | \\\( .{1,2000}? \\\)"),
        (Kind.MATH, ("\\begin",), r"\\begin\{([A-Za-z]+\*?)\} .{0,8000}? \\end\{\1\}"),
        # Pandoc's rule, by which "$5 and $10" is money: no space inside of either $, no digit after the second.
        (Kind.MATH, ("$",), r"(?<![\\$\w]) \$ (?![\s$]) (?:[^$\\\n] | \\.)+? (?<!\s) \$ (?![\d$])"),
        (Kind.TAG, ("<!--",), r"<!-- .*? -->"),
        (Kind.PLACEHOLDER, ("<<", "<|"), r"<<[^<>\n]*>> | <\|[^|<>\s]{1,80}\|>"),
        (
            Kind.URL,
            ("://", "www."),
            r"<?\b (?: (?:https?|ftp|file|s3|gs|hf)://[^\s<>\"'`»”]+ | www\.[^\s<>\"'`»”]+) >?",
        ),
        (Kind.EMAIL, ("@",), r"(?:mailto:)? [\w.+-]+ @ [\w-]+(?:\.[\w-]+)+"),
        (Kind.TAG, ("<",), rf"</?[A-Za-z][\w:.-]* (?:{_ATTRIBUTE}|{_BARE})* \s*/?> | <![A-Za-z][^<>]*> | <\?[^<>]*\?>"),
        (Kind.TAG, ("&",), r"&(?:\#\d{1,7} | \#[xX][\da-fA-F]{1,6} | [A-Za-z][A-Za-z\d]{1,31});"),
        (Kind.PLACEHOLDER, ("{", "["), r"\{\{[^{}\n]{1,80}\}\} | \$?\{[\w.\-]*\} | \[\[[^\[\]\n]{1,80}\]\]"),
        (Kind.PLACEHOLDER, ("%",), r"(?<![\d%\w]) % (?: \(\w+\) [sdifr] | [-+\#0]*\d*(?:\.\d+)? [sdifgxXcr] ) (?!\w)"),
        (Kind.URL, ("](",), r"(?<=\]) \( [^()\s]* (?: \([^()\s]*\) [^()\s]* )* \)"),
        (Kind.PATH, ("\\",), r"(?<!\w) [A-Za-z]:\\ [^\s\"'<>|*?,;]*"),
        (Kind.PATH, ("/",), r"(?<![\w/.:)\]]) (?:~|\.\.?)? (?:/[\w.@+-]+){2,}/? | (?<![\w/.]) (?:~|\.\.?)/[\w.@+/-]+"),
        (
            Kind.PATH,
            _BEGINNINGS,
            rf"(?<![\w/.@-]) (?:[\w-]+/)* [\w-]+ (?:\.[\w-]+)*? \.(?:{_EXTENSIONS}) (?![\w.-]*\w)",
        ),
    )
)
"""In this order: what an earlier one has taken, a later one cannot."""
SIGNS: Final = frozenset[str]().union(*(pattern.signs for pattern in PATTERNS))
_MONEY: Final = re.compile(r"\$\s?\d[\d.,]*\s*(?:[A-Za-z]+[ ,.][^\\^_={}]*|\(?)\$$")
_ENDS: Final = ".,;:!?'\"*_،؛؟。"


Range = tuple[int, int, Kind]
"""Characters of a text, from and to, and what they are."""


def patterns_in(text: str, own: Sequence[re.Pattern[str]] = ()) -> list[Pattern]:
    """The patterns that a text may match, one's own first."""
    may_match = _with_signs(frozenset([sign for sign in SIGNS if sign in text]))
    held = [pattern for pattern in may_match if pattern.trigger.search(text)]
    return [*(Pattern(Kind.OWN, (), regex) for regex in own), *held]


@lru_cache(maxsize=4096)
def _with_signs(signs: frozenset[str]) -> tuple[Pattern, ...]:
    """The patterns for which a text must have one of these characters."""
    return tuple(pattern for pattern in PATTERNS if not signs.isdisjoint(pattern.signs))


def matches(text: str, start: int, end: int, patterns: Iterable[Pattern], taken: Sequence[Range] = ()) -> list[Range]:
    """What is to be protected between two places of a text, in order; nothing overlaps, nor touches what is ``taken``.

    The result has what is taken, too.
    """
    ranges = sorted(taken)
    for pattern in patterns:
        _take(ranges, pattern.kind, pattern.regex, text, start, end)
    return ranges


def _take(ranges: list[Range], kind: Kind, regex: re.Pattern[str], text: str, start: int, end: int) -> None:
    """Put what a pattern matches among ``ranges``, which are in order, where nothing is taken."""
    for match in regex.finditer(text, start, end):
        first, last = match.span()
        if kind is Kind.URL:
            last = _url_end(text, first, last)
        if kind is Kind.MATH and _MONEY.match(text, first, last):
            continue
        at = bisect_left(ranges, first, key=lambda other: other[1] - 1)  # the first that ends behind it
        if first < last and (at == len(ranges) or last <= ranges[at][0]):
            ranges.insert(at, (first, last, kind))


def _url_end(text: str, start: int, end: int) -> int:
    """Where an address ends, for a sentence's own point or bracket after it belongs to the sentence."""
    while end > start:
        last = text[end - 1]
        address = text[start:end]
        closes = (last == ")" and address.count("(") < address.count(")")) or (
            last == "]" and address.count("[") < address.count("]")
        )
        if last not in _ENDS and not closes:
            break
        end -= 1
    return end


LONGEST_LINE: Final = 1_000
"""Characters; a longer line is not looked at, for no program has it."""
_STRONG: Final = re.compile(
    r"""
    \s*(?:
      (?: def\s+\w+ | class\s+\w+\s*[:({<] | class\s+\w+$ | (?:async\s+)?function\b.*\( | fn\s+\w+ | func\s+\w+\s*\( ).*
    | (?: from\s+[\w.]+\s+import\b | \#\s*include\s*[<"] | using\s+(?:namespace\s+)?[\w.]+\s*; ).*
    | import\s+[\w.{}*,\s]+(?: ; | \bfrom\b.* | \bas\s+\w+ | \([\w,\s]*\) )?$
    | (?: package\s+[\w.]+; | <\?php | \#! ).*
    | (?: if|elif|while|for|foreach|switch|else\s+if|except|catch|with|unless )\b .*
      (?: :\s*(?:\#.*)? | \{\s* | \)\s*\{?\s*(?://.*)? | ;\s*(?:then|do) | \]\s*(?:then)? | \sdo(?:\s*\|\w+\|)? )$
    | (?: else|try|finally|do|then )\s*[:{]?\s*$ | (?: fi|done|end|esac|endif )\s*;?$
    | return\b [^.!?]*$ | (?: break|continue|pass )\s*;?$
    | (?: const|let|var|auto|int|float|double|char|bool|string|String|long|void|unsigned )(?:\[\])?[*&]?
      \s+[\w<>\[\],*&\s]+[=(;{].*
    | (?: public|private|protected|static|final|abstract )\s+[\w<>\[\],*&\s]+[=({;:].*
    | (?: public|private|protected ):$
    | [\w.\[\]'"()*&>$-]+\s*(?: [-+*/%|&^] | << | >> | // | \*\* )? = \s*[^=\s].*
    | (?:await\s+)?[\w.$]+(?:::\w+)*\([^?]*\)[;,]?\s*(?:(?://|\#).*)?$
    | (?: print|console\.log|System\.out\.print|printf|echo|puts|cout|std:: ).*[;)"'}]\s*$
    | (?: SELECT|INSERT\s+INTO|UPDATE|DELETE\s+FROM|CREATE\s+TABLE|ALTER\s+TABLE|DROP\s+TABLE )\b.*
    | (?: FROM|WHERE|GROUP\s+BY|ORDER\s+BY|(?:LEFT|RIGHT|INNER)?\s*JOIN|HAVING|LIMIT|VALUES )\b.*
    | [}\])]+[;,]?\s*(?: else.*\{ | catch.*\{ | while.*; | )$
    | (?![-*+•\d]) .* [(){}\[\]=<>] .* [;{]\s*(?://.*)?$
    | .*\)\s*(?: ; | \{ | =>\s*\{? )\s*$
    | @\w+(?:\(.*\))?$
    | [.\#]?[\w-]+(?:[\s,>+.\#:][\w-]+)*\s*\{\s*$
    | [a-z-]+\s*:\s*[^\s;][^;]*;\s*$
    | \w+\s*::\s*\S.*
    | (?: \$\s* )? (?: sudo|pip3?|npm|git|docker|curl|wget|grep|awk|sed|chmod|mkdir|tar|ssh|scp|cd|ls|cat|rm|cp|mv )
      \s+(?:\S+\s+)*[-~./$][\w/.$-].*
    )
    """,
    re.VERBOSE,
)
"""A line that only a program has."""
_WEAK: Final = re.compile(r"^\s*(?://|\#|/\*|\*|--\s|\"\"\"|''').*|^(?:\s{2,}|\t).*|^\s*$")
"""A line that may stand in a program: a comment, one set in, an empty one."""
_COMMENT: Final = re.compile(r"\s*(?://|/\*|\*/|#\s|--\s)")
_LINE: Final = re.compile(r"[^\r\n]*(?:\r\n?|\n|\Z)")


def code_runs(text: str) -> Iterator[tuple[int, int]]:
    """Lines of programs that stand in a text without a fence: from their first character to their last.

    Two lines that only a program has make a run, with comments, set in and empty lines between them; one does where it
    is all that the text has. Comments right before it and lines set in right after it belong to it.
    """
    start = end = strong = before = 0
    lines = [(match.start(), match[0].rstrip()) for match in _LINE.finditer(text)]
    for place, line in lines:
        if len(line) <= LONGEST_LINE and _STRONG.match(line):
            if not strong:
                start = before if before >= 0 else place
            end, strong = place + len(line), strong + 1
            continue
        is_weak = _WEAK.match(line) is not None
        if strong and is_weak:
            end = place + len(line) if line.startswith((" ", "\t")) and line.strip() else end
            continue
        if strong > 1:
            yield start, end
        strong = 0
        is_comment = _COMMENT.match(line) is not None
        before = (before if before >= 0 else place) if is_comment else -1
    if strong > 1 or (strong == 1 and not text[:start].strip() and not text[end:].strip()):
        yield start, end
