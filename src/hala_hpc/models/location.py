"""A model as a recipe names it, and as files: where it is, whether it is all there, which weights exactly."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from hala_hpc.config import places
from hala_hpc.config.errors import HalaError, plural
from hala_hpc.config.schema import NamedModel
from hala_hpc.models.safetensors_file import Tensor, Unreadable, digest_of_finite, tensors_of
from hala_hpc.run import manifest
from hala_hpc.run.digests import digest_of
from hala_hpc.run.files import read_json
from hala_hpc.run.layout import GRID, RunDirectory
from hala_hpc.run.manifest import Facts

INDEX: Final = "model.safetensors.index.json"
SINGLE: Final = "model.safetensors"
TEXTS: Final = ("*.json", "*.model", "*.txt", "*.jinja")
"""Files besides the weights that decide what a model says: configuration, tokenizer, template."""
AGAIN: Final = "download the model again: an interrupted download goes on"
NOT_OF_THE_MODEL: Final = ("hala.json", INDEX)
CHOICE: Final = "best.json"
"""In the folder of an evaluation's run: what `hala best` chose."""
BEST: Final = "best"
"""In the place of an item of an evaluation's run: the model that CHOICE names. No item of such a run is called so, for
each is MODEL-BENCHMARK; in other runs it is an item like any other.
"""
_OF_ITEMS: Final = ("models", "checkpoints", "merges")
"""What runs count whose shards are models of their own."""


def locate(name: str, revision: str | None = None) -> dict[str, Path]:
    """The model folders that a name stands for, each by a label ('' where there is only one).

    ``name`` is a folder with a model, a finished run (a training's model, a merge's models, a quantized model), a grid
    of such runs, an item of either (RUN/ITEM, GRID/CELL, GRID/CELL/ITEM), the model that an evaluation chose
    (RUN/best), or a name on the hub whose files are in the cache.

    Raises HalaError where there is no model, or the run, or a run of the grid, is not finished.
    """
    path = Path(name)
    if (path / GRID).is_file():
        return _of_grid(path.resolve())
    if (path / "config.json").is_file():
        return {"": path.resolve()}
    if (path / "manifest.parquet").is_file():
        return _of_run(path.resolve())
    if path.is_absolute():
        if (path.parent / "manifest.parquet").is_file():
            return {"": of_item(path.parent.resolve(), path.name)}
        if grid := next((folder for folder in list(path.parents)[:2] if (folder / GRID).is_file()), None):
            return locate(_of_cell(grid.resolve(), path.relative_to(grid)))
        raise places.no_model(name)
    if path.is_dir():
        raise places.no_model(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return {"": Path(snapshot_download(name, revision=revision, local_files_only=True))}
    except (LocalEntryNotFoundError, ValueError, OSError) as error:
        raise HalaError(f"model '{name}' is not in the cache", "`hala prefetch RECIPE` first") from error


def locate_one(name: str, revision: str | None = None) -> Path:
    """``locate`` for what must be a single model. Raises HalaError for several as well."""
    return the_one(name, locate(name, revision))


def the_one(name: str, models: Mapping[str, Path]) -> Path:
    """The only one of the models that ``name`` stands for. Raises HalaError where there are several."""
    if len(models) != 1:
        raise HalaError(f"{name} holds {len(models)} models: {', '.join(models)}", f"name one: {_example(name)}")
    return next(iter(models.values()))


def labelled(models: Mapping[str, NamedModel]) -> dict[str, tuple[str, Path]]:
    """The folders of ``task.models`` with their keys there, by label: KEY, or KEY-PART of several models in a run.

    Raises HalaError for two models of one label, and as ``locate``.
    """
    by_label: dict[str, tuple[str, Path]] = {}
    for key, model in models.items():
        for part, folder in locate(model.name, model.revision).items():
            label = f"{key}-{part}" if part else key
            if label in by_label:
                raise HalaError(f"task.models: two models are called '{label}'", "choose another label")
            by_label[label] = (key, folder)
    return by_label


def config(folder: Path) -> dict[str, Any]:
    """A model's ``config.json``. Raises HalaError where it cannot be read."""
    try:
        content: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise HalaError(f"{folder}/config.json cannot be read: {error}") from error
    return content


def weights(folder: Path) -> dict[Path, list[Tensor]]:
    """The safetensors files of a model, by name, with their tensors.

    Raises HalaError where files are missing, or one is cut short or lacks a tensor that the index says it holds. Only
    headers are read.
    """
    index = folder / INDEX
    if index.is_file():
        try:
            places: dict[str, str] = dict(json.loads(index.read_text("utf-8"))["weight_map"])
            paths = [folder / name for name in sorted(set(places.values()))]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise HalaError(f"{index} cannot be read: {error}", AGAIN) from error
    elif (folder / SINGLE).is_file():
        places, paths = {}, [folder / SINGLE]
    else:
        raise HalaError(f"{folder}: no {SINGLE} and no {INDEX}", "only models in safetensors files are read")
    if missing := [path.name for path in paths if not path.is_file()]:
        raise HalaError(f"{folder}: {len(missing)} of {len(paths)} weights files are missing, e.g. {missing[0]}", AGAIN)
    files: dict[Path, list[Tensor]] = {}
    for path in paths:
        with _whole(path):
            files[path] = tensors_of(path)
    stored = {(tensor.name, tensor.path.name) for tensors in files.values() for tensor in tensors}
    if lost := sorted(places.items() - stored):
        raise HalaError(
            f"{folder}: {plural(len(lost), 'tensor')} of the index are missing from the files, e.g. {lost[0][0]}", AGAIN
        )
    return files


def sound_digest(folder: Path, count: Callable[[int], None] = lambda _: None) -> str:
    """``digest``, for a plan. Raises HalaError where a weight is NaN or infinite: no sound model can be made of it."""
    return digest(folder, count, digest_of_weights)


def refuse_changed(folder: Path, planned: str, check_stop: Callable[[], None]) -> None:
    """Raises HalaError where the ``digest`` of a model is not the planned one. ``check_stop`` may raise."""
    if digest(folder, lambda _: check_stop()) != planned:
        raise changed(folder)


def changed(path: Path) -> HalaError:
    """The refusal of a model, or a file of it, that is not what a run was planned with."""
    return HalaError(f"{path} changed since the run was planned", "plan a new run: no result fits two models")


def digest_of_weights(path: Path) -> str:
    """Digest of one file of weights that are all finite. Raises HalaError naming file and tensor."""
    with _whole(path):
        return digest_of_finite(path)


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, Unreadable) as error:
        raise HalaError(f"{path}: {error}", AGAIN) from error


