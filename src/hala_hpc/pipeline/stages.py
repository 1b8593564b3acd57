"""A pipeline as it was submitted: stages whose recipes are composed, with the addresses in them still open.

Its folder is ``RUNS/NAME`` and holds the definition, the ledger, and a run or a grid for each version of each stage.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from hala_hpc.config import pipeline as files
from hala_hpc.config import places
from hala_hpc.config.compose import freeze, thaw_text
from hala_hpc.config.errors import HalaError, within
from hala_hpc.config.grid import GridCell
from hala_hpc.config.pipeline import PipelineFile, stage_of
from hala_hpc.config.places import Address
from hala_hpc.config.schema import Recipe
from hala_hpc.pipeline import planning, versions
from hala_hpc.pipeline.planning import RunList
from hala_hpc.run.files import make_folders, write_durably
from hala_hpc.run.layout import PIPELINE
from hala_hpc.worker import registry


@dataclass(frozen=True)
class Stage:
    """What a stage asks for. ``cells`` are those of a grid, or a run as the only one, their recipes as frozen text.

    ``grid`` is the recipe of a grid as it was written; ``takes`` the addresses of other stages' results; ``asked`` is
    what its recipes ask, wherever it is done, and ``reads`` the local files and folders that they name (see
    ``versions``); ``command``, ``when`` and ``after`` are as in the file (see ``config.pipeline.Stage``).
    """

    name: str
    cells: Sequence[Mapping[str, Any]] = ()
    grid: str | None = None
    command: Sequence[str] = ()
    takes: Sequence[str] = ()
    asked: Mapping[str, Any] = field(default_factory=dict)
    reads: Sequence[str] = ()
    when: Mapping[str, str] = field(default_factory=dict)
    after: Sequence[str] = ()

    def runs(self, folder: Path, address: Address) -> RunList:
        """Its run or grid as ``folder``, with ``address`` for what it takes. Raises HalaError."""
        cells = []
        for cell in self.cells:
            recipe = None
            if cell["recipe"] is not None:
                whole = thaw_text(cell["recipe"], self.name, registry.options_of, address)
                name = cell["name"] if self.grid is not None else folder.name
                recipe = replace(whole, name=name, run=replace(whole.run, root=str(folder.parent)))
            cells.append(GridCell(cell["name"], cell["values"], cell["state"], cell["same_as"], recipe))
        return RunList(folder, cells, self.grid)

    def recipes(self) -> Iterator[tuple[str, Recipe]]:
        """Each cell's name and recipe, with the addresses of other stages as they stand."""
        for cell in self.runs(Path(self.name), lambda value, _: value).cells:
            if cell.state == "run" and cell.recipe is not None:
                yield cell.name, cell.recipe


@dataclass(frozen=True)
class Pipeline:
    """``leader`` is the frozen recipe whose site runs the jobs that plan stages, and says who is told of the end.

    ``python`` is the interpreter of these jobs, that of whoever submitted the pipeline.
    """

    folder: Path
    stages: Sequence[Stage]
    leader: str
    python: str = sys.executable

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def by_name(self) -> dict[str, Stage]:
        return {stage.name: stage for stage in self.stages}

    @cached_property
    def recipe(self) -> Recipe:
        """The leader's; nobody reads the addresses in it."""
        return thaw_text(self.leader, self.name, registry.options_of, lambda value, _: value)

    def before(self, stage: Stage) -> list[str]:
        """The stages that come before a stage: those of which it takes something, and those that it names."""
        taken = [name for address in stage.takes if (name := stage_of(address, self.by_name)) is not None]
        return list(dict.fromkeys([*taken, *stage.when, *stage.after]))

    @cached_property
    def order(self) -> list[Stage]:
        """The stages, each after those before it. Raises HalaError where they go in a circle."""
        graph = {stage.name: self.before(stage) for stage in self.stages}
        try:
            return [self.by_name[name] for name in TopologicalSorter(graph).static_order()]
        except CycleError as error:
            raise HalaError(
                f"stages: in a circle: {' <- '.join(error.args[1])}", "a stage takes what is earlier"
            ) from error


