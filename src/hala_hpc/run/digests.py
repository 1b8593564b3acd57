"""Folders that show whether a byte of their files has changed since they were published.

A folder holds a list of its files, with sizes and digests, and the list holds its own. It does for files whose format
is somebody else's what ``seal`` does for our Parquet files. Cards are left out, for people edit them.
"""

import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypedDict, TypeVar

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
    digests = _in_threads(lambda name: known.get(name) or digest_of(folder / name), names)
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
    return list(filter(None, _in_threads(lambda item: changed(folder / item[0], item[1]), listed.items())))


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


def _in_threads(function: Callable[[Item], str], items: Collection[Item]) -> list[str]:
    with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as threads:
        return list(threads.map(function, items))


def _digest(listed: Mapping[str, FileFacts]) -> str:
    return hashlib.blake2b(json.dumps(listed, sort_keys=True).encode(), digest_size=16).hexdigest()