def digest(
    folder: Path, count: Callable[[int], None] = lambda _: None, of_weights: Callable[[Path], str] = digest_of
) -> str:
    """Digest (BLAKE2b, 16 bytes, hex) of everything that decides what a model says: weights, configuration, tokenizer.

    It depends on contents, not on names, sizes or times, so a folder that was written over has another. Reads every
    byte, about a gigabyte a second and core; ``count`` takes the number of bytes read so far.
    """
    digests = dict.fromkeys(weights(folder), of_weights)
    others = {path for kind in TEXTS for path in folder.glob(kind)} - {folder / name for name in NOT_OF_THE_MODEL}
    digests |= dict.fromkeys(sorted(others), digest_of)
    hashed, read = hashlib.blake2b(digest_size=16), 0
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        for file, of_file in zip(digests, threads.map(lambda file: digests[file](file), digests), strict=True):
            hashed.update(f"{file.name}\0{of_file}\0".encode())
            read += file.stat().st_size
            count(read)
    return hashed.hexdigest()


def items(facts: Facts) -> list[str]:
    """The names of a run's models, such as ``t0.50``; none where it makes one without a name, or no model."""
    return [str(item["name"]) for item in facts.items] if facts.unit in _OF_ITEMS else []


def of_item(run: Path, name: str) -> Path:
    """The folder of the model that a run's item, or BEST, stands for; of the other items none need be finished.

    Raises HalaError, which lists the items, for another name, and where that model is not there, or not as chosen.
    """
    outputs, plan = manifest.open_run(run)
    names = items(plan.facts)
    if name == BEST and _is_evaluation(plan.facts):
        return _chosen(run)
    if plan.facts.unit not in (*_OF_ITEMS, "files"):
        raise _makes_none(run, plan.facts)
    if name not in names:
        raise HalaError(f"{run.name}: no model '{name}'", f"it makes: {', '.join(names) or 'one, without a name'}")
    folder = outputs.shard_output(names.index(name))
    if not (folder / "config.json").is_file():
        raise HalaError(f"{run.name}: {name} is not there", f"`hala status {run}`")
    return folder


def owner_of(model: Path) -> tuple[Path, str | None] | None:
    """The run that made the model in a folder, and the item that it is, where it made several; None for any other."""
    run = next((folder for folder in list(model.parents)[2:3] if (folder / "manifest.parquet").is_file()), None)
    if run is None or not model.name.isdecimal():
        return None
    names = items(manifest.read(run / "manifest.parquet").facts)
    return run, names[int(model.name)] if len(names) > 1 else None