def compose(file: PipelineFile, site: str, overrides: tuple[str, ...]) -> Pipeline:
    """The pipeline that a command line asks for: every recipe is composed, nothing is made. Raises HalaError."""
    names = [stage.name for stage in file.stages]
    words, stages, leader, root = file.split(overrides), [], "", Path()
    for stage in file.stages:
        with within(f"stage {stage.name}"):
            if stage.recipe is None:
                takes = [word for word in stage.command if word.startswith(places.RUN) and stage_of(word, names)]
                words_of = {"command": list(stage.command)}
                stages.append(Stage(stage.name, (), None, stage.command, takes, words_of, (), stage.when, stage.after))
                continue
            taken: dict[str, None] = {}
            runs = planning.read(
                stage.recipe,
                site,
                tuple(words[stage.name]),
                [files.layer_of(stage, file.path)],
                _keeping(names, taken),
            )
            for cell in runs.cells:
                if cell.state == "run" and cell.recipe is not None:
                    registry.create(cell.recipe)  # refuses what cannot be, before anything is started
        recipe = runs.recipes[0]
        leader, root = leader or freeze(recipe), Path(recipe.run.root).resolve()
        cells = [asdict(replace(cell, recipe=None)) | {"recipe": _frozen(cell.recipe)} for cell in runs.cells]
        all_asked = {cell.name: versions.asked_of(cell.recipe) for cell in runs.cells if cell.recipe is not None}
        asked = all_asked if runs.is_grid else next(iter(all_asked.values()))
        reads = dict.fromkeys(path for recipe in runs.recipes for path in versions.reads_of(recipe))
        stages.append(Stage(stage.name, cells, runs.text, (), list(taken), asked, list(reads), stage.when, stage.after))
    if not leader:
        raise HalaError(f"{file.path}: none of its stages has a recipe", "a pipeline of commands makes nothing")
    pipeline = Pipeline(root / file.name, stages, leader)
    return replace(pipeline, stages=pipeline.order)


def _keeping(names: Sequence[str], taken: dict[str, None]) -> Address:
    """Leaves the addresses of stages as they are, and notes them in ``taken``; runs of their own become paths."""

    def address(value: str, runs: Path) -> str:
        if stage_of(value, names) is None:
            return places.in_runs(value, runs)
        taken[value] = None
        return value

    return address


def _frozen(recipe: Recipe | None) -> str | None:
    """Without the site's program and mail: these are for the end of the whole."""
    if recipe is None:
        return None
    return freeze(replace(recipe, site=replace(recipe.site, at_end=[], mail=None)))


def save(pipeline: Pipeline) -> None:
    """Write the definition down, in place of an earlier one. Raises HalaError where something else has the name."""
    folder = pipeline.folder
    if folder.exists() and not (folder / PIPELINE).is_file() and any(folder.iterdir()):
        raise HalaError(f"{folder} exists, and is not a pipeline", "give the pipeline another name")
    make_folders(folder / "ledger")
    (folder / "logs").mkdir(mode=0o700, exist_ok=True)
    stages = [asdict(stage) for stage in pipeline.stages]
    content = {"python": pipeline.python, "leader": pipeline.leader, "stages": stages}
    write_durably(folder / PIPELINE, json.dumps(content, indent=1, ensure_ascii=False).encode())


def load(folder: Path) -> Pipeline:
    """The pipeline in a folder. Raises HalaError where its definition cannot be read."""
    try:
        content = json.loads((folder / PIPELINE).read_text("utf-8"))
        return Pipeline(folder, [Stage(**stage) for stage in content["stages"]], content["leader"], content["python"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HalaError(f"{folder / PIPELINE} cannot be read: {error}", "submit the pipeline again") from error


Resolve = Callable[[str], str]
"""From ``run:STAGE/…`` to a path."""


def opened(resolve: Resolve) -> Address:
    """``resolve`` as an address: by now only stages are left."""
    return lambda value, _: resolve(value)
