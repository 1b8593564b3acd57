"""The finished folders of a run, where a person wants them: models. (Rows are collected by ``data.collect``.)"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hala_hpc.config.errors import HalaError, plural
from hala_hpc.run import digests, files, manifest

LINKED: Final = 64 * 1024 * 1024
"""Files from so many bytes on are linked where the file system can, and closed to writing; smaller ones are copied."""


@dataclass(frozen=True)
class CollectedFolder:
    """What was put at ``path``. ``linked`` of its files share their disk space with the run's."""

    path: str
    files: int
    bytes: int
    linked: int


def collect_folders(path: Path, target: Path, partial: bool = False) -> CollectedFolder:
    """Put the output of the run at ``path`` at ``target``, whole or not at all: later, neither needs the other.

    ``target`` becomes the folder of a run's only shard. With more shards it holds one folder for each, named as the
    item is where it has a name. Where the shards were made into one thing (a quantized model), that is what is taken.

    Raises HalaError where the run is not finished (unless ``partial``), what it made is damaged, or ``target`` exists.
    """
    run, plan = manifest.open_run(path)
    if plan.facts.assembled:
        if not run.final.is_dir():
            raise HalaError(
                f"{path}: its last step, which makes {run.final.name}/, is not done", f"`hala resume {path}`"
            )
        return _collected(path, [(run.final, "")], target)
    items = plan.facts.items
    outputs = [
        (output, str(items[shard]["name"]) if items else output.name)
        for shard in range(len(plan))
        if (output := run.shard_output(shard)).is_dir()
    ]
    if not outputs or (len(outputs) < len(plan) and not partial):
        hint = f"`hala resume {path}`, or --partial" if outputs else f"`hala status {path}`"
        raise HalaError(f"{len(plan) - len(outputs)} of {plural(len(plan), 'shard')} not finished", hint)
    return _collected(path, [(output, "" if len(plan) == 1 else name) for output, name in outputs], target)


def _collected(run: Path, outputs: list[tuple[Path, str]], target: Path) -> CollectedFolder:
    """Each folder under its name in ``target``; '' for ``target`` itself.

    Raises HalaError where that exists, or a folder is not what was published.
    """
    try:
        with files.whole_directory(target) as folder:
            linked = 0
            for output, name in outputs:
                linked += _copy(output, folder / name)
                if faults := digests.faults(folder / name):  # of what was copied, so that nothing comes between
                    raise HalaError(f"{output}: {'; '.join(faults[:3])}", f"`hala verify {run}` says more")
            sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    except FileExistsError as error:
        raise HalaError(f"{target} exists", "give another folder with --to") from error
    return CollectedFolder(str(target), len(sizes), sum(sizes), linked)


def _copy(source: Path, target: Path) -> int:
    """Copy a tree; returns how many files were linked instead."""
    target.mkdir(exist_ok=True)
    return sum(
        _copy(path, target / path.name) if path.is_dir() else files.link_or_copy(path, target / path.name, LINKED)
        for path in sorted(source.iterdir())
    )
