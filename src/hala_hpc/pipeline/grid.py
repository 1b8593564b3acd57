"""A grid: a folder of runs, planned and started together."""

import contextlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hala_hpc.config import places
from hala_hpc.config.errors import HalaError
from hala_hpc.pipeline import lookup
from hala_hpc.run import layout

if TYPE_CHECKING:
    from hala_hpc.config.grid import Cell
    from hala_hpc.config.schema import Recipe
    from hala_hpc.slurm.record import Submission
    from hala_hpc.worker.task import Task

MARKER: Final = layout.GRID
"""Holds a grid's cells, and which of them are runs. Written last, when all of them are planned."""
PREPARED: Final = "prepared"
"""Tokens that trainings of a grid share."""


@dataclass(frozen=True)
class Planned:
    """A cell that is a run: its recipe, task and folder."""

    recipe: "Recipe"
    task: "Task"
    path: Path


def is_grid(recipe: Path) -> bool:
    """Whether a recipe is one of several runs."""
    from hala_hpc.config import grid

    return grid.is_grid(recipe)


def recipes(recipe: Path, site: str, overrides: tuple[str, ...]) -> "list[Recipe]":
    """All that a grid uses: the recipes of its runs, and of the cells that are a model as it is."""
    _, _, cells = _expanded(recipe, site, overrides)
    return [cell.recipe for cell in cells if cell.recipe is not None]


def find(run: str) -> Path | None:
    """A grid by its path or name; None where there is none of that name."""
    named = places.expanded(run, "RUN")
    candidates = (Path(named), *(root / named for root in lookup.runs_roots()))
    return next((path.resolve() for path in candidates if (path / MARKER).is_file()), None)


def runs_in(folder: Path) -> list[Path]:
    """The runs of a grid, in the order of its cells."""
    return [folder / cell["name"] for cell in read(folder)["cells"] if cell["state"] == "run"]


def members(run: str) -> list[Path]:
    """All folders that workers of a grid may be at; of a run, the run."""
    folder = find(run)
    if folder is None:
        return [lookup.find(run)]
    return [folder, *runs_in(folder), *sorted((folder / PREPARED).glob("[!.]*"))]


def read(folder: Path) -> dict[str, Any]:
    """The grid's own file: name, and for each cell its name, values, state and which other cell it is the same as."""
    found: dict[str, Any] = json.loads((folder / MARKER).read_text())
    return found


@dataclass(frozen=True)
class Started:
    """A grid whose cells were given workers, and the arrays in their order: the last is of the cells."""

    folder: Path
    planned: "Sequence[Planned]"
    submissions: "Sequence[Submission]"


def plan(recipe: Path, site: str, overrides: tuple[str, ...], create: bool) -> tuple[Path, list[dict[str, Any]]]:
    """The grid's folder, and each cell with what it would run."""
    from hala_hpc.pipeline.planning import summary_of

    name, root, cells = _expanded(recipe, site, overrides)
    target = root / name
    with _place(root, target, create, cells) as folder:
        planned = _plan(cells, folder, name, recipe)
        told = [_told(cell) for cell in cells]
        for one in planned:
            about = summary_of(one.recipe, one.path, target / one.recipe.name, one.task.stage)
            next(cell for cell in told if cell["name"] == one.recipe.name).update(plan=about)
    return target, told


def submit(recipe: Path, site: str, overrides: tuple[str, ...]) -> Started:
    """Plan all cells and start them in one array; before it, one that prepares the data of trainings."""
    from hala_hpc.pipeline.planning import refuse_missing_environment
    from hala_hpc.slurm.limits import limits

    name, root, cells = _expanded(recipe, site, overrides)
    lookup.refuse_forgotten_site(site, next(cell.recipe.site.executor for cell in cells if cell.recipe))
    sites = [cell.recipe.site for cell in cells if cell.recipe and cell.recipe.site.executor == "slurm"]
    if sites:
        limits(sites[0].slurm)  # a Slurm that is not there is told before all the data is read
    folder = root / name
    with _place(root, folder, True, cells):
        planned = _plan(cells, folder, name, recipe)
        for one in planned:
            refuse_missing_environment(one.recipe, one.task)
    return Started(folder, planned, _start(folder, planned))  # where Slurm refuses, the planned runs stay


