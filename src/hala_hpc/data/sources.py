"""From what a recipe's ``data`` says to the files whose rows are read, in order."""

import glob
import gzip
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Data
from hala_hpc.data import convert, readers

ENDINGS = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".txt": "text"}


@dataclass(frozen=True)
class Source:
    """A file that can be read from its middle, and the file or dataset that it came from."""

    path: Path
    original: str
    bytes: int


def resolve(data: Data) -> list[Path]:
    """The files that ``data.path`` names, sorted within each of its entries. Raises HalaError where there are none."""
    if bool(data.path) == bool(data.hub):
        raise HalaError(
            "data: give either data.path or data.hub", "data.path=FILE, FOLDER or GLOB, or data.hub=ORG/NAME"
        )
    files = [file for entry in data.path for file in _expand(entry)]
    if twice := [file for file, count in Counter(files).items() if count > 1]:
        raise HalaError(f"data.path: {twice[0]} is named twice, so its rows would be too", "name it once")
    if data.path and not files:
        raise HalaError(
            f"data.path: no data files in {', '.join(data.path)}", f"endings: {', '.join(ENDINGS)} (also .gz)"
        )
    return files


def open_sources(data: Data, copies: Path, say: Callable[[str], None]) -> Iterator[Source]:
    """Resolve ``data`` and yield its files, each copied into ``copies`` first if it cannot be read from its middle.

    It copies as it goes, so a caller that has enough rows stops the copying too.
    """
    files = resolve(data)
    if data.hub:
        copies.mkdir(exist_ok=True)
        target = copies / "00000.parquet"
        say(f"reading {data.hub}")
        convert.hub_to_parquet(data, target)
        yield Source(target, f"hub:{data.hub}@{data.revision or 'main'}/{data.split}", target.stat().st_size)
    for index, file in enumerate(files):
        yield _open_file(file, data, copies / f"{index:05d}.jsonl", say)


def form_of(path: Path, data: Data) -> str:
    """The format of a file: what the recipe says, else by its ending, else by its first byte."""
    if data.format != "auto":
        return data.format
    ending = path.suffixes[-2] if path.suffix == ".gz" and len(path.suffixes) > 1 else path.suffix
    form = ENDINGS.get(ending.lower())
    if form is None:
        raise HalaError(
            f"{path}: cannot tell its format by its ending", "set data.format to parquet, jsonl, json, csv or text"
        )
    return "jsonl" if form == "json" and _is_lines(path) else form


def _open_file(path: Path, data: Data, copy: Path, say: Callable[[str], None]) -> Source:
    form = form_of(path, data)
    size = path.stat().st_size
    # The worker tells the two formats apart by the ending, so a JSONL file under another name is copied too.
    if form == "parquet" and not readers.is_parquet(path):
        raise HalaError(f"{path}: not a Parquet file", "is it compressed once more, or data.format wrong?")
    if form == "parquet" or (form == "jsonl" and path.suffix in (".jsonl", ".ndjson")):
        return Source(path, str(path), size)
    copy.parent.mkdir(exist_ok=True)
    say(f"reading {path.name}")
    convert.to_jsonl(path, form, copy, data.limit)
    return Source(copy, str(path), size)


def _expand(entry: str) -> list[Path]:
    path = Path(entry)
    if path.is_file():
        return [path]
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file() and _is_data(file, path))
    if glob.has_magic(entry):
        found = map(Path, glob.glob(entry, recursive=True))  # noqa: PTH207 (the pattern may be absolute)
        return sorted(file for file in found if file.is_file())
    raise HalaError(f"data.path: {entry}: no such file or folder")


def _is_data(file: Path, root: Path) -> bool:
    hidden = any(part.startswith((".", "_")) for part in file.relative_to(root).parts)
    return not hidden and Path(file.name.removesuffix(".gz")).suffix.lower() in ENDINGS


def _is_lines(path: Path) -> bool:
    """A ``.json`` file whose first byte opens an object holds JSON lines, as many on the hub do."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            opening: bytes = file.read(readers.OPENING)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        return False  # whoever reads it tells
    return opening.removeprefix(readers.BOM).lstrip()[:1] == b"{"
