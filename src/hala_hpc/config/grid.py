"""A grid: one recipe, several axes, and a run for each cell. Files are read and recipes composed, nothing is made.

A recipe's ``grid:`` section holds ``axes`` (a name, and for each of its values what of the recipe it changes), ``name``
(how a cell is called, with each axis in braces), and three ways for a cell not to be a run of its own: ``exclude``
(it makes no sense), ``as_is`` (it is a model that is there already) and ``aliases`` (it is another cell under another
name). Cells that turn out to be the same recipe are one run, too.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hala_hpc.config import layers, places
from hala_hpc.config.compose import OptionsOf, freeze, merge, of_place, require_task
from hala_hpc.config.errors import HalaError, did_you_mean, first_twice, within
from hala_hpc.config.frozen import overlaid
from hala_hpc.config.layers import Layer
from hala_hpc.config.places import Address
from hala_hpc.config.schema import Recipe

SECTION = "grid"
KEYS = ("axes", "name", "exclude", "as_is", "aliases")
State = Literal["run", "as_is", "same", "excluded"]
"""What becomes of a cell: a run of its own; a model that is there; another cell's run; nothing."""
Values = dict[str, list[str]]
"""Values of some axes: the cells that have one of each."""


@dataclass(frozen=True)
class Grid:
    """The section, checked. ``axes``: axis to value to the part of a recipe that it says."""

    axes: Mapping[str, Mapping[str, Any]]
    name: str
    exclude: Sequence[Values]
    as_is: Sequence[Values]
    aliases: Mapping[str, str]  # a cell to the one that it is the same as


@dataclass(frozen=True)
class GridCell:
    """One combination. ``same_as`` names the cell that stands for it, ``recipe`` is None for an excluded cell."""

    name: str
    values: dict[str, str]
    state: State
    same_as: str | None = None
    recipe: Recipe | None = None


def is_grid(recipe: Path) -> bool:
    """Whether a recipe file has a grid."""
    return recipe.is_file() and SECTION in layers.from_file(recipe).values


def expand(
    recipe: Path,
    site: Path | None,
    overrides: Sequence[str],
    options_of: OptionsOf,
    changes: Sequence[Layer] = (),
    address: Address = places.in_runs,
) -> tuple[str, list[GridCell]]:
    """The grid's name, and its cells in the order of the axes, the last one turning fastest.

    A value of an axis is stronger than the rest of the recipe and its ``changes``, and weaker than the command line.
    ``changes`` and ``address``: as for ``compose``; the former may change the grid as well.

    Raises
    ------
    HalaError : a wrong key, a name that two cells would share, an alias of nothing, a cell that cannot be composed.
    """
    *included, layer = layers.of_recipe(recipe)
    words, section = layers.from_command_line(overrides), layer.values.get(SECTION)
    for above in (*changes, words):
        section = overlaid(section, above.values.get(SECTION) or {})
    base, words, *changes = (
        dataclasses.replace(some, values=_without_grid(some.values)) for some in (layer, words, *changes)
    )
    with within(layer.where):
        grid = _grid(_mapping(section, SECTION))
    below = [*of_place(site), *included, base, *changes]
    name = str(words.values.get("name") or base.values.get("name") or recipe.stem)
    composed = []
    first: dict[str, str] = {}
    for cell in cells(grid):
        if cell.state != "excluded":
            parts = [
                Layer(grid.axes[axis][value], f"{layer.where}: grid.axes.{axis}.{value}", layer.base)
                for axis, value in cell.values.items()
            ]
            stack = [*below, *parts, words, Layer({"name": cell.name}, "grid.name", layer.base)]
            with within(f"cell {cell.name}"):
                whole = merge(stack, options_of, address)
            require_task(stack, recipe)
            cell = dataclasses.replace(cell, recipe=whole)
            if cell.state == "run":  # only the first of the cells with the same recipe is one
                kept = first.setdefault(freeze(dataclasses.replace(whole, name="")), cell.name)
                cell = cell if kept == cell.name else dataclasses.replace(cell, state="same", same_as=kept)
        composed.append(cell)
    return name, composed


