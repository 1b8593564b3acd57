"""What a recipe takes of other runs: the addresses in it (``run:NAME``, ``run:NAME/ITEM``, or a path), looked up.

Data stay an address of a run, whose rows are collected if nobody has done that yet. A model becomes the folder that it
is in now: what ``run:NAME/best`` stands for may be another tomorrow.
"""

import copy
import dataclasses
import glob
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NotRequired, TypedDict

from hala_hpc.config import places
from hala_hpc.config.errors import HalaError, within
from hala_hpc.config.schema import Data, NamedModel, Recipe
from hala_hpc.data.files import runs
from hala_hpc.data.files.formats import ENDINGS, ending_of
from hala_hpc.data.outputs.collect import collected
from hala_hpc.models import location
from hala_hpc.run import manifest
from hala_hpc.run.layout import GRID, known_runs
from hala_hpc.tasks.evaluate.benchmarks import Setting
from hala_hpc.tasks.score.texts import Column

Say = Callable[[str], None]
_DEPTH: Final = 4
"""A path that leads into a run or a grid is at most so many folders below it: GRID/CELL/final/data/train.parquet."""


class Take(TypedDict):
    """One address of a plan: the ``key`` that has it, the ``address``, and the ``path`` that it is now.

    ``recipe_digest`` and ``planned_at`` are those of the run that it names; a grid has neither.
    """

    key: str
    address: str
    path: str
    recipe_digest: NotRequired[str]
    planned_at: NotRequired[str]


@dataclass
class Taking:
    """Looks up the addresses of recipes with the runs below ``root``; each once, for it may mean much reading.

    ``say`` is told of what takes its time.
    """

    root: Path
    say: Say
    _rows: dict[Path, Path] = field(default_factory=dict)
    _models: dict[str, dict[str, Path]] = field(default_factory=dict)

    def of(self, recipe: Recipe, with_model: bool, with_data: bool = True) -> tuple[Recipe, list[Take]]:
        """The recipe with its models as the folders that they are, and all that it takes of runs.

        ``with_model``: the recipe's own ``model`` is a model, and is loaded. Raises HalaError, with the key, for a run
        that is not there or not finished, and an item that it does not have.
        """
        recipe, takes = copy.deepcopy(recipe), list[Take]()
        for key, section in _sections(recipe, ""):
            if isinstance(section, Data) and with_data:
                takes += self._data(key, section)
            elif isinstance(section, Setting) and section.data:
                takes += self._questions(key, section, section.data)
            elif isinstance(section, NamedModel) and (with_model or section is not recipe.model):
                takes += self._model(key, section, section is recipe.model)
        return recipe, takes

    def _data(self, key: str, data: Data) -> Iterator[Take]:
        for entry in data.path:
            with within(f"{key}.path"):
                path = self._there(entry)
                run = None if path is None else runs.run_of(path)
                # A score reads what the workers wrote, for it counts the rows in quarantine too.
                is_scored = isinstance(data, Column) and run == path and len(data.path) == 1
                if run is not None and not is_scored:
                    path = self._rows_of(run)
            if path is not None:
                yield self._take(f"{key}.path", Path(entry), path)

    def _questions(self, key: str, setting: Setting, data: str) -> Iterator[Take]:
        """A harness reads whatever files are in a folder: of a run it gets the one that holds rows alone."""
        with within(f"{key}.data"):
            path = self._there(data)
            if path is not None and (run := runs.run_of(path)) is not None:
                rows = self._rows_of(run)
                path = rows / "data" if rows.is_dir() else rows
        if path is not None:
            setting.data = str(path)
            yield self._take(f"{key}.data", Path(data), path)

    def _rows_of(self, run: Path) -> Path:
        if run not in self._rows:
            self._rows[run] = collected(run, self.say)
        return self._rows[run]

    def _model(self, key: str, model: NamedModel, is_alone: bool) -> Iterator[Take]:
        """``is_alone``: it must be a single model; else a name may stand for all models of a run or a grid."""
        for name in ("name", "tokenizer"):
            value = getattr(model, name, None)
            if not value:
                continue
            with within(f"{key}.{name}"):
                if (path := self._there(value)) is None:
                    continue
                if value not in self._models:
                    self._models[value] = location.locate(value)
                models = self._models[value]
                if is_alone or name == "tokenizer":
                    models = {"": location.the_one(value, models)}
            if models.keys() == {""}:
                path = models[""]
                setattr(model, name, str(path))
            yield self._take(f"{key}.{name}", Path(value), path)

    def _there(self, value: str) -> Path | None:
        """The path of a value that leads into a run or a grid; None for any other. Raises HalaError for no such run."""
        path = Path(value)
        if not path.is_absolute():
            return None
        if self._owner(path) is not None:
            return path
        if path.is_relative_to(self.root) and path != self.root and not glob.has_magic(value):
            name = path.relative_to(self.root).parts[0]
            if not (self.root / name).exists() and ending_of(Path(name)) not in ENDINGS:
                raise HalaError(f"no run '{name}'", known_runs(self.root, name))
        return None

    @staticmethod
    def _owner(path: Path) -> Path | None:
        """The run that a path is or leads into, else the grid."""
        folders = [path, *path.parents][: 1 + _DEPTH]
        run = next((folder for folder in folders if runs.is_run(folder)), None)
        return run or next((folder for folder in folders if (folder / GRID).is_file()), None)

    def _take(self, key: str, named: Path, path: Path) -> Take:
        owner = self._owner(named)
        inside = named.is_relative_to(self.root)
        address = f"{places.RUN}{named.relative_to(self.root)}" if inside else str(named)
        take = Take(key=key, address=address, path=str(path))
        if owner is not None and runs.is_run(owner):
            made_by = manifest.read(owner / "manifest.parquet").facts.made_by
            take |= {"recipe_digest": made_by.get("recipe_digest", ""), "planned_at": made_by.get("planned_at", "")}
        return take


def _sections(section: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Every dataclass of a recipe, with its dotted key."""
    for field_ in dataclasses.fields(section):
        value = getattr(section, field_.name)
        named = value.items() if isinstance(value, dict) else [("", value)]
        for name, inner in named:
            if dataclasses.is_dataclass(inner):
                where = ".".join(filter(None, (key, field_.name, str(name))))
                yield where, inner
                yield from _sections(inner, where)
