"""Parquet files that show whether a single byte of them has changed since they were written.

The footer of a sealed file holds the digest of the whole file, computed with its own hexadecimal digits as zeros.
Whoever reads one checks the bytes that it then parses, so no flip and no torn write comes between the two. Page
checksums are in it as well, for other readers; they cover neither the footer nor the headers of pages.
"""

import hashlib
import os
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

KEY: Final = "hala_seal"
_MARK: Final = b"blake2b-of-this-file:"
_DIGITS: Final = 32
_CHUNK: Final = 8 * 1024 * 1024


class Damaged(Exception):
    """A file that is not what was written, with the reason in words."""


def open_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A writer whose file ``seal`` can seal once it is closed."""
    writer = pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True)
    writer.add_key_value_metadata({KEY: (_MARK + b"0" * _DIGITS).decode()})
    return writer


def seal(path: Path) -> None:
    """Put the digest of a closed file in its place. Like the rest of the file, it is durable once that is fsynced."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        footer = int.from_bytes(file.read(4), "little") + 8
        file.seek(size - footer)
        place = size - footer + file.read().rindex(_MARK) + len(_MARK)
        hashed = _hash()
        file.seek(0)
        while chunk := file.read(_CHUNK):
            hashed.update(chunk)  # the digits are zeros still
        file.seek(place)
        file.write(hashed.hexdigest().encode())


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table as one sealed file."""
    with open_writer(path, table.schema) as writer:
        writer.write_table(table)
    seal(path)


def read(path: Path) -> tuple[pa.Table, bool]:
    """A table, and whether it is sealed: files of runs that were planned before there were seals are not.

    Raises Damaged where a byte of a sealed file has changed, or no table can be read from the file.
    """
    try:
        data = path.read_bytes()
    except IsADirectoryError as error:
        raise Damaged("a folder stands in its place") from error
    except OSError as error:
        raise Damaged(f"cannot be read: {error.strerror}") from error
    if not data:
        raise Damaged("is empty")
    place = data.rfind(_MARK) + len(_MARK)
    sealed = place >= len(_MARK)
    if sealed and _digest(data, place) != data[place : place + _DIGITS]:
        raise Damaged("is damaged: its bytes are not those that were written (its seal is broken)")
    try:
        # Not pq.read_table: it imports pyarrow.dataset and with it pandas, which takes longer than all else here. No
        # threads: Arrow's, where they still start while a short command ends, abort it.
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Damaged(f"not readable: {' '.join(str(error).split())}") from error
    metadata = {key: value for key, value in (table.schema.metadata or {}).items() if key != KEY.encode()}
    return table.replace_schema_metadata(metadata), sealed


def _digest(data: bytes, place: int) -> bytes:
    hashed = _hash()
    view = memoryview(data)
    hashed.update(view[:place])
    hashed.update(b"0" * _DIGITS)
    hashed.update(view[place + _DIGITS :])
    return str(hashed.hexdigest()).encode()


def _hash() -> Any:
    return hashlib.blake2b(digest_size=_DIGITS // 2)
