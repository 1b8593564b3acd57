"""Digests: of a folder's files, in a list beside them, and of a Parquet file, in its own footer (its seal)."""

import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypedDict, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

NAME: Final = ".digests.json"
CARD: Final = "README.md"
MOST_THREADS: Final = 8
Item = TypeVar("Item")
PIECE: Final = 1 << 22
"""Bytes read at a time."""


class FileFacts(TypedDict):
    """What is known of a file as it was written."""

    bytes: int
    blake2b: str


def write(folder: Path, known: Mapping[str, str] | None = None) -> None:
    """List all files of ``folder``. ``known`` digests, by name, are taken as they are and not read again."""
    known = known or {}
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path not in (folder / NAME, folder / CARD))
    names = [path.relative_to(folder).as_posix() for path in paths]
    digests = in_threads(lambda name: known.get(name) or digest_of(folder / name), names)
    listed: dict[str, FileFacts] = {
        name: {"bytes": path.stat().st_size, "blake2b": digest}
        for name, path, digest in zip(names, paths, digests, strict=True)
    }
    (folder / NAME).write_text(json.dumps({"files": listed, "digest": _digest(listed)}, indent=1) + "\n", "utf-8")


def faults(folder: Path) -> list[str] | None:
    """Which files are not what was written, in plain words; None for a folder from before there were such lists."""
    try:
        content = json.loads((folder / NAME).read_text("utf-8"))
        listed: dict[str, FileFacts] = content["files"]
        if content["digest"] != _digest(listed):
            return [f"{NAME} is not what was written (its digest differs)"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{NAME} cannot be read: {type(error).__name__}: {error}"]
    return list(filter(None, in_threads(lambda item: changed(folder / item[0], item[1]), listed.items())))


def folders(path: Path) -> list[Path]:
    """``path``, or the folders in it, where they hold such lists and are not a run: what ``hala collect`` makes."""
    if (path / "manifest.parquet").exists() or not path.is_dir():
        return []
    return [folder for folder in [path, *sorted(path.iterdir())] if (folder / NAME).is_file()]


def changed(path: Path, facts: Mapping[str, Any]) -> str:
    """How a file differs from what was written of it (``bytes``, ``blake2b``), in plain words; '' where it does not."""
    try:
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            return f"{path.name} is missing"
        if size != facts["bytes"]:
            return f"{path.name} has {size} bytes, {facts['bytes']} were written"
        differs = f"{path.name} is not what was written (its digest differs)"
        return "" if digest_of(path) == facts["blake2b"] else differs
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"


def digest_of(path: Path, between: Callable[[], None] = lambda: None) -> str:
    """BLAKE2b of a file, 16 bytes, hex. ``between`` is called before each piece, so that a long read can be stopped."""
    hashed = hashlib.blake2b(digest_size=16)
    with path.open("rb", buffering=0) as file:
        while piece := file.read(PIECE):
            between()
            hashed.update(piece)
    return hashed.hexdigest()


def in_threads(function: Callable[[Item], str], items: Collection[Item]) -> list[str]:
    """What a function, such as ``digest_of``, gives for each item, in their order: several files are read at once."""
    with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as threads:
        return list(threads.map(function, items))


def _digest(listed: Mapping[str, FileFacts]) -> str:
    return hashlib.blake2b(json.dumps(listed, sort_keys=True).encode(), digest_size=16).hexdigest()


KEY: Final = "hala_seal"
_MARK: Final = b"blake2b-of-this-file:"
_DIGITS: Final = 32


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
        file.seek(size - footer + file.read().rindex(_MARK) + len(_MARK))
        file.write(digest_of(path).encode())  # the digits are zeros still


def seal_of(path: Path) -> str:
    """The digest in a sealed file, read from its footer alone; '' where it has none. Raises OSError."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size < 8:
            return ""
        file.seek(-8, os.SEEK_END)
        footer = min(int.from_bytes(file.read(4), "little") + 8, size)
        file.seek(-footer, os.SEEK_END)
        _, mark, rest = file.read().rpartition(_MARK)
    return rest[:_DIGITS].decode("ascii", "replace") if mark else ""


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table as one sealed file."""
    with open_writer(path, table.schema) as writer:
        writer.write_table(table)
    seal(path)


def read(path: Path, must_be_sealed: bool = False) -> tuple[pa.Table, bool]:
    """A table, and whether it is sealed: files of runs that were planned before there were seals are not.

    Raises Damaged where a byte of a sealed file has changed, its seal is gone, or no table can be read from the file.
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
    if sealed and _sealed_digest(data, place) != data[place : place + _DIGITS]:
        raise Damaged("is damaged: its bytes are not those that were written (its seal is broken)")
    try:
        # Not pq.read_table: it imports pyarrow.dataset and with it pandas, which takes longer than all else here. No
        # threads: Arrow's, where they still start while a short command ends, abort it.
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Damaged(f"not readable: {' '.join(str(error).split())}") from error
    if must_be_sealed and not sealed:
        raise Damaged("is damaged: its seal is gone")
    metadata = {key: value for key, value in (table.schema.metadata or {}).items() if key != KEY.encode()}
    return table.replace_schema_metadata(metadata), sealed


def _sealed_digest(data: bytes, place: int) -> bytes:
    view = memoryview(data)
    hashed = hashlib.blake2b(view[:place], digest_size=_DIGITS // 2)
    hashed.update(b"0" * _DIGITS)
    hashed.update(view[place + _DIGITS :])
    return hashed.hexdigest().encode()
