"""Files as bytes of UTF-8, however they are compressed and encoded. The first bytes show the compression."""

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import pyarrow as pa

from hala_hpc.config.errors import HalaError

BOM: Final = codecs.BOM_UTF8
"""What some editors put before UTF-8; it does not belong to the text."""
COMPRESSED: Final = (".gz", ".bz2", ".xz", ".zst", ".zstd", ".lz4")
"""Endings that stand behind that of the format."""
UNREADABLE: Final = (EOFError, MemoryError, zlib.error, lzma.LZMAError, OSError, pa.ArrowException, UnicodeError)
"""What a damaged file raises while it is read. An OSError with a number is the disk's; see ``reason``."""
_OPENERS: Final[dict[bytes, Callable[[Path], Any]]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
    b"(\xb5/\xfd": lambda path: io.BufferedReader(cast(Any, pa.input_stream(str(path), compression="zstd"))),
    b"\x04\x22\x4d\x18": lambda path: io.BufferedReader(cast(Any, pa.input_stream(str(path), compression="lz4"))),
}
"""How to open a compressed file, by its first bytes."""
_MARKS: Final = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_CHUNK = 1 << 20


def open_bytes(path: Path) -> BinaryIO:
    """A file's bytes, decompressed while they are read."""
    decompressed = opener_of(path)
    return path.open("rb") if decompressed is None else cast(BinaryIO, decompressed(path))


def opener_of(path: Path) -> Callable[[Path], Any] | None:
    """How to open a file that begins as one of a codec that can be read; None for any other."""
    with path.open("rb") as file:
        start = file.read(6)
    return next((opener for magic, opener in _OPENERS.items() if start.startswith(magic)), None)


def first_bytes(path: Path, count: int) -> bytes:
    """The first decompressed bytes of a file, none of a damaged one: whoever reads it on will say so."""
    try:
        with open_bytes(path) as file:
            return file.read(count)
    except UNREADABLE as error:
        reason(error)
        return b""


def encoding_of(start: bytes, encoding: str | None) -> str | None:
    """The encoding of a file with these first bytes, None for UTF-8: the one given, else what a mark says.

    Raises HalaError for an encoding that Python does not know.
    """
    if encoding is None:
        return next((name for mark, name in _MARKS.items() if start.startswith(mark)), None)
    try:
        "".encode(encoding)  # only this refuses codecs that are not of text, such as base64
        name = codecs.lookup(encoding).name
    except (LookupError, ValueError) as error:
        raise HalaError(f"data.encoding: no encoding {encoding!r}", "for example utf-16, windows-1252, big5") from error
    return None if name in ("utf-8", "utf-8-sig", "ascii") else name


def open_utf8(path: Path, encoding: str | None) -> BinaryIO:
    """A file's text as UTF-8 without a mark at its beginning. Bytes that are not UTF-8 stay what they are."""
    encoding = encoding_of(first_bytes(path, 4), encoding)
    source: Any = open_bytes(path)
    if encoding is not None:
        source = io.BufferedReader(_Recoded(source, encoding), _CHUNK)
    if source.peek(len(BOM)).startswith(BOM):
        source.read(len(BOM))
    return cast(BinaryIO, source)


def reason(error: BaseException) -> str:
    """What an ``UNREADABLE`` error says, on one line; the disk's own errors are raised again."""
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        raise error
    return (str(error).splitlines() or [type(error).__name__])[0]


class _Recoded(io.RawIOBase):
    """Bytes of UTF-8 from bytes of another encoding. Raises UnicodeDecodeError where they are not of that encoding."""

    def __init__(self, source: BinaryIO, encoding: str) -> None:
        self._text = io.TextIOWrapper(source, encoding, newline="\n")  # changes no line's end
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._left = self._left or self._text.read(_CHUNK).encode()
        count = min(len(buffer), len(self._left))
        buffer[:count], self._left = self._left[:count], self._left[count:]
        return count

    def close(self) -> None:
        self._text.close()
        super().close()
