"""From a recipe to planned runs, with progress: one run, or those of a grid, are planned alike."""

import importlib.util
import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import yaml
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from hala_hpc import engines
from hala_hpc.config import frozen, grid, places
from hala_hpc.config.compose import freeze
from hala_hpc.config.errors import HalaError, few, plural, within
from hala_hpc.config.grid import GridCell
from hala_hpc.config.layers import Layer
from hala_hpc.config.places import Address
from hala_hpc.config.schema import Recipe
from hala_hpc.data import shapes
from hala_hpc.data.cut import PlanWatch
from hala_hpc.data.files import hub
from hala_hpc.pipeline import lookup
from hala_hpc.pipeline.lookup import CellRecord
from hala_hpc.pipeline.taking import Take, Taking
from hala_hpc.run import manifest
from hala_hpc.run.files import keep_group, make_folders, remove_tree, share, write_durably
from hala_hpc.run.layout import GRID, RunDirectory, close_logs
from hala_hpc.run.manifest import Facts, Shard
from hala_hpc.slurm.commands import limits
from hala_hpc.slurm.script import require_environment
from hala_hpc.slurm.submit import without_gpus
from hala_hpc.worker import registry, tracking
from hala_hpc.worker.rows.task import RowTask
from hala_hpc.worker.task import ROWS, Task

NAME = re.compile(r"\w[\w.-]{0,99}")
"""Names of runs and grids: they become folders, and part of the names of Slurm jobs."""


@dataclass(frozen=True)
class PlannedRun:
    """A run and what it was planned from."""

    recipe: Recipe
    task: Task
    path: Path
    takes: Sequence[Take] = ()


@dataclass(frozen=True)
class RunList:
    """What a recipe asks for: the cells of a grid, or a run as the only cell.

    ``folder`` will be the grid's or the run's; ``text`` is the recipe of a grid as it was written. ``takes``, by cell,
    is None until the addresses of other runs are looked up (``looked_up``).
    """

    folder: Path
    cells: Sequence[GridCell]
    text: str | None = None
    takes: Mapping[str, Sequence[Take]] | None = None

    @property
    def is_grid(self) -> bool:
        return self.text is not None

    @property
    def recipes(self) -> list[Recipe]:
        """The recipes of all runs, and of the cells that are a model as it is."""
        return [cell.recipe for cell in self.cells if cell.recipe is not None]

    @property
    def records(self) -> list[CellRecord]:
        """The cells as the grid's file lists them."""
        models = [cell.recipe.model.name if cell.state == "as_is" and cell.recipe else None for cell in self.cells]
        listed = [
            {"name": cell.name, "values": cell.values, "state": cell.state, "same_as": cell.same_as, "model": model}
            for cell, model in zip(self.cells, models, strict=True)
        ]
        return [cast(CellRecord, {key: value for key, value in cell.items() if value is not None}) for cell in listed]

    def within(self, folder: Path) -> list[tuple[Recipe, Path]]:
        """The recipe and the place of each run if ``folder`` is theirs; trainings of a grid share tokens in it."""
        if not self.is_grid:
            return [(recipe, folder) for recipe in self.recipes]
        runs = [cell.recipe for cell in self.cells if cell.state == "run" and cell.recipe is not None]
        return [(_in_grid(recipe, folder), folder / recipe.name) for recipe in runs]

    def called(self, recipe: Recipe) -> str:
        """The cell in a grid, with which its errors begin."""
        return f"cell {recipe.name}" if self.is_grid else ""


def read(
    recipe: Path,
    site: str,
    overrides: tuple[str, ...],
    changes: Sequence[Layer] = (),
    address: Address = places.in_runs,
) -> RunList:
    """The runs that a command line asks for. Raises HalaError. ``changes``, ``address``: as for ``compose``."""
    if not grid.is_grid(recipe):
        alone = lookup.load(recipe, site, overrides, changes, address)
        return _alone(alone, Path(alone.run.root).resolve() / alone.name)
    name, cells = grid.expand(recipe, lookup.profile_of(site), overrides, registry.options_of, changes, address)
    _refuse_name(name, "grid")
    if not any(cell.state == "run" for cell in cells):
        what = f"all of its {len(cells)} cells are left out or models as they are"
        raise HalaError(f"{recipe}: {what}", "see grid.exclude and grid.as_is")
    root = next(Path(cell.recipe.run.root) for cell in cells if cell.recipe)
    return RunList(root.resolve() / name, cells, recipe.read_text())


