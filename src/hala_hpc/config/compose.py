"""Layers become one typed recipe: defaults < site profile < recipe < command line."""

import copy
import dataclasses
import re
import typing
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from hala_hpc.config import frozen, layers, places
from hala_hpc.config.errors import HalaError, first_line
from hala_hpc.config.layers import Layer
from hala_hpc.config.places import Address
from hala_hpc.config.schema import SECTIONS, Recipe

OptionsOf = Callable[[str, str], type]
"""(section, kind) to the dataclass of that kind's options; raises HalaError for an unknown kind."""


def compose(
    recipe: Path | None,
    site: Path | None,
    overrides: Sequence[str],
    options_of: OptionsOf,
    changes: Sequence[Layer] = (),
    address: Address = places.in_runs,
) -> Recipe:
    """The recipe that a command line asks for.

    Parameters
    ----------
    recipe, site : YAML files with the same keys; a profile has mostly ``site:``, and may stand alone.
    overrides : ``key=value`` words, strongest.
    options_of : finds the options of the open sections ``task`` and ``engine``.
    changes : what a pipeline says of a stage: stronger than the recipe, weaker than ``overrides``.
    address : what ``run:NAME`` stands for.

    Raises
    ------
    HalaError : a missing file, an unknown key (with the nearest valid one) or a value of the wrong type.
    """
    stack = [*of_place(site), *([] if recipe is None else layers.of_recipe(recipe))]
    if grid := next((layer for layer in stack if "grid" in layer.values), None):
        raise HalaError(
            f"{grid.where} is a grid, and this command takes a single run", "plan, submit and prefetch take grids"
        )
    stack += [*changes, layers.from_command_line(overrides)]
    composed = merge(stack, options_of, address)
    if recipe is not None:
        require_task(stack, recipe)
    return composed


def require_task(stack: Sequence[Layer], recipe: Path) -> None:
    """A recipe must name its task: none is assumed. Raises HalaError."""
    if not any(layer.values.get("task") for layer in stack):
        raise HalaError(f"{recipe}: task is missing", "set it, for example task: {kind: translate}")


def of_place(site: Path | None) -> list[Layer]:
    """The layers below a recipe: the site profile, and what the environment says. Raises HalaError."""
    if site is None:
        return layers.from_environment()
    profile = layers.from_file(site)
    if of_recipe := next((key for key in ("task", "data", "grid") if key in profile.values), None):
        raise HalaError(f"{site}: is a recipe, for it has '{of_recipe}'", "--site wants a site profile: `hala sites`")
    return [profile, *layers.from_environment()]


def merge(stack: Sequence[Layer], options_of: OptionsOf, address: Address = places.in_runs) -> Recipe:
    """Check each layer, then merge them, weakest first."""
    kinds = {section: _kind(stack, section) for section in SECTIONS}
    result = copy.deepcopy(_defaults(options_of, tuple(kinds.items())))
    for number, layer in enumerate(stack):
        merged = layers.checked(layer, {key: layer.values[key] for key in layer.values if key not in SECTIONS}, Recipe)
        for section in (section for section in SECTIONS if section in layer.values):
            kind = _kind(stack[: number + 1], section)
            merged[section] = _section(layer, section, kind, kinds[section], options_of)
        try:
            result = OmegaConf.unsafe_merge(result, layers.take_away(layer, result, merged))
        except OmegaConfBaseException as error:
            raise HalaError(f"{layer.where}: {_first_line(error)}") from error
    return to_recipe(result, address)


@lru_cache(maxsize=64)
def _defaults(options_of: OptionsOf, kinds: tuple[tuple[str, str], ...]) -> Any:
    """A recipe of these kinds that says nothing. It takes longer to make than most layers, and a pipeline has many."""
    result = OmegaConf.structured(Recipe)
    for section, kind in kinds:
        result[section] = OmegaConf.structured(options_of(section, kind)(kind=kind))
    return result


