"""What a run was made from, back to what is not ours, and under which licences.

The frozen recipes of our runs name it, through any number of stages: a merge of a model that was trained on a dataset
that another model translated names all of them. The licence of what is not ours is the recipe's ``licence``, else that
of the card beside it or in the hub's cache.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from hala_hpc.config import frozen
from hala_hpc.models.card import name_of
from hala_hpc.models.folder import RECORD
from hala_hpc.publish import cards
from hala_hpc.publish.licences import Origin, normal
from hala_hpc.run import manifest
from hala_hpc.run.digests import CARD
from hala_hpc.run.files import read_json

UP: Final = 4
"""A run may be so many folders above a file of it: RUN/shards/000/000000/model.safetensors."""
IN_CACHE: Final = re.compile(r"/models--([\w.]+(?:-[\w.]+)*)--([\w.-]+)/snapshots/([0-9a-f]{40})$")
"""A model named by its folder in the hub's cache."""

RecipePart = Mapping[str, Any]
"""A part of a frozen recipe of any task, or what a manifest has of a file that was read."""
FindCard = Callable[[str, str, str | None], Path | None]
"""(name on the hub, model or dataset, revision) to the card's file, where it can be had."""


def of_run(run: Path, find_card: FindCard) -> list[Origin]:
    """The sources of the run at ``run``, each once. ``find_card`` gets cards from the hub or its cache.

    A work's licence that one of several recipes names is known for all of them.
    """
    sources: dict[tuple[str, str, str | None], Origin] = {}
    for source in _of_run(run, find_card, frozenset({run.resolve()})):
        sources.setdefault((source.name, source.role, source.licence), source)
    known = {_work(source) for source in sources.values() if source.licence is not None}
    return [source for source in sources.values() if source.licence is not None or _work(source) not in known]


def _work(source: Origin) -> tuple[str, str, Path | None]:
    """What a source is, whoever names it: a name on the hub, or a folder."""
    return source.name, source.role, None if source.on_hub or source.folder is None else source.folder.resolve()


def owner(path: Path) -> Path | None:
    """The run that a file or folder is part of."""
    for folder in (path, *list(path.parents)[:UP]):
        if (folder / "manifest.parquet").is_file() and (folder / "recipe.yaml").is_file():
            return folder
    return None


def _of_run(run: Path, find_card: FindCard, seen: frozenset[Path]) -> Iterator[Origin]:
    facts = manifest.read(run / "manifest.parquet").facts
    earlier = facts.redo["earlier"] if facts.redo else []  # whose rows are kept, and so what wrote them
    writers = (_model(run["writer"], "writer") for run in earlier if run["writer"])
    for source in (*_named(frozen.read(run), facts.sources), *writers):
        if source.licence is not None or source.folder is None:
            yield from _by_name(source, find_card)
        elif (stage := owner(source.folder)) is None:
            yield from _of_folder(source, source.folder, find_card)
        elif stage.resolve() not in seen:
            below = _of_run(stage, find_card, seen | {stage.resolve()})
            yield from (replace(inner, made=inner.made or stage.name) for inner in below)


def _by_name(source: Origin, find_card: FindCard) -> list[Origin]:
    """A name on the hub; one that is not there is that of a folder that is not here (from a record)."""
    if source.licence is not None or not source.on_hub:
        return [source]
    card = find_card(source.name, "dataset" if source.role == "data" else "model", source.revision)
    if card is None:
        return [source]
    source = replace(source, folder=card.parent)
    return _licensed(source, cards.licences_in(card), "its card on the hub") or [source]


def _of_folder(source: Origin, place: Path, find_card: FindCard) -> list[Origin]:
    """A folder that is not a run's: by its card, or the record of a model that was ours."""
    if licensed := _licensed(source, _beside(place, source.role), "its card"):
        return licensed
    recipe = read_json(place / RECORD).get("recipe")
    below: list[Origin] = []
    for inner in _named(recipe if isinstance(recipe, dict) else {}, []):
        # a record names folders by their last part alone; should it have more, that is nobody's business
        below += _by_name(replace(inner, folder=None), find_card)
    return [replace(inner, made=place.name) for inner in below] or [source]


def _licensed(source: Origin, licences: Sequence[str], named_by: str) -> list[Origin]:
    """The source once for each of its licences."""
    return [replace(source, licence=licence, named_by=named_by) for licence in licences]


def _beside(place: Path, role: str) -> list[str]:
    """The licences in a folder's card; a dataset's rows are in a folder of their own below it, as a rule."""
    own = cards.licences_in(place / CARD)
    return own or (cards.licences_in(place.parent / CARD) if role == "data" else [])


def _named(recipe: RecipePart, read: Sequence[RecipePart]) -> Iterator[Origin]:
    """Every model and dataset that a recipe of any task names, once for each folder where it lies.

    ``read``: the files, from the manifest.
    """
    task, data, model = (recipe.get(section) or {} for section in ("task", "data", "model"))
    for name, dataset in {**(task.get("datasets") or {}), **(task.get("sources") or {})}.items():
        yield from _datasets(dataset, [source for source in read if source.get("dataset") == name])
    calibration = task.get("calibration") or {}
    if calibration.get("hub") or calibration.get("path"):
        yield from _datasets(calibration, [])
    has_data = bool(data.get("hub") or data.get("path"))
    if has_data:
        yield from _datasets(data, read)
    if model.get("name") and (recipe.get("engine") or {}).get("kind") != "echo":
        yield _model(model, "writer" if has_data or task.get("kind") == "generate" else "model")
    given = task.get("models") or []
    for item in [*(given.values() if isinstance(given, dict) else given), task.get("base_model")]:
        source = item if isinstance(item, dict) else {"name": item}
        if source.get("name"):
            yield _model(source, "model")


def _model(model: RecipePart, role: str) -> Origin:
    name = str(model["name"])
    source = _as_said(model, Origin(name, role))
    if cached := IN_CACHE.search(name):
        return replace(source, name=f"{cached[1]}/{cached[2]}", revision=cached[3], on_hub=True)
    if name.startswith("/"):
        return replace(source, name=name_of(Path(name)), folder=Path(name))
    return replace(source, revision=model.get("revision"), on_hub="/" in name)


def _datasets(data: RecipePart, read: Sequence[RecipePart]) -> list[Origin]:
    """A dataset on the hub, or each folder of one; without any (from a record) its first path's name."""
    if data.get("hub"):
        rows = sum(int(source["rows"]) for source in read) if read else None
        name = str(data["hub"])
        return [_as_said(data, Origin(name, "data", rows=rows, revision=data.get("revision"), on_hub="/" in name))]
    by_folder: dict[Path, list[tuple[str, int]]] = {}
    for source in read:
        file = Path(str(source["original"]))
        by_folder.setdefault(file.parent, []).append((file.name, int(source["rows"])))
    origins = [
        Origin(
            files[0][0] if len(files) == 1 else folder.name, "data", rows=sum(rows for _, rows in files), folder=folder
        )
        for folder, files in by_folder.items()
    ]
    paths = [Path(str(path)) for path in data.get("path") or []]
    origins += [Origin(path.name, "data", folder=path) for path in paths if not read and path.is_absolute()]
    return [_as_said(data, origin) for origin in origins or [Origin(paths[0].name if paths else "", "data")]]


def _as_said(part: RecipePart, source: Origin) -> Origin:
    """The source with the licence that its part of the recipe names, if any."""
    licence = part.get("licence")
    return source if licence is None else replace(source, licence=normal(licence), named_by="the recipe")
