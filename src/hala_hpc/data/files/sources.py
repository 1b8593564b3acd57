"""From what a recipe's ``data`` says to the files whose rows are read, in order; and where they are by now."""

import glob
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Final

from hala_hpc.config.errors import HalaError, first_twice, within
from hala_hpc.config.schema import Data
from hala_hpc.data.bad_rows import BadRows
from hala_hpc.data.files import folders, formats, hub, opening, readers, runs
from hala_hpc.data.files.formats import ENDINGS, FORMATS
from hala_hpc.data.files.readers import Chunk, Manner
from hala_hpc.data.where import Where
from hala_hpc.run.files import write_durably
from hala_hpc.run.manifest import Facts

FIRST_BYTES: Final = 1 << 16
"""Bytes in which the format of a file is looked for."""
_SCHEMES: Final = ("s3:", "gs:", "gcs:", "az:", "abfs:", "abfss:", "hdfs:", "http:", "https:", "ftp:", "file:", "hf:")
_OF_FILES: Final = ("delimiter", "encoding", "field")
"""Keys of ``data`` that say how files are read; see ``formats.Format``."""
_LFS: Final = b"version https://git-lfs.github.com/spec"
_UNREADABLE: Final = {
    ".zip": "unpack it",
    ".tar": "unpack it",
    ".7z": "unpack it",
    ".xlsx": "save it as CSV",
    ".xls": "save it as CSV",
    ".pkl": "a pickle runs code when it is read; save it as Parquet",
    ".pickle": "a pickle runs code when it is read; save it as Parquet",
}


@dataclass(frozen=True)
class Source:
    """A file that can be read from its middle, and the file or dataset that it came from.

    ``columns`` are those that the names of its folders add to each row. ``copying`` goes on with a copy and yields how
    many lines it has; ``chunks`` takes from it as much as is wanted.
    """

    path: Path
    original: str
    bytes: int
    columns: dict[str, str | None] = field(default_factory=dict)
    copying: Iterator[int] = field(default_factory=lambda: iter([0]))


_File = tuple[Path, dict[str, str | None]]
"""A file as it is named, and the columns that the names of its folders add."""


def resolve(data: Data) -> list[Path]:
    """The files that ``data.path`` names, sorted within each of its entries. Raises HalaError where there are none."""
    return [path for path, _ in _resolve(data, Counter())]


def open_sources(data: Data, copies: Path, say: Callable[[str], None], bad: BadRows) -> Iterator[Source]:
    """Resolve ``data`` and yield its files, each copied into ``copies`` first if it cannot be read from its middle.

    It copies as it goes, so a caller that has enough rows stops the copying too. Rows that cannot be copied are added
    to ``bad``.
    """
    files = _resolve(data, bad.notes)
    if data.hub:
        copies.mkdir(exist_ok=True)
        target = copies / "00000.parquet"
        say(f"reading {data.hub}")
        hub.to_parquet(data, target, formats.ROW_GROUP)
        split = data.split or "train"
        yield Source(target, f"hub:{data.hub}@{data.revision or 'main'}/{split}", target.stat().st_size)
    for index, file in enumerate(files):
        yield _open_file(file, data, copies / f"{index:05d}", say, bad)


def chunks(
    source: Source,
    name: str,
    bad: BadRows,
    wanted: Callable[[], int] = lambda: sys.maxsize,
    condition: str | None = None,
) -> Iterator[Chunk]:
    """The rows of a source, while planning; those that cannot be read, or do not fulfil ``data.where``, go to ``bad``.

    ``name`` is the source's in the manifest; reading ends where no more rows are ``wanted``.
    """

    def on_bad(number: int, position: int, error: HalaError) -> None:
        bad.add(where(source, number), error, name, position)

    manner = Manner(source.columns, wanted, frozenset(), on_bad, bad.notes)
    position = lines = 0
    while (lines_now := next(source.copying, None)) is not None:
        for chunk in readers.chunks(source.path, position, replace(manner, lines_before=lines)):
            held = chunk if condition is None else _fulfilling(chunk, condition, name, bad)
            if held.rows:
                yield held
        position, lines = source.path.stat().st_size, lines_now
        if wanted() <= 0:
            return


def _fulfilling(chunk: Chunk, condition: str, name: str, bad: BadRows) -> Chunk:
    """The rows of a chunk that fulfil a condition."""
    with within("data.where"):
        where = Where(condition, chunk.schema())
        kept = [place for place, row in enumerate(chunk.rows) if where.holds(row)]
    for place in sorted({*range(len(chunk.rows))} - {*kept}):
        bad.leave_out(name, chunk.positions[place])
    return chunk.only(kept)


