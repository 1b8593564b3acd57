"""The plan of a run: one row per shard, written once, never again; and how a run is made of it.

A run is planned in a folder aside, then named, whole or not at all.
"""

import contextlib
import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from hala_hpc import __version__
from hala_hpc.config.errors import HalaError
from hala_hpc.config.frozen import framed
from hala_hpc.run import digests, files
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.lineage import Redo

CURE = "it is the plan, which nothing makes again: put a copy back, or plan anew under another name"
ASSEMBLED = ("quantize", "compare")
"""Tasks with a last step, for manifests that do not say so."""
KEY = b"hala"
"""Metadata key under which the manifest keeps what is true of the whole run."""


@dataclass(frozen=True)
class Shard:
    """What a worker claims: ``rows`` rows from ``start`` on (both counted over the whole run, in source order).

    ``source`` is the file of the first row and ``position`` its place there (a byte offset in JSONL, a row number in
    Parquet); rows that the file lacks come from the sources after it. ``tokens`` are estimated, ``characters`` counted,
    both over the texts to be worked on. ``digest`` is that of the shard's input. ``kept`` of its rows are an earlier
    run's and stay as they are (see ``lineage.Redo``).
    """

    id: int
    task: str
    source: str
    position: int
    start: int
    rows: int
    characters: int
    tokens: int
    digest: str
    kept: int = 0

    @property
    def is_kept(self) -> bool:
        """Whether its whole output is an earlier run's."""
        return self.kept == self.rows


SCHEMA = pa.schema([(name, pa.string() if kind is str else pa.int64()) for name, kind in Shard.__annotations__.items()])


Unit = Literal["rows", "models", "checkpoints", "files", "merges", "benchmarks", "systems"]
"""What ``Facts.rows`` counts."""


@dataclass(frozen=True)
class Facts:
    """What is true of the whole run: its sources, the shape of its output, and what made it.

    ``sources`` holds a dict per input file (path, rows, bytes, and of which file it is a copy); ``schema`` the Arrow
    schema of the input rows (serialized, hex); ``texts`` the number of texts to work on; ``unit`` what ``rows`` counts
    (models for a training); ``items`` what each shard asks for, where it is not rows; ``notes`` counts, by words for a
    person, what was left as it is, replaced or set aside while planning: plan and card show them. ``sealed`` says that
    every Parquet file that the run's workers write is sealed (see ``seal``): one without a seal is damaged.
    ``assembled`` says that the run's result is RUN/final, which a worker makes of all shards as the last step.
    ``most_asks``: so often each text is asked for at most, where its answers fail checks.
    ``expected`` is what the rows of a training's dataset will come to (``tasks.train.prepare.expected``), or what the
    plan of a mix knows of its sources (``tasks.mix.task``).
    ``redo`` is there where only some rows are done, and the others are an earlier run's.
    """

    suffix: str
    rows: int
    texts: int
    characters: int
    tokens: int
    sources: list[dict[str, Any]] = field(default_factory=list)
    schema: str = ""
    made_by: dict[str, str] = field(default_factory=dict)
    unit: Unit = "rows"
    items: list[dict[str, Any]] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)
    most_asks: int = 1
    sealed: bool = False
    assembled: bool = False
    expected: dict[str, Any] = field(default_factory=dict)
    redo: Redo | None = None


class Manifest:
    """A read manifest. Columns stay in Arrow, so 100,000 shards cost milliseconds."""

    def __init__(self, table: pa.Table, facts: Facts) -> None:
        self._table = table
        self.facts = facts

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, shard: int) -> Shard:
        return Shard(**{name: self._table[name][shard].as_py() for name in SCHEMA.names})

    def __iter__(self) -> Iterator[Shard]:
        for row in self._table.to_pylist():
            yield Shard(**row)

    def column(self, name: str) -> list[Any]:
        """One column over all shards, in the order of their ids."""
        values: list[Any] = self._table[name].to_pylist()
        return values

    def numbers(self, name: str) -> "np.ndarray[Any, np.dtype[np.int64]]":
        """The same of a column of numbers, as an array that must not be changed."""
        # Not Arrow's own to_numpy: that would import pandas, which takes longer than all the rest of `hala status`.
        return np.concatenate([np.from_dlpack(chunk) for chunk in self._table[name].chunks])