def _alone(recipe: Recipe, folder: Path) -> RunList:
    return RunList(folder, [GridCell(recipe.name, {}, "run", recipe=recipe)])


def _in_grid(recipe: Recipe, folder: Path) -> Recipe:
    recipe = replace(recipe, run=replace(recipe.run, root=str(folder)))
    if getattr(recipe.task, "prepared", "") is None:
        recipe = replace(recipe, task=replace(recipe.task, prepared=str(folder / lookup.PREPARED)))
    return recipe


def looked_up(runs: RunList) -> RunList:
    """The same with what they take of other runs looked up, and rows of these collected. Raises HalaError.

    A model is the folder that it is in now, so that a run that is resumed goes on with the same.
    """
    if runs.takes is not None:
        return runs
    taking = Taking(runs.folder.parent, _tell)
    cells, takes = list[GridCell](), dict[str, Sequence[Take]]()
    for cell in runs.cells:
        if cell.state == "run" and cell.recipe is not None:
            with within(runs.called(cell.recipe)):
                recipe, takes[cell.recipe.name] = taking.of(cell.recipe, loads_model(cell.recipe))
            cell = replace(cell, recipe=recipe)
        cells.append(cell)
    return replace(runs, cells=cells, takes=takes)


def _tell(text: str) -> None:
    """A line on standard error: something that takes its time, and that nobody called for by name."""
    Console(stderr=True, soft_wrap=True).print(text, markup=False, highlight=False)


def plan(runs: RunList, folder: Path, to_start: bool = False) -> list[PlannedRun]:
    """Plan all runs, into the folder that is theirs or into one to look at. Raises HalaError; nothing is left then.

    ``to_start``: refuse also what could not be started, before all the data is read.
    """
    runs = looked_up(runs)
    checked = []
    for recipe, path in runs.within(folder):
        with within(runs.called(recipe)):
            checked.append(PlannedRun(recipe, check(recipe), path, (runs.takes or {}).get(recipe.name, ())))
            if to_start:
                refuse_missing_environment(recipe, checked[-1].task)
    if to_start and (site := checked[0].recipe.site).executor == "slurm":
        limits(site.slurm)  # raises where there is no Slurm
    if folder.exists():
        raise existing(runs)
    shared = any(run.recipe.is_shared for run in checked)
    share(shared)
    if runs.is_grid:
        make_folders(folder)
        if shared:
            keep_group(folder)
        make_folders(folder / "ledger")  # of what is submitted for all cells
        (folder / "logs").mkdir(mode=0o700)
        close_logs(folder / "logs", shared)
    try:
        for run in checked:
            with within(runs.called(run.recipe)):
                plan_run(run.recipe, run.task, run.path)
        if runs.is_grid:
            record = {"name": folder.name, "recipe": runs.text, "cells": runs.records}
            write_durably(folder / GRID, json.dumps(record, indent=1, ensure_ascii=False).encode())
    except BaseException:
        if runs.is_grid:
            remove_tree(folder)  # nobody was started yet
        raise
    return checked


def check(recipe: Recipe) -> Task:
    """Refuse what can be refused before the data is read."""
    _refuse_name(recipe.name, "run")
    if recipe.data.limit is not None and recipe.data.limit < 1:
        raise HalaError(f"data.limit: must be at least 1, not {recipe.data.limit}", "null takes all rows")
    shapes.check(recipe.data)
    task = registry.create(recipe)
    if asks(task):
        engines.check(recipe)
    elif task.loop != ROWS:
        _refuse_unused(recipe)
    hub.use_cache(recipe.site.cache, recipe.site.offline)
    loads = _loads(recipe, task)
    if recipe.site.offline and loads:
        hub.require_cached(recipe.model)
    models = [recipe.model.name, recipe.model.tokenizer] if loads else []
    hub.go_offline_if_out_of_reach([recipe.data.hub, *models])
    return task


def _loads(recipe: Recipe, task: Task) -> bool:
    """Whether the recipe's own ``model`` is loaded, or its tokenizer or configuration."""
    return engines.abilities(recipe.engine.kind).loads_model if asks(task) else task.loop != ROWS


def loads_model(recipe: Recipe) -> bool:
    """The same, where ``model`` names a model. Raises HalaError for options that cannot be."""
    task = registry.create(recipe)
    return _loads(recipe, task) and not task.takes_run


def asks(task: Task) -> bool:
    """Whether the rows of a task ask an engine."""
    return isinstance(task, RowTask) and task.asks