def read(data: Data, copies: Path, say: Callable[[str], None], bad: BadRows) -> Iterator[tuple[Source, Chunk]]:
    """The rows of ``data``, for whoever needs them only once: as many as ``data.limit``."""
    seen = 0
    for source in open_sources(data, copies, say, bad):
        for chunk in chunks(source, source.original, bad, lambda: left(data.limit, seen), data.where):  # noqa: B023 (called at once)
            seen += len(chunk.rows)
            yield source, chunk


def left(limit: int | None, taken: int) -> int:
    """How many more rows ``data.limit`` lets in."""
    return sys.maxsize if limit is None else limit - taken


def where(source: Source, number: int) -> str:
    """A row, as a person finds it."""
    is_line = source.original == str(source.path) and not readers.is_parquet(source.path)
    return f"{source.original}:{number}" if is_line else f"{source.original}: row {number}"


def form_of(path: Path, data: Data) -> str:
    """The format of a file: what the recipe says, else by its first bytes, else by its ending.

    Raises HalaError where neither shows it, and for what cannot be read.
    """
    first = opening.first_bytes(path, FIRST_BYTES)
    if first.startswith(_LFS):
        raise HalaError(f"{path}: only a pointer of Git LFS, the data is not there", "`git lfs pull` in its folder")
    if data.format != "auto":
        return data.format
    if first.startswith((b"PAR1", b"ARROW1")):
        return "parquet" if first.startswith(b"PAR1") else "arrow"
    encoding = opening.encoding_of(first, data.encoding)
    text = first.decode(encoding, "replace").encode() if encoding else first.removeprefix(opening.BOM)
    begin = text.lstrip()[:1]
    ending = formats.ending_of(path)
    form = ENDINGS.get(ending) or {b"{": "jsonl", b"[": "json"}.get(begin)
    if form is None:
        hint = _UNREADABLE.get(path.suffix.lower(), "set data.format to parquet, arrow, jsonl, json, csv or text")
        raise HalaError(f"{path}: cannot tell its format by its ending", hint)
    if form not in ("json", "jsonl"):
        return form
    if data.field is not None or begin == b"[":
        return "json"
    if form == "json" and begin == b"{":
        if lists := formats.lists_in(text):  # the rows lie somewhere in one object
            hint = f"data.field={lists[0]} if these are the rows (lists: {', '.join(lists)})"
            raise HalaError(
                f"{path}: one object, with lists of objects in it", f"{hint}; data.format=jsonl if it is one"
            )
        return "jsonl"
    return form


def _open_file(file: _File, data: Data, copy: Path, say: Callable[[str], None], bad: BadRows) -> Source:
    path, columns = file
    form = form_of(path, data)
    size = path.stat().st_size
    # The worker knows the two formats by the ending, so a JSONL file under another name is copied too.
    if form == "parquet" and not readers.is_parquet(path):
        raise HalaError(f"{path}: not a Parquet file", "is it compressed once more, or data.format wrong?")
    if form == "parquet" or (form == "jsonl" and _is_in_place(path, data)):
        return Source(path, str(path), size, columns)
    copy.parent.mkdir(exist_ok=True)
    say(f"reading {path.name}")
    if form == "arrow":
        copy = copy.with_suffix(".parquet")
        # Rows may be set aside later for their form, so nobody knows yet how many the limit needs.
        formats.arrow_to_parquet(path, copy, data.limit if bad.is_refusing else None)
        return Source(copy, str(path), size, columns)
    copy = copy.with_suffix(".jsonl")
    copy.touch()
    return Source(copy, str(path), size, columns, formats.to_jsonl(path, form, copy, data, bad))


def _is_in_place(path: Path, data: Data) -> bool:
    if path.suffix not in (".jsonl", ".ndjson") or opening.opener_of(path):
        return False
    return opening.encoding_of(opening.first_bytes(path, 4), data.encoding) is None


