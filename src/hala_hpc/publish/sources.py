"""What a run was made from, back to what is not ours, and under which licences.

The frozen recipes of our runs name it, through any number of stages: a merge of a model that was trained on a dataset
that another model translated names all of them. The licence of what is not ours is the recipe's ``licence``, else that
of the card beside it or in the hub's cache.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from hala_hpc.config import frozen
from hala_hpc.models.folder import RECORD
from hala_hpc.publish import cards
from hala_hpc.publish.licences import Origin, normal
from hala_hpc.run import manifest
from hala_hpc.run.files import read_json

UP: Final = 4
"""A run may be so many folders above a file of it: RUN/shards/000/000000/model.safetensors."""
CARD: Final = "README.md"
IN_CACHE: Final = re.compile(r"/models--([\w.]+(?:-[\w.]+)*)--([\w.-]+)/snapshots/([0-9a-f]{40})$")
"""A model named by its folder in the hub's cache."""

RecipePart = Mapping[str, Any]
"""A part of a frozen recipe of any task, or what a manifest has of a file that was read."""
FindCard = Callable[[str, str, str | None], Path | None]
"""(name on the hub, model or dataset, revision) to the card's file, where it can be had."""


@dataclass(frozen=True)
class RecipeSource:
    """A model or dataset as a recipe names it.

    ``folders``: where it lies, with a name for each and the rows that were read from there.
    """

    name: str
    role: str
    licence: str | None = None
    revision: str | None = None
    rows: int | None = None
    folders: tuple[tuple[Path, str, int | None], ...] = ()


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
    read = manifest.read(run / "manifest.parquet").facts.sources
    for named in _named(frozen.read(run), read):
        yield from _of_named(named, find_card, seen)


def _of_named(named: RecipeSource, find_card: FindCard, seen: frozenset[Path]) -> Iterator[Origin]:
    if not named.folders:
        yield from _by_name(named, find_card)
    for place, called, rows in named.folders:
        run = owner(place)
        if named.licence is not None or run is None:
            about = Origin(called, named.role, rows=rows, folder=place)
            yield from _of_folder(named, about, place, find_card)
        elif run.resolve() not in seen:
            below = _of_run(run, find_card, seen | {run.resolve()})
            yield from (replace(source, made=source.made or run.name) for source in below)


def _by_name(named: RecipeSource, find_card: FindCard) -> list[Origin]:
    """A name on the hub; one without a slash is that of a folder that is not here (from a record)."""
    about = Origin(named.name, named.role, None, "", named.rows, named.revision, on_hub="/" in named.name)
    if named.licence is not None or not about.on_hub:
        return _licensed(about, named, []) or [about]
    card = find_card(named.name, "dataset" if named.role == "data" else "model", named.revision)
    if card is None:
        return [about]
    about = replace(about, folder=card.parent)
    return _licensed(about, named, cards.licences_in(card), "its card on the hub") or [about]


def _of_folder(named: RecipeSource, about: Origin, place: Path, find_card: FindCard) -> list[Origin]:
    """A folder that is not a run's: by what the recipe says, its card, or the record of a model that was ours."""
    if licensed := _licensed(about, named, [] if named.licence else _beside(place, named.role)):
        return licensed
    sources, recipe = [], read_json(place / RECORD).get("recipe")
    for inner in _named(recipe if isinstance(recipe, dict) else {}, []):
        # a record names folders by their last part alone; should it have more, that is nobody's business
        name = Path(inner.name).name if inner.folders else inner.name
        sources += _by_name(replace(inner, name=name, folders=()), find_card)
    return [replace(source, made=place.name) for source in sources] or [about]


def _licensed(about: Origin, named: RecipeSource, on_card: Sequence[str], named_by: str = "its card") -> list[Origin]:
    """The source once for each of its licences: the recipe's, else those on its card."""
    if named.licence is not None:
        return [replace(about, licence=normal(named.licence), named_by="the recipe")]
    return [replace(about, licence=licence, named_by=named_by) for licence in on_card]


def _beside(place: Path, role: str) -> list[str]:
    """The licences in a folder's card; a dataset's rows are in a folder of their own below it, as a rule."""
    own = cards.licences_in(place / CARD)
    return own or (cards.licences_in(place.parent / CARD) if role == "data" else [])


def _named(recipe: RecipePart, read: Sequence[RecipePart]) -> Iterator[RecipeSource]:
    """Every model and dataset that a recipe of any task names. ``read``: the files, from the manifest."""
    task, data, model = (recipe.get(section) or {} for section in ("task", "data", "model"))
    for name, dataset in (task.get("datasets") or {}).items():
        yield _dataset(dataset, [source for source in read if source.get("dataset") == name])
    calibration = task.get("calibration") or {}
    if calibration.get("hub") or calibration.get("path"):
        yield _dataset(calibration, [])
    has_data = bool(data.get("hub") or data.get("path"))
    if has_data:
        yield _dataset(data, read)
    if model.get("name") and (recipe.get("engine") or {}).get("kind") != "echo":
        yield _model(model, "writer" if has_data else "model")
    given = task.get("models") or []
    for item in [*(given.values() if isinstance(given, dict) else given), task.get("base_model")]:
        source = item if isinstance(item, dict) else {"name": item}
        if source.get("name"):
            yield _model(source, "model")


def _model(model: RecipePart, role: str) -> RecipeSource:
    name = str(model["name"])
    if cached := IN_CACHE.search(name):
        return RecipeSource(f"{cached[1]}/{cached[2]}", role, model.get("licence"), cached[3])
    folders = ((Path(name), Path(name).name, None),) if name.startswith("/") else ()
    return RecipeSource(name, role, model.get("licence"), model.get("revision"), folders=folders)


def _dataset(data: RecipePart, read: Sequence[RecipePart]) -> RecipeSource:
    licence, revision = data.get("licence"), data.get("revision")
    rows = sum(int(source["rows"]) for source in read) if read else None
    if data.get("hub"):
        return RecipeSource(str(data["hub"]), "data", licence, revision, rows)
    by_folder: dict[Path, list[tuple[str, int]]] = {}
    for source in read:
        file = Path(str(source["original"]))
        by_folder.setdefault(file.parent, []).append((file.name, int(source["rows"])))
    folders: list[tuple[Path, str, int | None]] = [
        (folder, files[0][0] if len(files) == 1 else folder.name, sum(rows for _, rows in files))
        for folder, files in by_folder.items()
    ]
    paths = [Path(str(path)) for path in data.get("path") or []]
    folders += [(path, path.name, None) for path in paths if not read and path.is_absolute()]
    return RecipeSource(paths[0].name if paths else "", "data", licence, revision, rows, tuple(folders))
