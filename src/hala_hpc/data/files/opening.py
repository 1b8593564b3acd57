"""Files as bytes of UTF-8, however they are compressed and encoded. Compression is seen by the first bytes."""

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import pyarrow as pa

from hala_hpc.config.errors import HalaError

BOM: Final = codecs.BOM_UTF8
"""What some editors put before UTF-8; no part of the text."""
COMPRESSED: Final = (".gz", ".bz2", ".xz", ".zst", ".zstd", ".lz4")
"""Endings that stand behind that of the format."""
UNREADABLE: Final = (EOFError, MemoryError, zlib.error, lzma.LZMAError, OSError, pa.ArrowException, UnicodeError)
"""What a damaged file raises while it is read. An OSError with a number is the disk's; see ``reason``."""
_MAGIC: Final = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bz2",
    b"\xfd7zXZ\x00": "xz",
    b"(\xb5/\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}
_MARKS: Final = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_CHUNK = 1 << 20


def compression_of(path: Path) -> str | None:
    """The codec of a file, None where it is not compressed."""
    with path.open("rb") as file:
        opening = file.read(6)
    return next((codec for magic, codec in _MAGIC.items() if opening.startswith(magic)), None)


def open_bytes(path: Path) -> BinaryIO:
    """A file's bytes, decompressed while they are read."""
    match compression_of(path):
        case "gzip":
            return cast(BinaryIO, gzip.open(path))
        case "bz2":
            return cast(BinaryIO, bz2.open(path))
        case "xz":
            return cast(BinaryIO, lzma.open(path))
        case None:
            return path.open("rb")
        case codec:
            stream: Any = pa.input_stream(str(path), compression=cast(Any, codec))
            return cast(BinaryIO, io.BufferedReader(stream))


def first_bytes(path: Path, count: int) -> bytes:
    """The first decompressed bytes of a file; what is damaged is told by whoever reads it."""
    try:
        with open_bytes(path) as file:
            return file.read(count)
    except UNREADABLE as error:
        reason(error)
        return b""


def encoding_of(opening: bytes, asked: str | None) -> str | None:
    """The encoding of a file with these first bytes, None for UTF-8: what is asked for, else what a mark says.

    Raises HalaError for an encoding that Python does not know.
    """
    if asked is None:
        return next((name for mark, name in _MARKS.items() if opening.startswith(mark)), None)
    try:
        # str.encode alone refuses codecs that are none of text, such as base64
        "".encode(asked)
        name = codecs.lookup(asked).name
    except (LookupError, ValueError) as error:
        raise HalaError(f"data.encoding: no encoding {asked!r}", "for example utf-16, windows-1252, big5") from error
    return None if name in ("utf-8", "utf-8-sig", "ascii") else name


def open_utf8(path: Path, asked: str | None) -> BinaryIO:
    """A file's text as UTF-8 without a mark at its beginning. Bytes that are no UTF-8 stay what they are."""
    encoding = encoding_of(first_bytes(path, 4), asked)
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
    """Bytes of UTF-8 from bytes of another encoding. Raises UnicodeDecodeError where they are none of it."""

    def __init__(self, source: BinaryIO, encoding: str) -> None:
        self._source = source
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            raw = self._source.read(_CHUNK)
            self._left = self._decoder.decode(raw, final=not raw).encode()
            if not raw:
                break
        count = min(len(buffer), len(self._left))
        buffer[:count], self._left = self._left[:count], self._left[count:]
        return count

    def close(self) -> None:
        self._source.close()
        super().close()
