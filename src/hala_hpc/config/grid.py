"""A grid: one recipe, several axes, and a run for each cell. Files are read and recipes composed, nothing is made.

A recipe's ``grid:`` section holds ``axes`` (a name, and for each of its values what of the recipe it changes), ``name``
(how a cell is called, with each axis in braces), and three ways for a cell to be no run of its own: ``exclude`` (it
makes no sense), ``as_is`` (it is a model that is there already) and ``aliases`` (it is another cell by another name).
Cells that turn out to be the same recipe are one run, too.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hala_hpc.config import layers
from hala_hpc.config.compose import OptionsOf, freeze, merge, of_place, require_task
from hala_hpc.config.errors import HalaError, did_you_mean
from hala_hpc.config.layers import Layer
from hala_hpc.config.schema import Recipe

SECTION = "grid"
KEYS = ("axes", "name", "exclude", "as_is", "aliases")
State = Literal["run", "as_is", "same", "excluded"]
"""What becomes of a cell: a run of its own; a model that is there; another cell's run; nothing."""


@dataclass(frozen=True)
class Grid:
    """The section, checked. ``axes``: axis to value to the part of a recipe that it says."""

    axes: dict[str, dict[str, dict[str, Any]]]
    name: str
    exclude: list[dict[str, list[str]]] = field(default_factory=list)
    as_is: list[dict[str, list[str]]] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)  # a cell to the one that it is the same as


@dataclass(frozen=True)
class Cell:
    """One combination. ``same_as`` names the cell that stands for it, ``recipe`` is None for an excluded cell."""

    name: str
    values: dict[str, str]
    state: State
    same_as: str | None = None
    recipe: Recipe | None = None


def is_grid(recipe: Path) -> bool:
    """Whether a recipe file has a grid."""
    return recipe.is_file() and SECTION in layers.from_file(recipe).values


def expand(recipe: Path, site: Path | None, overrides: Sequence[str], options_of: OptionsOf) -> tuple[str, list[Cell]]:
    """The grid's name, and its cells in the order of the axes, the last one turning fastest.

    A value of an axis is stronger than the rest of the recipe and weaker than the command line.

    Raises
    ------
    HalaError : a wrong key, a name that two cells would share, an alias of nothing, a cell that cannot be composed.
    """
    layer = layers.from_file(recipe)
    grid = read(layer)
    base = dataclasses.replace(layer, values={key: value for key, value in layer.values.items() if key != SECTION})
    said = layers.from_command_line(overrides)
    below = [*of_place(site), base]
    name = str(said.values.get("name") or base.values.get("name") or recipe.stem)
    composed = []
    for cell in cells(grid):
        if cell.state == "excluded":
            composed.append(cell)
            continue
        parts = [_part(layer, grid, axis, value) for axis, value in cell.values.items()]
        last = Layer({"name": cell.name}, "grid.name", layer.base)
        stack = [*below, *parts, said, last]
        composed.append(dataclasses.replace(cell, recipe=_merged(stack, cell, options_of)))
        require_task(stack, recipe)
    return name, _equal_once(composed)


def read(layer: Layer) -> Grid:
    """The grid section of a recipe. Raises HalaError."""
    given = _mapping(layer, layer.values.get(SECTION), SECTION)
    for key in given:
        if key not in KEYS:
            raise HalaError(f"{layer.where}: unknown key 'grid.{key}'", did_you_mean(str(key), KEYS))
    axes = {
        str(axis): {
            str(value): _mapping(layer, part or {}, f"grid.axes.{axis}.{value}")
            for value, part in _mapping(layer, values, f"grid.axes.{axis}").items()
        }
        for axis, values in _mapping(layer, given.get("axes"), "grid.axes").items()
    }
    name = str(given.get("name") or "-".join(f"{{{axis}}}" for axis in axes))
    _check_name(layer, name, axes)
    grid = Grid(
        axes,
        name,
        [_pattern(layer, axes, one, "exclude") for one in given.get("exclude") or []],
        [_pattern(layer, axes, one, "as_is") for one in given.get("as_is") or []],
        _aliases(layer, given.get("aliases") or {}),
    )
    _check_aliases(layer, grid)
    return grid