def _without_grid(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != SECTION}


def _grid(given: Mapping[str, Any]) -> Grid:
    if wrong := next((key for key in given if key not in KEYS), None):
        raise HalaError(f"unknown key 'grid.{wrong}'", did_you_mean(str(wrong), KEYS))
    axes = {
        str(axis): {
            str(value): _mapping(part, f"grid.axes.{axis}.{value}") if part else {}
            for value, part in _mapping(values, f"grid.axes.{axis}").items()
        }
        for axis, values in _mapping(given.get("axes"), "grid.axes").items()
    }
    name = str(given.get("name") or "-".join(f"{{{axis}}}" for axis in axes))
    _refuse_unknown(re.findall(r"\{([^{}]*)\}", name), axes, "grid.name: no axis")
    if re.search(r"[{}]", re.sub(r"\{[^{}]*\}", "", name)):
        raise HalaError(f"grid.name: '{name}' has a brace too many", f"for example {{{next(iter(axes))}}}")
    patterns = {key: [_pattern(axes, pattern, key) for pattern in given.get(key) or []] for key in ("exclude", "as_is")}
    grid = Grid(axes, name, **patterns, aliases=_aliases(given.get("aliases") or {}))
    _check_names(grid)
    return grid


def cells(grid: Grid) -> Iterator[GridCell]:
    """All combinations, not composed yet."""
    for values in itertools.product(*grid.axes.values()):
        chosen = dict(zip(grid.axes, values, strict=True))
        name = grid.name.format(**chosen)
        state: State = "run"
        if name in grid.aliases:
            state = "same"
        elif _matches(grid.exclude, chosen):
            state = "excluded"
        elif _matches(grid.as_is, chosen):
            state = "as_is"
        yield GridCell(name, chosen, state, grid.aliases.get(name))


def _matches(patterns: Sequence[Values], chosen: Mapping[str, str]) -> bool:
    return any(all(chosen[axis] in values for axis, values in pattern.items()) for pattern in patterns)


def _mapping(value: Any, name: str) -> dict[Any, Any]:
    if not isinstance(value, dict) or not value:
        raise HalaError(f"'{name}' must be a mapping, not {value!r}")
    return value


def _refuse_unknown(words: Iterable[str], known: Iterable[str], what: str) -> None:
    if wrong := next((word for word in words if word not in known), None):
        raise HalaError(f"{what} '{wrong}'", did_you_mean(wrong, known))


def _pattern(axes: Mapping[str, Mapping[str, Any]], given: Any, key: str) -> Values:
    """``{axis: value}`` or ``{axis: [values]}``: the cells where all of it holds."""
    pattern = {str(axis): list(map(str, _listed(values))) for axis, values in _mapping(given, f"grid.{key}").items()}
    _refuse_unknown(pattern, axes, f"grid.{key}: no axis")
    for axis, values in pattern.items():
        _refuse_unknown(values, axes[axis], f"grid.{key}.{axis}: no value")
    return pattern


def _listed(values: Any) -> list[Any]:
    return values if isinstance(values, list) else [values]


def _aliases(given: Any) -> dict[str, str]:
    """``{kept: [others]}`` turned round."""
    aliases: dict[str, str] = {}
    for kept, others in _mapping(given or {"": []}, "grid.aliases").items():
        for other in map(str, _listed(others)):
            if aliases.setdefault(other, str(kept)) != str(kept):
                raise HalaError(f"grid.aliases: '{other}' is an alias of two cells")
    return aliases


def _check_names(grid: Grid) -> None:
    names = [cell.name for cell in cells(grid)]
    if (twice := first_twice(names)) is not None:
        raise HalaError(f"grid.name: two cells would be called '{twice}'", "give each axis its place in it")
    for other, kept in grid.aliases.items():
        _refuse_unknown((other, kept), names, "grid.aliases: no cell")
        if kept in grid.aliases:
            raise HalaError(f"grid.aliases: '{kept}' is itself an alias, of '{grid.aliases[kept]}'")
