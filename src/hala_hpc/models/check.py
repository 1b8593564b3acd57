"""Whether a model folder is sound: every file is there as it was written, every weight is finite. Needs numpy only."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from hala_hpc.config.errors import HalaError
from hala_hpc.config.words import plural
from hala_hpc.models.safetensors_file import Unreadable, not_finite, tensors_of
from hala_hpc.run.digests import changed
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
    return report(unsound(path))


def report(problems: Iterable[str]) -> ShardReport:
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
            faults += [f"{name}: {tensor} is not finite" for tensor in not_finite(folder / name, tensors)]
        except (OSError, Unreadable) as error:
            faults.append(f"{name}: {error}")
    return faults + _index_faults(folder, stored)


def _index_faults(folder: Path, stored: list[str]) -> list[str]:
    """Whether every tensor is stored once, and the index lists exactly those."""
    faults = [f"{name} is stored twice" for name, times in sorted(Counter(stored).items()) if times > 1]
    index = folder / "model.safetensors.index.json"
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
