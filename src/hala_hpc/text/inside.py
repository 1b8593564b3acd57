"""Words inside of what otherwise stays whole: values of JSON, comments of programs."""

import re
from collections.abc import Iterator
from typing import Any, Final

from hala_hpc.text.patterns import Kind, Pattern

JSON: Final = "json"
COMMENTS: Final = "comments"
CHOICES: Final = (JSON, COMMENTS)
"""The values of ``task.segments.inside``."""
ESCAPES: Final = (Pattern(Kind.OWN, (), re.compile(r"\\(?:u[0-9a-fA-F]{4}|.)")),)
"""What stands for another character in a text of JSON."""
_STRING: Final = re.compile(r'"((?:[^"\\]|\\.)*)"(?P<is_key>\s*:)?', re.DOTALL)
_FEW_WORDS: Final = re.compile(r"[^\W\d_]+[,;:]?\s+(?:\S+\s+)*[^\W\d_]")
_INFO: Final = re.compile(r"[ \t>]*(?:`{3,}|~{3,})[ \t]*([\w+#.-]*)[^\n]*\n")
_COMMENT_LINE: Final = re.compile(
    r"[ \t]*(?:\#+!?|//[/!]*|/\*+!?|--+|;+|%+|<!--|\(\*|\*(?!/))?[ \t]*(?P<words>.*?)[ \t]*(?:\*+/|-->|\*\))?[ \t]*$",
    re.MULTILINE,
)
_WORD: Final = re.compile(r"[^\W\d_]{2}")


def words_in(text: str, start: int, end: int, kind: Kind, inside: frozenset[str]) -> Iterator[tuple[int, int, bool]]:
    """The places in a block, from and to, whose words are translated, and whether they are texts of JSON; in order.

    Of JSON those values that have at least two words, for others are more often identifiers.
    """
    info = _INFO.match(text, start, end) if kind is Kind.FENCE else None
    language = info[1].lower() if info else ""
    begin = info.end() if info else start
    if JSON in inside and (kind is Kind.JSON or language in ("json", "jsonc", "json5")):
        for match in _STRING.finditer(text, begin, end):
            if not match["is_key"] and _FEW_WORDS.search(match[1]):
                yield *match.span(1), True
    elif COMMENTS in inside and language:
        yield from ((*place, False) for place in _comments(text, begin, end, language))


def _comments(text: str, start: int, end: int, language: str) -> Iterator[tuple[int, int]]:
    """Each line of a comment, without what makes it a comment."""
    from pygments.lexers import get_lexer_by_name
    from pygments.token import Comment
    from pygments.util import ClassNotFound

    try:
        lexer: Any = get_lexer_by_name(language)
    except ClassNotFound:
        return
    for at, token, value in lexer.get_tokens_unprocessed(text[start:end]):
        if token not in Comment or token in Comment.Preproc or token in Comment.PreprocFile:
            continue
        if token in Comment.Hashbang:
            continue
        for line in re.finditer(r"[^\r\n]+", value):
            first = start + at + line.start()
            match = _COMMENT_LINE.match(text, first, first + len(line[0]))
            if match is not None and _WORD.search(match["words"]):
                yield match.span("words")
