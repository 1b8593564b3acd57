"""A model folder: files beside the weights, the index, the record of what made it, its card; and whether it is sound.

Sound means that every file is there as it was written and every weight is finite. The check needs numpy only.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from hala_hpc.config.errors import HalaError, plural
from hala_hpc.models.location import INDEX, SINGLE
from hala_hpc.models.safetensors_file import Unreadable, not_finite, tensors_of
from hala_hpc.run.digests import CARD, FileFacts, changed, digest_of
from hala_hpc.run.manifest import Shard
from hala_hpc.run.verify import ShardReport

RECORD: Final = "hala.json"
"""In the model folder: what made it, and size and digest of every other file but the card, which people edit."""
NEEDED: Final = ("config.json", "tokenizer.json", "tokenizer_config.json")


def require_files(label: str, folder: Path) -> None:
    """Refuse a model that lacks what every model made from it must have. Raises HalaError."""
    if missing := [name for name in NEEDED if not (folder / name).is_file()]:
        slow = (folder / "tokenizer.model").is_file() and missing[0] == "tokenizer.json"
        hint = "make it: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)" if slow else "copy it there"
        raise HalaError(f"{label}: {folder} has no {missing[0]}", hint)


def check_model(shard: Shard, path: Path) -> ShardReport:
    """Check a published model against what its export recorded (``run.verify``'s checker of a training)."""
    del shard
    return item_report(unsound(path))


def item_report(problems: Iterable[str]) -> ShardReport:
    """The report of a shard that is one item: done where there are no problems."""
    problems = tuple(problems)
    return ShardReport(done=0 if problems else 1, problems=problems)


def unsound(folder: Path) -> list[str]:
    """What is wrong with a model folder, in plain words; empty for a sound one. Reads every byte twice."""
    try:
        recorded: dict[str, Any] = json.loads((folder / RECORD).read_text("utf-8"))["files"]
    except (OSError, ValueError, KeyError) as error:
        return [f"{RECORD} cannot be read: {type(error).__name__}: {error}"]
    faults = [fault for name, facts in recorded.items() if (fault := changed(folder / name, facts))]
    faults += [f"{name} was not exported" for name in NEEDED if name not in recorded]
    weights = sorted(name for name in recorded if name.endswith(".safetensors"))
    if not weights:
        faults.append("no weights were exported")
    stored: list[str] = []
    for name in weights:
        try:
            tensors = tensors_of(folder / name)
            stored += [tensor.name for tensor in tensors]
            faults += [f"{name}: {tensor} is not finite" for tensor in not_finite(tensors)]
        except (OSError, Unreadable) as error:
            faults.append(f"{name}: {error}")
    return faults + _index_faults(folder, stored)


def _index_faults(folder: Path, stored: list[str]) -> list[str]:
    """Whether every tensor is stored once, and the index lists exactly those."""
    faults = [f"{name} is stored twice" for name, times in sorted(Counter(stored).items()) if times > 1]
    index = folder / INDEX
    if index.is_file():
        try:
            listed = set(json.loads(index.read_text("utf-8"))["weight_map"])
        except (ValueError, KeyError) as error:
            return [*faults, f"{index.name} cannot be read: {error}"]
        if missing := listed - set(stored):
            faults.append(f"{plural(len(missing), 'tensor')} of the index stored nowhere, e.g. {min(missing)}")
        if beyond := set(stored) - listed:
            faults.append(f"{plural(len(beyond), 'tensor')} not in the index, e.g. {min(beyond)}")
    return faults


REPORT: Final = "report.json"
"""In the model folder: what became of each tensor."""
TEMPLATES: Final = "additional_chat_templates"


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


def finish_model(
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
