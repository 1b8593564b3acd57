"""A run comes to be: planned in a folder aside, then named, whole or not at all."""

import hashlib
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hala_hpc import __version__
from hala_hpc.config.errors import HalaError
from hala_hpc.run import files, manifest
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.manifest import Facts, Shard

Fill = Callable[[Path], tuple[list[Shard], Facts]]
"""Plans the shards; may leave files of its own in the folder that it is given."""


def create(target: Path, recipe: str, fill: Fill) -> RunDirectory:
    """Plan a run and put it under its name.

    Raises
    ------
    HalaError : the run exists, or what ``fill`` raises; nothing is left behind then.
    """
    if target.exists():
        raise _exists(target)
    try:
        with files.whole_directory(target) as folder:
            shards, facts = fill(folder)
            made_by = provenance(recipe)
            manifest.write(folder / "manifest.parquet", shards, replace(facts, made_by=made_by))
            header = "".join(f"# {key}: {value}\n" for key, value in made_by.items())
            (folder / "recipe.yaml").write_text(header + recipe)
            RunDirectory(folder, facts.suffix).create_folders(len(shards))
    except FileExistsError as error:
        raise _exists(target) from error
    return RunDirectory(target, facts.suffix)


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
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return said.stdout.strip() or "none"


def _exists(target: Path) -> HalaError:
    return HalaError(
        f"run '{target.name}' exists in {target.parent}", f"`hala resume {target.name}`, or give another name=…"
    )