def write(path: Path, shards: Sequence[Shard], facts: Facts) -> None:
    """Write the manifest into a folder that is still being made (see ``files.whole_directory``)."""
    table = pa.Table.from_pylist([asdict(shard) for shard in shards], schema=SCHEMA)
    metadata = json.dumps(asdict(replace(facts, sealed=facts.sealed or facts.redo is None)))
    digests.write_table(table.replace_schema_metadata({KEY: metadata.encode()}), path)


def read(path: Path) -> Manifest:
    """Read a manifest. Raises HalaError for another file, and for one that is not what was written."""
    try:
        table, sealed = digests.read(path)
        metadata = json.loads(table.schema.metadata[KEY])
        facts = Facts(**metadata)
        if facts.sealed and not sealed:
            raise digests.Damaged("is damaged: its seal is gone")
        if "kept" not in table.column_names:  # planned before manifests said so
            table = table.append_column("kept", pa.array([0] * len(table), pa.int64()))
        table = table.select(SCHEMA.names)
        if "assembled" not in metadata:  # planned before manifests said so
            facts = replace(facts, assembled=bool(facts.items) and table["task"][0].as_py() in ASSEMBLED)
    except digests.Damaged as error:
        raise HalaError(f"{path}: {error}", CURE) from error
    except (KeyError, TypeError, ValueError) as error:
        raise HalaError(f"{path}: not a manifest of a run: {error}", CURE) from error
    return Manifest(table, facts)


def open_run(path: Path) -> tuple[RunDirectory, Manifest]:
    """The paths and the plan of the run at ``path``. Raises HalaError as ``read``."""
    plan = read(path / "manifest.parquet")
    return RunDirectory(path, plan.facts.suffix), plan


LOOKED_AT = ".plan-"
"""How the names of the folders begin in which `hala plan` looks at what would be."""
DAY = 24 * 3600.0
"""A plan in which nothing changes for so long is dead."""
Fill = Callable[[Path], tuple[list[Shard], Facts]]
"""Plans the shards; may leave files of its own in the folder that it is given."""


def create(target: Path, recipe: str, fill: Fill, is_shared: bool = False) -> RunDirectory:
    """Plan a run and put it under its name. ``is_shared``: its folders belong to the group of this one.

    Raises HalaError where the run exists, and what ``fill`` raises; nothing is left behind then.
    """
    try:
        with files.whole_directory(target) as folder:
            _sweep(target)
            if is_shared:
                files.keep_group(folder)
            shards, facts = fill(folder)
            made_by = provenance(recipe)
            write(folder / "manifest.parquet", shards, replace(facts, made_by=made_by))
            header = "".join(f"# {key}: {value}\n" for key, value in made_by.items())
            (folder / "recipe.yaml").write_text(framed(header + recipe))
            RunDirectory(folder, facts.suffix).create_folders(len(shards), is_shared)
    except FileExistsError as error:
        hint = f"`hala resume {target.name}`, or give another name=…"
        raise HalaError(f"run '{target.name}' exists in {target.parent}", hint) from error
    return RunDirectory(target, facts.suffix)


def half_made(root: Path) -> list[tuple[Path, float]]:
    """Folders of plans that are in the making or were killed, with the seconds since anything in them changed.

    By the file server's clock as far as it can be asked.
    """
    ours = (
        path for path in root.glob(".*") if path.name.startswith(LOOKED_AT) or files.meant_by(path.name) != path.name
    )
    folders = sorted(path for path in ours if path.is_dir())
    now = files.now_in(root) if folders else 0.0
    return [(path, max(0.0, now - _changed(path))) for path in folders]


def _sweep(target: Path) -> None:
    """Remove what killed plans of this name left: ours, and nothing in it has changed for a day."""
    for path, seconds in half_made(target.parent):
        of_us = path.name.startswith((f".{target.name}.", LOOKED_AT)) and path.stat().st_uid == os.geteuid()
        if of_us and seconds > DAY:
            files.remove_tree(path)


def _changed(folder: Path) -> float:
    """When the newest thing in a folder was changed."""
    times = [folder.stat().st_mtime]
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            times.append(path.lstat().st_mtime)
    return max(times)


def provenance(recipe: str) -> dict[str, str]:
    """What made a run: digest of its resolved recipe, version, git commit of the current folder, time (UTC)."""
    return {
        "recipe_digest": hashlib.blake2b(recipe.encode(), digest_size=16).hexdigest(),
        "hala_hpc": __version__,
        "git_commit": _git_commit(),
        "planned_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _git_commit() -> str:
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
        git = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return git.stdout.strip() or "none"
