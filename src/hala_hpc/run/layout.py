"""Where things stand in a run directory: names only, no state."""

import contextlib
import difflib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hala_hpc.config.errors import HalaError, few, plural
from hala_hpc.run.files import make_folders

FAN_OUT = 1_000
"""Shards per folder: some file systems grow slow above a few thousand names."""
GRID = "grid.json"
"""A file that makes its folder a grid: the runs in it share arrays of jobs."""
PIPELINE = "pipeline.json"
"""A file that makes its folder a pipeline: the runs in it are its stages, each in a version or several."""
MORE = ", … and {} more"
FOLDERS = ("shards", "partial", "leases", "leases/workers", "ledger", "logs")


class _Within:
    """A path of this name in the run's directory."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, run: "RunDirectory", _: type) -> Path:
        return run.path / self._name


@dataclass(frozen=True)
class RunDirectory:
    """The paths of one run. ``suffix`` is that of a shard's output: '' for a folder, '.parquet' for rows.

    ``input`` holds rows whose source could not be read from its middle, once more, in a form that can; ``damaged`` the
    outputs that ``hala verify`` refused, set aside to be done again; ``before`` the outputs of an earlier run in which
    some rows are done again, and ``again`` the numbers of these.
    """

    path: Path
    suffix: str = ".parquet"

    recipe = _Within("recipe.yaml")
    manifest = _Within("manifest.parquet")
    input = _Within("input")
    shards = _Within("shards")
    partial = _Within("partial")
    leases = _Within("leases")
    workers = _Within("leases/workers")
    ledger = _Within("ledger")
    logs = _Within("logs")
    damaged = _Within("damaged")
    before = _Within("before")
    again = _Within("again.parquet")
    final = _Within("final")

    @property
    def name(self) -> str:
        return self.path.name

    def shard_output(self, shard: int) -> Path:
        """The final name of a shard: it is done when this exists."""
        return self.shards / folder_of(shard) / f"{shard:06d}{self.suffix}"

    def output_before(self, shard: int) -> Path:
        """The output that a shard with rows to be done again had in the earlier run."""
        return self.before / folder_of(shard) / f"{shard:06d}{self.suffix}"

    def partial_folder(self, shard: int) -> Path:
        return self.partial / folder_of(shard)

    def lease_folder(self, shard: int) -> Path:
        return self.leases / folder_of(shard)

    def create_folders(self, shards: int, is_shared: bool = False) -> None:
        """Make every folder that so many shards will need and that is not there: a purge of scratch removes empty ones.

        ``is_shared``: with the run's group. Raises HalaError where a file stands in the place of one.
        """
        for folder in self.absent_folders(shards):
            try:
                make_folders(self.path / folder)
            except (FileExistsError, NotADirectoryError) as error:
                raise HalaError(
                    f"{self.path / folder}: is not a folder, as a run needs it", "move the file away"
                ) from error
            if folder == self.logs.name:
                close_logs(self.logs, is_shared)

    def absent_folders(self, shards: int) -> list[str]:
        """Folders of a run with so many shards that are gone, by their path in it."""
        within = [f"{parent}/{folder}" for parent in ("shards", "partial", "leases") for folder in folders(shards)]
        return [name for name in (*FOLDERS, *within) if not (self.path / name).is_dir()]


def close_logs(logs: Path, is_shared: bool) -> None:
    """Close a folder of logs to others: submitit keeps pickles here, and nobody else may plant one or take one away.

    In a shared run the group may add files; whoever loads a pickle looks whose it is (``worker/unpickle.py``).
    """
    logs.chmod(0o3770 if is_shared else 0o700)


def run_of(output: Path) -> RunDirectory:
    """The run that a shard's output stands in."""
    return RunDirectory(output.parents[2], output.suffix)


def folder_of(shard: int) -> str:
    """The fan-out folder of a shard."""
    return f"{shard // FAN_OUT:03d}"


def folders(shards: int) -> list[str]:
    """All fan-out folders of a run with so many shards."""
    return [f"{index:03d}" for index in range(-(-shards // FAN_OUT))]


def finished(run: RunDirectory, folder: str) -> set[int]:
    """Ids of the shards whose output stands in one fan-out folder; other names (.nfs0001, a copy) do not count."""
    if not folder.isdecimal():
        return set()
    # Six digits, and more only where that many are needed.
    output = re.compile(rf"([0-9]{{6}}|[1-9][0-9]{{6,}}){re.escape(run.suffix)}")
    names = map(output.fullmatch, listing(run.shards / folder))
    return {shard for name in names if name and (shard := int(name[1])) // FAN_OUT == int(folder)}


def listing(folder: Path) -> list[str]:
    """Names in a folder of a run, hidden ones left out; no names where the folder is gone."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return [name for name in os.listdir(folder) if not name.startswith(".")]  # noqa: PTH208  twice as quick
    return []


def find_run(name: str, roots: Sequence[Path]) -> Path:
    """A run by its path, or by its name under the first of ``roots`` that has it.

    Raises HalaError listing what is there, what a run lacks, the runs of a grid, or what a path is that is not a run.
    """
    for path in (Path(name), *(root / name for root in roots)):
        wanting = [part for part in ("manifest.parquet", "recipe.yaml") if not (path / part).is_file()]
        if not wanting:
            return path.resolve()
        if len(wanting) == 1 or (path / "shards").is_dir():
            state = "is a folder" if (path / wanting[0]).is_dir() else "is gone"
            hint = "a run cannot do without it, and nothing makes it again: put a copy back, or plan anew"
            raise HalaError(f"{path / wanting[0]} {state}", f"{hint} under another name")
        if (path / GRID).is_file():
            cells = [f"{name}/{run.parent.name}" for run in sorted(path.glob("[!.]*/manifest.parquet"))]
            hint = f"name one of them: {few(cells, 8, MORE)}"
            raise HalaError(f"'{name}' is a grid of {plural(len(cells), 'run')}", hint)
        if (path / PIPELINE).is_file():
            stages = [f"{name}/{run.parent.name}" for run in sorted(path.glob("[!.]*/manifest.parquet"))]
            raise HalaError(
                f"'{name}' is a pipeline", f"name a run of it: {few(stages, 8, MORE) or 'there is none yet'}"
            )
    if (here := Path(name)).exists():
        run = next((path for path in here.resolve().parents if (path / "manifest.parquet").is_file()), None)
        inside = f"it is inside of {run}" if run else "`hala runs` lists runs, `hala submit RECIPE` makes one"
        what = "folder, but not a run: it has no manifest.parquet" if here.is_dir() else "file, and a run is a folder"
        raise HalaError(f"{here.resolve()} is a {what}", inside)
    raise HalaError(f"no run '{name}'", "; ".join(known_runs(root, name) for root in roots))


def known_runs(root: Path, name: str) -> str:
    """What is in a folder of runs, the likeliest first, and how to say another folder."""
    known = sorted({path.parent.name for file in ("manifest.parquet", GRID) for path in root.glob(f"[!.]*/{file}")})
    if not known:
        return f"there are no runs in {root.resolve()}: give its path, or set HALA_RUNS to the folder of your runs"
    near = difflib.get_close_matches(name, known, n=1)
    meant = f"did you mean '{near[0]}'? " if near else ""
    return f"{meant}runs in {root.resolve()}, for HALA_RUNS may say another folder: {few(known, 8, MORE)}"
