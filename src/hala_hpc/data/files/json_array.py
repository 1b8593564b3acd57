"""The rows of a JSON array as bytes, one after the other: a broken row does not hide those after it.

Only brackets, strings and commas are looked at; what lies between them is parsed by ``readers.parse_row``.
"""

import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from hala_hpc.config.errors import HalaError

ROW_BYTES = 1 << 28
"""No row is larger (ours): where brackets do not close, the rest of the file would be one row, in memory."""
_CHUNK = 1 << 20
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{},:]', re.DOTALL)
_BRACKET = re.compile(rb'(?:[^"\[\]{}]++|"[^"\\]*+(?:\\.[^"\\]*+)*+")*+[\[\]{}]', re.DOTALL)
_TURN = {"role", "from", "content", "value"}
_Token = tuple[bytes, bytes]
"""What stands before a bracket, string, comma or colon, and that itself; at the end of the file it is empty."""


def rows(source: BinaryIO, path: Path, field: str | None) -> Iterator[bytes]:
    """The elements of the array at ``field`` (``a.b`` reaches in), or of the one that the file is.

    Raises HalaError where there is none, and where it does not end.
    """
    number = size = depth = 0
    tokens = _tokens(source, lambda: depth > 0)
    _find(tokens, path, field)
    pieces: list[bytes] = []
    for before, token in tokens:
        if depth == 0 and token in (b",", b"]"):
            row = b"".join([*pieces, before]).strip()
            if row or token == b"," or number:
                number += 1
                yield row
            if token == b"]":
                return _end(tokens, path, number, field)
            pieces, size = [], 0
            continue
        pieces += (before, token)
        size += len(before) + len(token)
        depth += (token in (b"[", b"{")) - (token in (b"]", b"}"))
        if depth < 0 or size > ROW_BYTES or not token:
            break
    raise _broken(path, number, "a bracket is missing" if depth < 0 or size > ROW_BYTES else "it ends in the middle")


def lists_in(opening: bytes) -> list[str]:
    """Where in a JSON object that is the whole of a file lie lists of objects that may be its rows (none are turns).

    ``opening`` are the first bytes of the file. Nothing is found where another object follows: those are JSON lines.
    """
    stack: list[str | None] = []
    found: dict[str, set[str]] = {}
    inside = ""
    last = b""
    for before, token in _tokens(io.BytesIO(opening)):
        if not stack and last and (token or before.strip()):
            return []
        if token == b":" and stack:
            stack[-1] = _text(last)
            if inside and len(stack) == inside.count(".") + 3:
                found[inside].add(str(stack[-1]))
        if token == b"{" and last == b"[" and None not in stack[:-1] and len(stack) > 1:
            inside = ".".join(map(str, stack[:-1]))
            found.setdefault(inside, set())
        _follow(stack, token)
        last = token or last
    return [name for name, keys in found.items() if not keys & _TURN]


def _find(tokens: Iterator[_Token], path: Path, field: str | None) -> None:
    """Go on to the beginning of the array."""
    wanted = field.split(".") if field else []
    stack: list[str | None] = []
    lists: list[str] = []
    last = b""
    for before, token in tokens:
        if token == b"[" and stack == wanted:
            return
        if not wanted:
            first = (before.strip() + token)[:1].decode(errors="replace")
            if not first:
                return
            raise HalaError(
                f"{path}: not a JSON array, it begins with {first!r}",
                "an array of objects, or an object a line with data.format=jsonl, or data.field=WHERE THE ROWS LIE",
            )
        if token == b"[" and None not in stack and stack:
            lists.append(".".join(map(str, stack)))
        if token == b":" and stack:
            stack[-1] = _text(last)
        _follow(stack, token)
        last = token
    raise HalaError(f"{path}: no list at data.field={field}", f"lists: {', '.join(lists[:10]) or 'none'}")


def _follow(stack: list[str | None], token: bytes) -> None:
    """Keys of the objects that are open; None for a list."""
    if token in (b"{", b"["):
        stack.append("" if token == b"{" else None)
    elif token in (b"}", b"]") and stack:
        stack.pop()


def _end(tokens: Iterator[_Token], path: Path, number: int, field: str | None) -> None:
    if not field and (rest := next(((before.strip() + token) for before, token in tokens), b"")):
        raise _broken(path, number, f"{rest[:1].decode(errors='replace')!r} follows its end")


def _broken(path: Path, number: int, why: str) -> HalaError:
    return HalaError(f"{path}: not a valid JSON array after row {number}: {why}", "is it whole?")


def _text(token: bytes) -> str:
    try:
        return str(json.loads(token))
    except ValueError:
        return token.decode(errors="replace")


def _tokens(source: Any, only_brackets: Callable[[], bool] = lambda: False) -> Iterator[_Token]:
    """All tokens; while ``only_brackets`` says so, those alone: most of a row is passed over in one step."""
    buffer, at = b"", 0
    while True:
        only = only_brackets()
        match = _BRACKET.match(buffer, at) if only else _TOKEN.search(buffer, at)
        if match is not None and match[0] != b'"':
            start = match.end() - 1 if only else match.start()
            yield buffer[at:start], buffer[start : match.end()]
            at = match.end()
            continue
        left = buffer[at:]
        more = source.read1(max(_CHUNK, 2 * len(left))) if len(left) <= ROW_BYTES else b""
        if not more:
            yield left, b""
            return
        buffer, at = left + more, 0
