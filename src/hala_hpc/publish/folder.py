"""Publishing to a folder: what the hub would have got, where a person wants it."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from hala_hpc.config.errors import HalaError
from hala_hpc.publish.content import Entry
from hala_hpc.run import files
from hala_hpc.run.collect import LINKED


def put(entries: Sequence[Entry], target: Path) -> None:
    """Make ``target`` of ``entries``, whole or not at all. Large files share their disk space with the run's.

    Raises HalaError where it exists.
    """
    try:
        with files.whole_directory(target) as folder:
            for entry in entries:
                place = folder / entry.name
                place.parent.mkdir(parents=True, exist_ok=True)
                if entry.file is None:
                    place.write_text(entry.text, "utf-8")
                elif entry.size < LINKED or not files.link_read_only(entry.file.resolve(), place):
                    shutil.copyfile(entry.file, place)
    except FileExistsError:
        refuse_existing(target)
        raise


def refuse_existing(target: Path) -> None:
    """Raises HalaError where ``target`` is there already, or cannot be made."""
    if target.exists():
        raise HalaError(f"{target} exists", "give another folder with --to")
    above = next(folder for folder in target.parents if folder.exists())
    if not above.is_dir():
        raise HalaError(f"--to: {target}: {above} is no folder", "give another one")
