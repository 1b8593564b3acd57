"""Folders that tell whether a byte of their files has changed since they were published.

A folder holds a list of its files, with sizes and digests, and the list holds its own. It is what ``seal`` is for
Parquet files of ours, for files whose format is somebody else's. Cards are left out, for people edit them.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

NAME: Final = ".digests.json"
CARD: Final = "README.md"
MOST_THREADS: Final = 8
PIECE: Final = 1 << 22
"""Bytes read at a time."""


def write(folder: Path, known: Mapping[str, str] | None = None) -> None:
    """List all files of ``folder``. ``known`` digests, by name, are taken as they are and not read again."""
    known = known or {}
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path not in (folder / NAME, folder / CARD))
    names = [path.relative_to(folder).as_posix() for path in paths]
    with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as threads:
        digests = list(threads.map(lambda name: known.get(name) or digest_of(folder / name), names))
    listed = {
        name: {"bytes": path.stat().st_size, "blake2b": digest}
        for name, path, digest in zip(names, paths, digests, strict=True)
    }
    (folder / NAME).write_text(json.dumps({"files": listed, "digest": _digest(listed)}, indent=1) + "\n", "utf-8")


def faults(folder: Path) -> list[str] | None:
    """Which files are not what was written, in plain words; None for a folder from before there were such lists."""
    try:
        told = json.loads((folder / NAME).read_text("utf-8"))
        listed: dict[str, dict[str, Any]] = told["files"]
        if told["digest"] != _digest(listed):
            return [f"{NAME} is not what was written (its digest differs)"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{NAME} cannot be read: {type(error).__name__}: {error}"]
    with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as threads:
        return list(filter(None, threads.map(lambda item: changed(folder / item[0], item[1]), listed.items())))


def folders(path: Path) -> list[Path]:
    """``path``, or the folders in it, where they hold such lists and are no run: what ``hala collect`` makes."""
    if (path / "manifest.parquet").exists() or not path.is_dir():
        return []
    return [each for each in [path, *sorted(path.iterdir())] if (each / NAME).is_file()]


def changed(path: Path, facts: Mapping[str, Any]) -> str:
    """How a file differs from what was written of it (``bytes``, ``blake2b``), in plain words; '' where it does not."""
    try:
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            return f"{path.name} is missing"
        if size != facts["bytes"]:
            return f"{path.name} has {size} bytes, {facts['bytes']} were written"
        return (
            "" if digest_of(path) == facts["blake2b"] else f"{path.name} is not what was written (its digest differs)"
        )
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


def _digest(listed: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(listed, sort_keys=True).encode(), digest_size=16).hexdigest()