def on_its_nodes(recipe: Recipe, task: Task) -> Recipe:
    """The recipe as its jobs are asked for: rows that ask no engine are done where there are no GPUs."""
    return recipe if task.loop != ROWS or asks(task) else replace(recipe, site=without_gpus(recipe.site))


def _refuse_name(name: str, what: str) -> None:
    if not NAME.fullmatch(name):
        hint = "letters, digits, -, _ and ., at most 100; no . or - in front"
        raise HalaError(f"name: {name!r} cannot be a {what}'s name", hint)


def refuse_missing_environment(recipe: Recipe, task: Task) -> None:
    """Refuse workers that could not be started, or not import their engine in this Python. Raises HalaError."""
    require_environment(recipe.site, task.environment)
    tracking.check(recipe, task.environment)
    package = engines.abilities(recipe.engine.kind).package if asks(task) else None
    is_here = recipe.site.executor != "slurm" and task.environment not in recipe.site.environments
    if package and is_here and importlib.util.find_spec(package) is None:
        raise HalaError(
            f"site {recipe.site.name} has no environment '{task.environment}', and this Python lacks {package}",
            "--site local-cpu has one, made by `make serve`; engine.kind=echo tries a recipe without a model",
        )


def existing(runs: RunList) -> HalaError:
    """Says how the run or grid that already has the name differs: by its cells, else by the recipe of one."""
    folder, what = runs.folder, "grid" if runs.is_grid else "run"
    if not (folder / (GRID if runs.is_grid else "recipe.yaml")).is_file():
        return HalaError(f"{folder} exists, and is not a {what}", "give another name=…, or move it away")
    differences = []
    if runs.is_grid:
        wanted, there = {cell.name for cell in runs.cells}, {cell["name"] for cell in lookup.cells(folder)}
        differences += [f"cell {name} is not in it" for name in sorted(wanted - there)]
        differences += [f"its cell {name} is not asked for" for name in sorted(there - wanted)]
    for recipe, place in () if differences else runs.within(folder):
        if place.is_dir() and (differs := difference(recipe, place)):
            differences = [f"{runs.called(recipe)} with another recipe: {differs}".strip()]
            break
    listed = few(differences, 4, " and {} more") or "with the same recipe"
    hint = f"`hala resume {folder.name}`, or give another name=…; resuming goes on with the recipe it has"
    return HalaError(f"{what} '{folder.name}' exists in {folder.parent}, {listed}", hint)


def difference(recipe: Recipe, run: Path) -> str:
    """How a recipe differs from the one that a run was planned with, in words; empty where it does not."""
    changes = frozen.differing(frozen.read(run), yaml.safe_load(freeze(recipe)))
    listed = []
    for key, values in sorted(changes.items()):
        was, now = (textwrap.shorten(json.dumps(value, ensure_ascii=False), 60, placeholder="…") for value in values)
        listed.append(f"{key}={now} (was {was})")
    return few(listed, 6, f" and {plural(len(listed) - 6, 'more key')}")


def _refuse_unused(recipe: Recipe) -> None:
    """Other tasks must not silently drop what only the engines of row tasks use."""
    models = {f"task.models.{label}": model for label, model in (getattr(recipe.task, "models", None) or {}).items()}
    for where, model in ({"model": recipe.model} | models).items():
        if getattr(model, "chat_template_kwargs", None):
            key = f"{where}.chat_template_kwargs"
            raise HalaError(f"{key}: task.kind {recipe.task.kind} does not use it", "leave it out")


def plan_run(recipe: Recipe, task: Task, target: Path) -> RunDirectory:
    """Plan the run into its folder. Raises HalaError; nothing is left behind then."""
    if target.exists():
        raise existing(_alone(recipe, target))

    def fill(folder: Path) -> tuple[list[Shard], Facts]:
        with watching() as watch:
            cut = task.plan(folder, watch)
        return cut.shards, cut.facts

    return manifest.create(target, freeze(recipe), fill, recipe.is_shared)


@contextmanager
def watching() -> Iterator[PlanWatch]:
    """A line on standard error that counts rows, or bytes, while they are read."""
    columns = (TextColumn("reading {task.fields[name]}{task.fields[read]}"), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, refresh_per_second=4, disable=not console.is_terminal
    ) as bar:
        line = bar.add_task("", total=None, name="data", read="")
        yield PlanWatch(
            say=lambda text: bar.update(line, name=text.removeprefix("reading "), read=""),
            count=lambda rows: bar.update(line, read=f": {plural(rows, 'row')}"),
            weigh=lambda size: bar.update(line, read=f": {size / 1e9:,.2f} GB"),
        )
