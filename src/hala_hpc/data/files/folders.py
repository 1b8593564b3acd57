"""The data files of a folder: which they are, of which split, in which order, and what the names of folders say."""

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Data
from hala_hpc.data.files import runs
from hala_hpc.data.files.formats import ENDINGS, ending_of
from hala_hpc.data.schema import Row

LEFT_OUT: Final = "files left out of data.path's folders: not data by their names"
QUARANTINE: Final = "files left out: quarantine.parquet of a run, rows that it could not do (named, the file is read)"
NOT_NAMED: Final = "files left out of data.path's folders: README.md or state.json name others as the data"
_ABOUT: Final = re.compile(
    r"(readme|licen[cs]e|citation|changelog).*|requirements.*\.txt|(config|state|dataset_infos?|dataset_dict|croissant)\.json",
    re.DOTALL,
)
"""Files that lie beside data and describe it."""
_SPLITS: Final = re.compile(r"(?:^|[-._ 0-9])(train|valid|val|dev|test|eval)", re.IGNORECASE)
_HIVE: Final = re.compile(r"([^=]+)=(.*)", re.DOTALL)
_NULL: Final = "__HIVE_DEFAULT_PARTITION__"


def files_of(root: Path, data: Data, notes: Counter[str]) -> list[Path]:
    """The data files of a folder, those of ``data.split`` where it has splits. ``notes`` counts what is left out.

    Splits are found as on the hub: by what README.md says, by ``save_to_disk``, by the names of files and folders.
    Raises HalaError where the folder has several splits and ``data.split`` names none, or one that it lacks.
    """
    files = sorted(_walk(root, notes), key=natural)
    named = _named_splits(root, files, data)
    splits = _splits_by_name(root, files) if named is None else named
    if named is not None:
        every = sorted(set().union(*named.values()), key=natural)
        notes.update({NOT_NAMED: len(files) - len(every)} if len(every) < len(files) else {})
        files = every
    if data.split is None:
        if len(splits) > 1:
            listed = ", ".join(f"{name} ({len(paths)})" for name, paths in splits.items())
            hint = f"data.split={next(iter(splits))} takes one, data.split=all takes all"
            raise HalaError(f"data.path: {root} holds several splits: {listed}", hint)
        return next(iter(splits.values())) if named else files
    if data.split == "all":
        return files
    if data.split not in (splits or {"train"}):
        raise HalaError(
            f"data.split: {root} has no split '{data.split}'", f"splits: {', '.join(splits) or 'none, so all is train'}"
        )
    return splits.get(data.split, files)


def natural(path: Path) -> tuple[Any, ...]:
    """A key that sorts numbers in names by value: part-2 before part-10."""
    parts = [
        [(0, int(piece), "") if piece.isdecimal() and piece.isascii() else (1, 0, piece) for piece in pieces]
        for pieces in (re.split(r"([0-9]+)", part) for part in path.parts)
    ]
    return parts, str(path)


def is_file(path: Path) -> bool:
    """Whether there is a file. Raises HalaError for a link to nothing."""
    if path.is_symlink() and not path.exists():
        raise HalaError(f"data.path: {path} is a link to {path.readlink()}, which is not there")
    return path.is_file()


def is_quarantine(file: Path) -> bool:
    """Whether ``hala collect`` wrote this file beside a dataset."""
    try:
        return file.name == "quarantine.parquet" and "hala_error" in pq.read_schema(file).names
    except (OSError, pa.ArrowException):
        return False  # whoever reads it will say what is wrong


def columns_of(file: Path, root: Path) -> dict[str, str | None]:
    """What the folders between ``root`` and a file say as ``name=value``, as Hive, Spark and Arrow write them."""
    matches = filter(None, map(_HIVE.fullmatch, file.relative_to(root).parts[:-1]))
    pairs = [(unquote(match[1]), unquote(match[2])) for match in matches]
    return {name: None if value == _NULL else value for name, value in pairs}


