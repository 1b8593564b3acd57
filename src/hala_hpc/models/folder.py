"""A model folder in the making: the files beside the weights, the index, the record of what made it, and the card."""

import json
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypedDict

from hala_hpc.config.errors import HalaError
from hala_hpc.models.check import RECORD
from hala_hpc.models.location import INDEX, SINGLE
from hala_hpc.models.safetensors_file import tensors_of
from hala_hpc.run.digests import CARD, digest_of

REPORT: Final = "report.json"
"""In the model folder: what became of each tensor."""
TEMPLATES: Final = "additional_chat_templates"


class FileFacts(TypedDict):
    """Size and digest of a file as it was written (``run.digests.changed`` compares them)."""

    bytes: int
    blake2b: str


def describe(path: Path, check_stop: Callable[[], None] = lambda: None) -> FileFacts:
    """Size and digest of a file. ``check_stop`` is called between pieces and may raise."""
    return {"bytes": path.stat().st_size, "blake2b": digest_of(path, check_stop)}


def write_json(path: Path, value: object, indent: int = 1) -> None:
    """JSON that people read as well."""
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=False) + "\n", "utf-8")


def copy_beside(source: Path, folder: Path, patterns: Iterable[str], without: Collection[str] = ()) -> None:
    """Copy the files of another model that match ``patterns``, indexes left out, and its additional chat templates."""
    for path in {path for pattern in patterns for path in source.glob(pattern)}:
        if path.is_file() and path.name not in without and not path.name.endswith(".index.json"):
            shutil.copyfile(path, folder / path.name)
    if (source / TEMPLATES).is_dir():
        shutil.copytree(source / TEMPLATES, folder / TEMPLATES, copy_function=shutil.copyfile)


def write_index(folder: Path) -> None:
    """Write the index of all weights files, unless one holds everything. Raises HalaError for a repeated tensor."""
    weight_map: dict[str, str] = {}
    size = 0
    paths = sorted(folder.glob("*.safetensors"))
    for path in paths:
        for tensor in tensors_of(path):
            if tensor.name in weight_map:
                raise HalaError(f"{tensor.name} is in {weight_map[tensor.name]} and in {path.name}")
            weight_map[tensor.name] = path.name
            size += tensor.size
    if [path.name for path in paths] != [SINGLE]:
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", "utf-8")


def finish(
    folder: Path,
    record: Mapping[str, Any],
    render: Callable[[Mapping[str, Any]], str],
    known: Mapping[str, FileFacts] = MappingProxyType({}),
    check_stop: Callable[[], None] = lambda: None,
) -> dict[str, FileFacts]:
    """Write the record and the card that ``render`` makes of it, last: the record lists every other file.

    ``known`` facts, by file name, are taken as they are: those files are not read again. Returns the listed files.
    """
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    listed = {path.name: known.get(path.name) or describe(path, check_stop) for path in paths}
    whole = {**record, "files": listed}
    write_json(folder / RECORD, whole, indent=2)
    (folder / CARD).write_text(render(whole), "utf-8")
    return listed
