"""What a stage of a pipeline was asked and given, as digests: by them it is known whether it need be done again.

The key of a stage is the digest of its recipe (less where and with how many workers it runs), of the results of the
stages that it takes, and of the local files that it reads. Each key is a version of its own, with a folder of its own.
"""

import glob
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from hala_hpc.config import frozen
from hala_hpc.config.compose import places_of
from hala_hpc.config.schema import Recipe
from hala_hpc.pipeline import lookup
from hala_hpc.run import digests, manifest
from hala_hpc.run.files import read_json, write_durably
from hala_hpc.run.layout import GRID, RunDirectory

NOT_ASKED: Final = ("name", "site", "run")
"""Sections of a recipe that say where and how it is done, and not what."""
NOT_READ: Final = (*NOT_ASKED, "engine", "task.prepared")
"""Keys whose paths are no data that a stage reads: places for what it writes."""
FILES: Final = "files.json"
"""In a pipeline's folder: digests of local files that stages read, with the size and time by which they are known."""


@dataclass(frozen=True)
class Key:
    """What a stage is asked (a recipe, those of a grid's cells, or a command) and given, by address and by path."""

    recipe: Mapping[str, Any] = field(default_factory=dict)
    takes: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        return digest_of(asdict(self))

    def differences(self, before: "Key") -> list[str]:
        """How this key differs from an earlier version's, in words."""
        changed = frozen.differing(before.recipe, self.recipe)
        listed = [f"{key}: {_short(now)} (was {_short(was)})" for key, (was, now) in sorted(changed.items())]
        for what, old, new in (("the result of", before.takes, self.takes), ("the file", before.files, self.files)):
            listed += [f"{what} {name} is another" for name in new if name in old and old[name] != new[name]]
            listed += [f"{what} {name} is taken now" for name in new if name not in old]
            listed += [f"{what} {name} is not taken any more" for name in old if name not in new]
        return listed


def asked_of(recipe: Recipe) -> dict[str, Any]:
    """What a recipe asks, wherever it is done."""
    return {section: value for section, value in asdict(recipe).items() if section not in NOT_ASKED}


def reads_of(recipe: Recipe) -> list[str]:
    """Files, folders and patterns of this machine that a recipe reads."""
    names = []
    for key, value in places_of(recipe):
        if not f"{key}.".startswith(tuple(f"{name}." for name in NOT_READ)):
            names += value if isinstance(value, list) else [value]
    return [name for name in names if isinstance(name, str) and Path(name).is_absolute()]


def local_paths(reads: Sequence[str]) -> Iterator[str]:
    """The files and folders that are named, those of patterns as they fit now."""
    for name in reads:
        yield from sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else [name]  # noqa: PTH207 (absolute)


class FileDigests:
    """Digests of files by content, kept by size and time, so that each is read once. ``close`` writes them down."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILES
        self._known: dict[str, Any] = read_json(self._file)
        self._is_new = False

    def digest(self, path: Path) -> str:
        """Of a file or of all files in a folder; of a run its result; that nothing is there is one, too."""
        if (run := run_of(path)) is not None:
            return result_of(run)
        seen = _seen(path)
        known = self._known.get(str(path))
        if known is None or known["seen"] != seen:
            known = {"seen": seen, "digest": _content(path)}
            self._known[str(path)], self._is_new = known, True
        return str(known["digest"])

    def close(self) -> None:
        if self._is_new:
            write_durably(self._file, json.dumps(self._known, indent=1).encode())
            self._is_new = False


def run_of(path: Path) -> Path | None:
    """The run or grid that a path leads to, or into."""
    marks = ("manifest.parquet", GRID)
    return next((here for here in (path, *path.parents) if any((here / mark).is_file() for mark in marks)), None)


def result_of(folder: Path) -> str:
    """The digest of what a finished run or grid came to: of its outputs, as they were sealed. Raises HalaError."""
    if (folder / GRID).is_file():
        return digest_of({path.name: result_of(path) for path in lookup.runs_in(folder)})
    facts = manifest.read(folder / "manifest.parquet").facts
    run = RunDirectory(folder, facts.suffix)
    if facts.assembled:
        return _sealed(run.final)
    shards = len(manifest.read(folder / "manifest.parquet"))
    return digest_of([_sealed(run.shard_output(shard)) for shard in range(shards)])


def _sealed(output: Path) -> str:
    """The digest that a worker wrote into an output, or beside its files; where there is none, of all of it."""
    if output.is_dir():
        listed = output / digests.NAME
        return str(read_json(listed)["digest"]) if listed.is_file() else _content(output)
    return digests.seal_of(output) or digests.digest_of(output)


def _files_in(path: Path) -> list[Path]:
    return sorted(inner for inner in path.rglob("*") if inner.is_file()) if path.is_dir() else [path]


def _seen(path: Path) -> list[list[Any]]:
    if not path.exists():
        return []
    stats = [(file, file.stat()) for file in _files_in(path)]
    return [[str(file.relative_to(path)), stat.st_size, stat.st_mtime_ns] for file, stat in stats]


def _content(path: Path) -> str:
    if not path.exists():
        return "nothing"
    files = _files_in(path)
    names = [str(file.relative_to(path)) for file in files]
    return digest_of(dict(zip(names, digests.in_threads(digests.digest_of, files), strict=True)))


def digest_of(value: Any) -> str:
    """Of plain data."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:59]}…"