def _walk(root: Path, notes: Counter[str]) -> Iterator[Path]:
    for folder, inner, names in os.walk(root, onerror=_refuse, followlinks=True):
        here = Path(folder)
        if runs.is_run(here):
            raise HalaError(f"data.path: {root} holds the run {here}", "name the runs themselves, and files one by one")
        inner[:] = [name for name in inner if not name.startswith((".", "_")) and not _is_loop(here / name)]
        listed = _listed_by_state(here) if "state.json" in names else None
        for name in names:
            file = here / name
            if name.startswith((".", "_")) or _ABOUT.fullmatch(name.lower()):
                continue
            if listed is not None and name not in listed:
                notes[NOT_NAMED] += 1
            elif ending_of(file) not in ENDINGS:
                notes[LEFT_OUT] += 1
            elif is_quarantine(file):
                notes[QUARANTINE] += 1
            elif is_file(file):
                yield file


def _refuse(error: OSError) -> None:
    raise HalaError(f"data.path: {error.filename}: {error.strerror}") from error


def _is_loop(folder: Path) -> bool:
    """Whether a folder is a link to one that it lies in."""
    return folder.is_symlink() and folder.resolve() in [parent.resolve() for parent in folder.parents]


def _listed_by_state(folder: Path) -> set[str] | None:
    """Files of a dataset that ``save_to_disk`` wrote; caches of later maps lie beside them."""
    listed = _json(folder / "state.json").get("_data_files")
    try:
        return None if listed is None else {str(item["filename"]) for item in listed}
    except (TypeError, KeyError):
        return None


def _named_splits(root: Path, files: list[Path], data: Data) -> dict[str, list[Path]] | None:
    """Splits where the folder itself names its data files; None where it does not."""
    saved = _json(root / "dataset_dict.json").get("splits") if (root / "dataset_dict.json").is_file() else None
    if isinstance(saved, list):
        return {str(split): [file for file in files if file.is_relative_to(root / str(split))] for split in saved}
    readme = root / "README.md"
    if not readme.is_file() or b"\nconfigs:" not in readme.read_bytes().replace(b"\r", b""):
        if data.hub_config is not None:
            raise HalaError(f"data.hub_config: the README.md of {root} names no configurations", "leave it out")
        return None
    return _splits_of_card(root, files, data.hub_config)


def _splits_of_card(root: Path, files: list[Path], config: str | None) -> dict[str, list[Path]] | None:
    from datasets.data_files import resolve_pattern, sanitize_patterns
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCardData
    from huggingface_hub.repocard import metadata_load

    try:
        card: Any = DatasetCardData(**(metadata_load(root / "README.md") or {}))
        configs: Mapping[str, Any] = MetadataConfigs.from_dataset_card_data(card)
        name = config or ("default" if "default" in configs else next(iter(configs)) if len(configs) == 1 else None)
        if name is None or name not in configs:
            raise HalaError(
                f"data.hub_config: {'which of several in' if name is None else f'no {name!r} in'} {root / 'README.md'}",
                f"valid: {', '.join(configs)}",
            )
        base = root / str(configs[name].get("data_dir") or "")
        if "data_files" not in configs[name]:
            inside = [file for file in files if file.is_relative_to(base)]
            return _splits_by_name(base, inside) or {"train": inside}
        result = {}
        for split, patterns in sanitize_patterns(configs[name]["data_files"]).items():
            paths = {os.path.abspath(path) for pattern in patterns for path in resolve_pattern(pattern, str(base))}  # noqa: PTH100
            result[split] = [file for file in files if str(file) in paths]
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise HalaError(
            f"{root / 'README.md'}: its configs cannot be followed: {' '.join(str(error).split())[:200]}",
            "mend them, or give the files by name or glob",
        ) from error
    return result


def _splits_by_name(root: Path, files: list[Path]) -> dict[str, list[Path]]:
    """As the hub reads names such as ``data/train-00000-of-00002.parquet``, ``test.jsonl`` and ``dev/a.csv``."""
    if not any(_SPLITS.search(part) for file in files for part in file.relative_to(root).parts):
        return {}
    from datasets.data_files import get_data_patterns, resolve_pattern

    named: dict[str, set[str]] = {}
    try:
        patterns = get_data_patterns(str(root))
        for split, pattern in ((split, pattern) for split, some in patterns.items() for pattern in some):
            with contextlib.suppress(FileNotFoundError):
                named.setdefault(str(split), set()).update(resolve_pattern(pattern, str(root)))
    except (ValueError, OSError):
        return {}
    splits = {split: [file for file in files if str(file) in paths] for split, paths in named.items()}
    return {} if list(patterns.values()) == [["**"]] else {split: some for split, some in splits.items() if some}


def _json(path: Path) -> Row:
    try:
        value = orjson.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