def resume(folder: Path, overrides: tuple[str, ...]) -> Started | None:
    """Start what is missing of the cells that nobody is at; None where nothing is."""
    from hala_hpc.pipeline import starting
    from hala_hpc.run import status
    from hala_hpc.worker import registry

    starting.refuse_frozen(overrides)
    left = []
    busy = starting.at_work(folder)
    for path in runs_in(folder):
        recipe = lookup.thawed(path, overrides)
        starting.note_moved(path, recipe, overrides)
        status.retry_failed(path, recipe.run.attempts, recipe.run.lease_seconds)
        state = status.read(path, recipe.run.lease_seconds, recipe.run.attempts)
        if not state.finished and not busy and not any(worker.alive for worker in state.workers):
            left.append(Planned(recipe, registry.create(recipe), path))
    if not left:
        return None
    with lookup.changed([one.path for one in left], overrides):
        return Started(folder, left, _start(folder, left))


def _expanded(recipe: Path, site: str, overrides: tuple[str, ...]) -> "tuple[str, Path, list[Cell]]":
    """The grid's name, where it will be, and its cells, each with the folder that its run belongs to."""
    from hala_hpc.config import grid
    from hala_hpc.pipeline.planning import NAME
    from hala_hpc.worker import registry

    name, cells = grid.expand(recipe, lookup.profile_of(site), overrides, registry.options_of)
    if not NAME.fullmatch(name):
        raise HalaError(f"name: {name!r} cannot be a grid's name", "letters, digits, -, _ and .; no . or - in front")
    if not any(cell.state == "run" for cell in cells):
        raise HalaError(
            f"{recipe}: all of its {len(cells)} cells are left out or models as they are",
            "see grid.exclude and grid.as_is",
        )
    root = next(Path(cell.recipe.run.root) for cell in cells if cell.recipe)
    return name, root.resolve(), cells


@contextmanager
def _place(root: Path, target: Path, create: bool, cells: "Sequence[Cell]") -> Iterator[Path]:
    """A folder for the cells: their own, removed again if they cannot be planned; or one to look at and throw away."""
    from hala_hpc.run.files import remove_tree

    if not create:
        with tempfile.TemporaryDirectory(prefix=".plan-", dir=root if root.is_dir() else None) as scratch:
            yield Path(scratch) / target.name
        return
    if target.exists():
        raise _existing(target, cells)
    try:
        yield target
    except BaseException:
        remove_tree(target)  # nobody was started yet
        raise


def _existing(target: Path, cells: "Sequence[Cell]") -> HalaError:
    """Says of the grid that has the name already how it differs: by its cells, else by a cell's recipe."""
    from hala_hpc.pipeline.planning import difference

    if not (target / MARKER).is_file():
        return HalaError(f"{target} exists, and is no grid", "give another name=…, or move it away")
    before = {str(cell["name"]) for cell in read(target)["cells"]}
    said = [f"cell {name} is not in it" for name in sorted({cell.name for cell in cells} - before)]
    said += [f"its cell {name} is not asked for" for name in sorted(before - {cell.name for cell in cells})]
    for cell in () if said else cells:
        if (
            cell.recipe
            and (target / cell.name).is_dir()
            and (differs := difference(_in(target, cell.recipe), target / cell.name))
        ):
            said = [f"cell {cell.name} with another recipe: {differs}"]
            break
    listed = ", ".join(said[:4]) + (f" and {len(said) - 4} more" if len(said) > 4 else "")
    hint = f"`hala resume {target.name}`, or give another name=…; resuming goes on with the recipes it has"
    return HalaError(f"grid '{target.name}' exists in {target.parent}, {listed or 'with the same recipe'}", hint)


