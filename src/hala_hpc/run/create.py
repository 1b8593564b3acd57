"""Makes a run: planned in a folder aside, then named, whole or not at all."""

import contextlib
import hashlib
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hala_hpc import __version__
from hala_hpc.config.errors import HalaError
from hala_hpc.config.frozen import framed
from hala_hpc.run import files, manifest
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.manifest import Facts, Shard

LOOKED_AT = ".plan-"
"""How the names of the folders begin in which `hala plan` looks at what would be."""
DAY = 24 * 3600.0
"""A plan in which nothing changes for so long is dead."""
Fill = Callable[[Path], tuple[list[Shard], Facts]]
"""Plans the shards; may leave files of its own in the folder that it is given."""


def create(target: Path, recipe: str, fill: Fill) -> RunDirectory:
    """Plan a run and put it under its name.

    Raises
    ------
    HalaError : the run exists, or what ``fill`` raises; nothing is left behind then.
    """
    try:
        with files.whole_directory(target) as folder:
            _sweep(target)
            shards, facts = fill(folder)
            made_by = provenance(recipe)
            manifest.write(folder / "manifest.parquet", shards, replace(facts, made_by=made_by))
            header = "".join(f"# {key}: {value}\n" for key, value in made_by.items())
            (folder / "recipe.yaml").write_text(framed(header + recipe))
            RunDirectory(folder, facts.suffix).create_folders(len(shards))
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