def cells(grid: Grid) -> Iterator[Cell]:
    """All combinations, not composed yet."""
    for values in itertools.product(*grid.axes.values()):
        chosen = dict(zip(grid.axes, values, strict=True))
        name = grid.name.format(**chosen)
        if kept := grid.aliases.get(name):
            yield Cell(name, chosen, "same", kept)
        elif any(_matches(pattern, chosen) for pattern in grid.exclude):
            yield Cell(name, chosen, "excluded")
        elif any(_matches(pattern, chosen) for pattern in grid.as_is):
            yield Cell(name, chosen, "as_is")
        else:
            yield Cell(name, chosen, "run")


def _equal_once(found: Sequence[Cell]) -> list[Cell]:
    """Of cells with the same recipe only the first is a run."""
    first: dict[str, str] = {}
    result = []
    for cell in found:
        if cell.state == "run" and cell.recipe is not None:
            kept = first.setdefault(freeze(dataclasses.replace(cell.recipe, name="")), cell.name)
            if kept != cell.name:
                cell = dataclasses.replace(cell, state="same", same_as=kept)
        result.append(cell)
    return result


def _merged(stack: list[Layer], cell: Cell, options_of: OptionsOf) -> Recipe:
    try:
        return merge(stack, options_of)
    except HalaError as error:
        raise HalaError(f"cell {cell.name}: {error.message}", error.hint) from error


def _part(layer: Layer, grid: Grid, axis: str, value: str) -> Layer:
    return Layer(grid.axes[axis][value], f"{layer.where}: grid.axes.{axis}.{value}", layer.base)


def _matches(pattern: Mapping[str, Sequence[str]], chosen: Mapping[str, str]) -> bool:
    return all(chosen[axis] in wanted for axis, wanted in pattern.items())


def _mapping(layer: Layer, value: Any, name: str) -> dict[Any, Any]:
    if not isinstance(value, dict) or (not value and name.count(".") < 3):
        raise HalaError(f"{layer.where}: '{name}' must be a mapping, not {value!r}")
    return value


def _pattern(layer: Layer, axes: Mapping[str, Any], given: Any, key: str) -> dict[str, list[str]]:
    """``{axis: value}`` or ``{axis: [values]}``: the cells where all of it holds."""
    pattern = {}
    for axis, wanted in _mapping(layer, given, f"grid.{key}").items():
        if str(axis) not in axes:
            raise HalaError(f"{layer.where}: grid.{key}: no axis '{axis}'", did_you_mean(str(axis), axes))
        values, known = [str(value) for value in (wanted if isinstance(wanted, list) else [wanted])], axes[str(axis)]
        if wrong := next((value for value in values if value not in known), None):
            raise HalaError(f"{layer.where}: grid.{key}.{axis}: no value '{wrong}'", did_you_mean(wrong, known))
        pattern[str(axis)] = values
    return pattern


def _aliases(layer: Layer, given: Any) -> dict[str, str]:
    """``{kept: [others]}`` turned round."""
    found: dict[str, str] = {}
    for kept, others in _mapping(layer, given or {"": []}, "grid.aliases").items():
        for other in others if isinstance(others, list) else [others]:
            if found.setdefault(str(other), str(kept)) != str(kept):
                raise HalaError(f"{layer.where}: grid.aliases: '{other}' is an alias of two cells")
    return found


def _check_aliases(layer: Layer, grid: Grid) -> None:
    combined = itertools.product(*grid.axes.values())
    names = [grid.name.format(**dict(zip(grid.axes, values, strict=True))) for values in combined]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise HalaError(
            f"{layer.where}: grid.name: two cells would be called '{twice}'", "give each axis its place in it"
        )
    for other, kept in grid.aliases.items():
        for name in (other, kept):
            if name not in names:
                raise HalaError(f"{layer.where}: grid.aliases: no cell '{name}'", did_you_mean(name, names))
        if kept in grid.aliases:
            raise HalaError(f"{layer.where}: grid.aliases: '{kept}' is itself an alias, of '{grid.aliases[kept]}'")


def _check_name(layer: Layer, name: str, axes: Mapping[str, Any]) -> None:
    used = re.findall(r"\{([^{}]*)\}", name)
    if wrong := next((axis for axis in used if axis not in axes), None):
        raise HalaError(f"{layer.where}: grid.name: no axis '{wrong}'", did_you_mean(wrong, axes))
    if re.search(r"[{}]", re.sub(r"\{[^{}]*\}", "", name)):
        raise HalaError(
            f"{layer.where}: grid.name: '{name}' has a brace too many", f"for example {{{next(iter(axes))}}}"
        )