def _in(folder: Path, recipe: "Recipe") -> "Recipe":
    """A cell's recipe as it is planned: its run is in the grid's folder, as are the tokens that trainings share."""
    asked = replace(recipe, run=replace(recipe.run, root=str(folder)))
    if getattr(asked.task, "prepared", "") is None:
        asked = replace(asked, task=replace(asked.task, prepared=str(folder / PREPARED)))
    return asked


def _plan(cells: "Sequence[Cell]", folder: Path, name: str, recipe: Path) -> list[Planned]:
    """Plan each cell's run below ``folder``; its marker last."""
    from hala_hpc.pipeline.planning import check, plan_run
    from hala_hpc.run.files import write_durably

    (folder / "ledger").mkdir(parents=True)  # of what is submitted for all cells
    (folder / "logs").mkdir(mode=0o700)  # submitit keeps pickles here: nobody else may plant one
    planned = []
    for cell in cells:
        if cell.state != "run" or cell.recipe is None:
            continue
        asked = _in(folder, cell.recipe)
        try:
            task = check(asked)
            planned.append(Planned(asked, task, plan_run(asked, task, folder / cell.name).path))
        except HalaError as error:
            raise HalaError(f"cell {cell.name}: {error.message}", error.hint) from error
    told = {"name": name, "recipe": recipe.read_text(), "cells": [_told(cell) for cell in cells]}
    write_durably(folder / MARKER, json.dumps(told, indent=1, ensure_ascii=False).encode())
    return planned


def _told(cell: "Cell") -> dict[str, Any]:
    model = cell.recipe.model.name if cell.state == "as_is" and cell.recipe else None
    told = {"name": cell.name, "values": cell.values, "state": cell.state, "same_as": cell.same_as, "model": model}
    return {key: value for key, value in told.items() if value is not None}


def _start(folder: Path, planned: Sequence[Planned]) -> "list[Submission]":
    """One array for what prepares data, one for the cells, which waits for it."""
    from hala_hpc.run import status
    from hala_hpc.slurm import commands
    from hala_hpc.slurm.submit import submit_each
    from hala_hpc.tasks.train import task as train
    from hala_hpc.worker.array import ArrayWorker

    first = planned[0]
    if any(one.recipe.site != first.recipe.site for one in planned):
        raise HalaError("grid: its cells share one array of jobs, so `site` cannot be an axis", "make it two grids")
    is_training = first.recipe.task.kind == "train"
    before = _prepare(folder, planned) if is_training else []
    after = [job for one in before for job in one.jobs]
    jobs = [
        ArrayWorker(str(one.path))
        for one in planned
        for _ in range(min(one.recipe.run.workers, max(1, len(status.missing(one.path)))))  # 1: its last step
    ]
    asked = _as_a_whole(first.recipe, folder, len(jobs))
    ranks = train.ranks_per_node(asked.site) if is_training else None
    try:
        return [*before, submit_each(asked, folder, first.task.stage, jobs, ranks=ranks, after=after)]
    except BaseException:
        with contextlib.suppress(HalaError):  # they are on record: `hala cancel` ends them
            commands.cancel(after)
        raise


def _prepare(folder: Path, planned: Sequence[Planned]) -> "list[Submission]":
    """Workers for the datasets that are not tokens yet, each dataset once."""
    from hala_hpc.pipeline.starting import prepare
    from hala_hpc.tasks.train import task as train

    first = planned[0]
    found = (run for one in planned for run in train.prepare_runs(one.path, one.recipe))
    runs = dict.fromkeys(run.resolve() for run in found)  # in a cell they are links to what all share
    return prepare(replace(first.recipe, name=folder.name), first.task.stage, folder, runs)


def _as_a_whole(recipe: "Recipe", folder: Path, jobs: int) -> "Recipe":
    """What all cells ask of Slurm together: the grid's name, and as many jobs at once as there are."""
    return replace(recipe, name=folder.name, run=replace(recipe.run, workers=jobs))