def _is_evaluation(facts: Facts) -> bool:
    """A comparison counts benchmarks too, and puts its report together in a last step."""
    return facts.unit == "benchmarks" and not facts.assembled


def _makes_none(run: Path, facts: Facts) -> HalaError:
    chosen = f"{places.RUN}{run.name}/{BEST} is the model that `hala best {run.name}` chose"
    hint = chosen if _is_evaluation(facts) else "name a run that trained, exported, merged or quantized"
    return HalaError(f"{run} makes no model: it is a run of {facts.unit}", hint)


def _chosen(run: Path) -> Path:
    """The folder of the model that was chosen of an evaluation.

    Raises HalaError where none was, and where it is gone or another by now. Reads all of it.
    """
    choice = read_json(run / CHOICE)
    if not choice:
        raise HalaError(f"{run}: no model of it was chosen yet", f"`hala best {run.name}`")
    model, folder = choice.get("model"), Path(str(choice.get("path")))
    if not (folder / "config.json").is_file():
        raise HalaError(
            f"{run / CHOICE}: the chosen model {model} is not at {folder} any more", "put it back, or choose again"
        )
    if digest(folder) != choice.get("weights"):
        raise HalaError(
            f"{run / CHOICE}: {folder} has changed since {model} was evaluated", "evaluate it again, as a new run"
        )
    return folder


def _example(name: str) -> str:
    """How one of several models of a run or a grid is named."""
    run = Path(name) / "manifest.parquet"
    return f"{name}/{items(manifest.read(run).facts)[0] if run.is_file() else 'CELL'}"


def _cells(grid: Path) -> list[dict[str, Any]]:
    try:
        listed: list[dict[str, Any]] = json.loads((grid / GRID).read_text("utf-8"))["cells"]
        return [cell | {"name": str(cell["name"]), "state": str(cell["state"])} for cell in listed]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HalaError(f"{grid / GRID} cannot be read: {error}", "name its runs one by one") from error


def _of_cell(grid: Path, named: Path) -> str:
    """What ``CELL`` or ``CELL/ITEM`` of a grid is, where the cell has no run of its own. Raises HalaError."""
    name, *item = named.parts
    cells = {cell["name"]: cell for cell in _cells(grid)}
    state = cells[name]["state"] if name in cells else "none"
    if state == "same":
        return str(grid.joinpath(cells[name]["same_as"], *item))
    if state == "as_is" and not item:
        return str(cells[name]["model"])
    if state == "run" and not (grid / name).exists():
        raise HalaError(f"{grid / name} is gone", "its run was removed")
    some = ", ".join(cell for cell in cells if cells[cell]["state"] != "excluded")
    raise HalaError(f"{grid}: no model '{named}'", f"its cells: {some}")


def _of_grid(grid: Path) -> dict[str, Path]:
    """The models of all cells, by the cell's name, those that stand for a model as it is included."""
    cells = {cell["name"]: cell for cell in _cells(grid) if cell["state"] in ("run", "as_is")}
    folders: dict[str, Path] = {}
    wanting = []
    for name, cell in cells.items():
        try:
            models = locate(cell["model"]) if cell["state"] == "as_is" else _of_run(grid / name)
        except HalaError:
            wanting.append(name)
            continue
        folders |= {f"{name}-{part}" if part else name: path for part, path in models.items()}
    if wanting:
        raise HalaError(
            f"{grid}: {len(wanting)} of its {len(cells)} cells have no model yet: {', '.join(wanting)}",
            f"`hala status {grid}`; or name the cells that have one, as {grid.name}/CELL",
        )
    return folders


def _of_run(run: Path) -> dict[str, Path]:
    facts = manifest.read(run / "manifest.parquet").facts
    if facts.unit not in (*_OF_ITEMS, "files"):
        raise _makes_none(run, facts)
    whole = run / "final"
    if (whole / "config.json").is_file():
        return {"": whole}
    if facts.assembled:
        raise HalaError(f"{run}: its last step, which puts the model together, is not done", f"`hala resume {run}`")
    outputs = RunDirectory(run, facts.suffix)
    count = max(1, len(facts.items))
    folders = {
        str(facts.items[shard]["name"]) if count > 1 else "": outputs.shard_output(shard) for shard in range(count)
    }
    if wanting := [path for path in folders.values() if not (path / "config.json").is_file()]:
        raise HalaError(f"{run}: {len(wanting)} of its {count} models are not there", f"`hala status {run}`")
    return folders