def _resolve(data: Data, notes: Counter[str]) -> list[_File]:
    if bool(data.path) == bool(data.hub):
        raise HalaError(
            "data: give either data.path or data.hub", "data.path=FILE, FOLDER or GLOB, or data.hub=ORG/NAME"
        )
    if data.hub:
        if runs.is_run(Path(data.hub)):
            raise HalaError(f"data.hub: {data.hub} is a run", "data.path takes its rows")
        if unused := next((name for name in _OF_FILES if getattr(data, name) is not None), None):
            raise HalaError(f"data.{unused}: is for files (data.path), not for data.hub", "leave it out")
        return []
    if data.revision is not None:
        raise HalaError("data.revision: is for a dataset on the hub, not for data.path", "leave it out")
    files = [file for entry in data.path for file in _expand(entry, data, notes)]
    paths = [path for path, _ in files]
    if twice := first_twice(paths):
        raise HalaError(f"data.path: {twice} is named twice, so its rows would be too", "name it once")
    if not files:
        raise HalaError(
            f"data.path: no data files in {', '.join(data.path)}",
            f"endings: {', '.join(ENDINGS)} (also {', '.join(opening.COMPRESSED)})",
        )
    _refuse_unused(data, paths)
    return files


def _refuse_unused(data: Data, paths: list[Path]) -> None:
    """Refuse a key that changes nothing: it was meant to change something."""
    for key in _OF_FILES:
        if getattr(data, key) is not None and not any(key in FORMATS[form_of(path, data)].keys for path in paths):
            raise HalaError(f"data.{key}: {paths[0]} is {form_of(paths[0], data)}", "leave it out")


def _expand(entry: str, data: Data, notes: Counter[str]) -> list[_File]:
    path = Path(entry)
    if scheme := next((part for part in path.parts if part.lower() in _SCHEMES), None):
        url = f"{scheme}//{entry.partition(scheme)[2].lstrip('/')}"  # as a path it has lost a slash
        raise HalaError(
            f"data.path: {url}: URLs cannot be read", "download it first; data.hub=ORG/NAME reads from the hub"
        )
    if (run := runs.run_of(path)) is not None:
        with within("data.path"):
            path = runs.rows_of(run)
    else:
        runs.refuse_inside(path)
    if path.is_dir():
        return [(file, folders.columns_of(file, path)) for file in folders.files_of(path, data, notes)]
    if data.hub_config is not None:
        raise HalaError(f"data.hub_config: {entry} is not a folder, and only folders have it", "data.hub_config=null")
    if data.split not in (None, "train", "all"):  # as the hub has it: what is of no split is all train
        raise HalaError(f"data.split: {entry} is not a folder, so it has no split '{data.split}'", "data.split=null")
    if folders.is_file(path):
        return [(path, {})]
    if glob.has_magic(entry):
        files = sorted(map(Path, glob.glob(entry, recursive=True)), key=folders.natural)  # noqa: PTH207 (may be absolute)
        files = list(filter(folders.is_file, files))
        for file in files:
            runs.refuse_inside(file)
        root = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))
        held = list(filter(folders.is_quarantine, files))
        notes.update({folders.QUARANTINE: len(held)} if held else {})
        return [(file, folders.columns_of(file, root)) for file in files if file not in held]
    what = "neither a file nor a folder" if path.exists() else "no such file or folder"
    raise HalaError(f"data.path: {entry}: {what}")


NAME: Final = "moved.json"


def place_of(run: Path, source: str) -> Path:
    """Where a source of the manifest is now. Raises HalaError where RUN/moved.json cannot be read."""
    try:
        moved: dict[str, str] = json.loads((run / NAME).read_bytes())
        return run / moved.get(source, source)
    except FileNotFoundError:
        return run / source
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise HalaError(
            f"{run / NAME} cannot be read: {error}", f"`hala resume {run} data.path=…` writes it anew"
        ) from error


def note(run: Path, facts: Facts, data: Data) -> int:
    """Note that a run's files are now those of ``data``; how many there are.

    Files are the same if they are as large and, where there are several, have the same names in the same order. Their
    content is known by the digest of each shard, which whoever reads it looks at. Files of which the run has a copy
    are not needed. Raises HalaError where a file is another one or missing.
    """
    paths = resolve(data)
    moved = {}
    for number, source in enumerate(facts.sources):
        before = Path(source["path"])
        if not before.is_absolute():
            continue
        if number >= len(paths):
            raise HalaError(
                f"data.path: {before.name} is not there", "a run goes on with the files it was planned with"
            )
        after, size = paths[number], paths[number].stat().st_size
        if size != source["bytes"] or (len(facts.sources) > 1 and after.name != before.name):
            raise HalaError(
                f"data.path: {after} ({size:,} bytes) is not {before} ({source['bytes']:,} bytes)",
                "a run goes on with the files it was planned with; plan a new run for others",
            )
        moved[str(source["path"])] = str(after)
    write_durably(run / NAME, json.dumps(moved, indent=1).encode())
    return len(moved)