def to_recipe(config: Any, address: Address = places.in_runs) -> Recipe:
    """Resolve interpolations and missing values, and check numbers. Raises HalaError naming the key."""
    try:
        recipe = typing.cast(Recipe, OmegaConf.to_object(config))
    except OmegaConfBaseException as error:
        if isinstance(error, MissingMandatoryValue):
            key = _first_line(error).rpartition(": ")[2].split()[-1]
            raise HalaError(f"{key}: is missing", f"give it in the recipe, or as {key}=…") from error
        raise HalaError(f"recipe: {_first_line(error)}", "give it in the recipe or as key=value") from error
    layers.check(recipe)
    _anchor(recipe, Path(recipe.run.root).resolve(), address)
    return recipe


def freeze(recipe: Recipe) -> str:
    """The resolved recipe as YAML text, which ``thaw`` reads back."""
    return OmegaConf.to_yaml(OmegaConf.create(literal(dataclasses.asdict(recipe))))


def thaw_text(text: str, where: str, options_of: OptionsOf, address: Address) -> Recipe:
    """A recipe that was frozen with addresses in it, which ``address`` replaces. Raises HalaError."""
    return merge([Layer(layers.load(text), where, Path.cwd(), frozen=True)], options_of, address)


def thaw(path: Path, options_of: OptionsOf, overrides: Sequence[str] = ()) -> Recipe:
    """A frozen recipe, on top of it what was changed when its run was resumed, and what is changed now.

    What a recipe of an older version lacks is as it was then: ``BEFORE`` of the task's options.
    """
    recipe = layers.from_file(path, frozen=True)
    kind = (recipe.values.get("task") or {}).get("kind")
    older = {"task": {"kind": kind} | getattr(options_of("task", kind), "BEFORE", {})} if kind else {}
    before = Layer(older, "older versions", path.parent, frozen=True)
    earlier = [layers.from_file(change, frozen=True) for change in frozen.files(path.parent)]
    return merge([before, recipe, *earlier, layers.from_command_line(overrides)], options_of)


def literal(value: Any) -> Any:
    """Text that happens to hold ``${`` as OmegaConf wants it written, for by now nothing is left to interpolate."""
    if isinstance(value, dict):
        return {key: literal(item) for key, item in value.items()}
    if isinstance(value, list):
        return [literal(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def places_of(section: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The keys of a recipe, or of a section of it, that hold paths or names on the hub, with their values."""
    for field in dataclasses.fields(section):
        value, name = getattr(section, field.name), f"{prefix}{field.name}"
        for key, inner in value.items() if isinstance(value, dict) else [("", value)]:
            if dataclasses.is_dataclass(inner):
                yield from places_of(inner, f"{name}.{key}." if key else f"{name}.")
        if field.metadata.get("path", "text") != "text":
            yield name, value


def _anchor(section: Any, runs: Path, address: Address) -> None:
    """Make absolute the paths that an interpolation left relative, for later nobody knows to what; and find runs."""

    def anchored(value: Any, rule: str) -> Any:
        if isinstance(value, list):
            return [anchored(item, rule) for item in value]
        if isinstance(value, str) and value.startswith(places.RUN) and rule != "text":
            return address(value, runs)
        return layers.resolved(value, Path.cwd(), rule)

    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        for inner in value.values() if isinstance(value, dict) else [value]:
            if dataclasses.is_dataclass(inner):
                _anchor(inner, runs, address)
        if "path" in field.metadata and value != field.default:
            setattr(section, field.name, anchored(value, field.metadata["path"]))


def _kind(stack: Sequence[Layer], section: str) -> str:
    given = [layer.values.get(section) for layer in stack]
    kinds = [str(values["kind"]) for values in given if isinstance(values, dict) and values.get("kind") is not None]
    return kinds[-1] if kinds else SECTIONS[section]().kind


def _section(layer: Layer, section: str, kind: str, final: str, options_of: OptionsOf) -> dict[str, Any]:
    """An open section of one layer: checked against the kind of its time, then cut to the keys of the ``final`` one."""
    values = layers.checked(layer, layer.values[section], options_of(section, kind), f"{section}.")
    if kind != final:
        kept = {field.name for field in dataclasses.fields(options_of(section, final))}
        values = {key: value for key, value in values.items() if key in kept and key != "kind"}
    return values


def _first_line(error: Exception) -> str:
    key = re.search(r"^\s*full_key: *(\S.*)$", str(error), re.MULTILINE)
    return f"{key[1].strip()}: {first_line(error)}" if key else first_line(error)
