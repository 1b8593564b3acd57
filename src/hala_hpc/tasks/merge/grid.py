"""The cells of a merge's grid: every combination of t, filters and other parameters, each with its name."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from hala_hpc.config.errors import HalaError

NAME: Final = re.compile(r"[\w-][\w.-]{0,99}")
"""Of a model, a set of filters, a merge: they become folders."""
FILTERS: Final = "for example [{filter: self_attn, value: [0, 0.5, 1]}, {filter: mlp, value: 0.7}, {value: 0.5}]"


@dataclass(frozen=True)
class Cell:
    """One combination: ``name`` ('' where nothing varies), what varies in plain words, and mergekit's parameters."""

    name: str
    told: dict[str, Any]
    parameters: dict[str, Any]


def cells(
    t: Sequence[float], filters: Mapping[str, Any], grid: Mapping[str, Any], parameters: Mapping[str, Any]
) -> Iterator[Cell]:
    """All combinations, the last axis turning fastest.

    Parameters
    ----------
    t : slerp's weights; none and no filters: of a method that has no t.
    filters : by label, t as mergekit's list of conditions. One that does not end with a value for all other tensors
        is combined with each of ``t``, which it then takes for those.
    grid : by parameter, the values to try.
    parameters : those that are the same everywhere.

    Raises
    ------
    HalaError : a list that is none, a filter of another form, two cells of one name.
    """
    for axis, values in grid.items():
        if not isinstance(values, list) or not values or not all(isinstance(one, int | float | str) for one in values):
            raise HalaError(f"task.grid.{axis}: a list of values is wanted, not {values!r}", "for example [0.3, 0.7]")
    axes = [[(axis, value) for value in values] for axis, values in grid.items()]
    weights = list(_weights(t, filters)) or [Cell("", {}, {})]
    names = set()
    for weight, chosen in itertools.product(weights, itertools.product(*axes)):
        name = "-".join([*filter(None, [weight.name]), *(f"{axis}{short(value)}" for axis, value in chosen)])
        if name in names:
            raise HalaError(f"task: two merges would be called '{name}'", "give each value once")
        if name:
            check_name("task.grid", name)
        names.add(name)
        yield Cell(name, weight.told | dict(chosen), {**parameters, **weight.parameters, **dict(chosen)})


def check_name(where: str, name: str) -> None:
    """Raises HalaError for what cannot be a folder's name."""
    if not NAME.fullmatch(name):
        raise HalaError(f"{where}: {name!r} cannot be a name", "letters, digits, . - and _; no . in front")


def short(value: Any) -> str:
    """A value in a name: fractions with at least two decimals, so that names sort as they do."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.2f}" if round(value, 2) == value else repr(value)


def _weights(t: Sequence[float], filters: Mapping[str, Any]) -> Iterator[Cell]:
    for one in t:
        yield Cell(f"t{short(float(one))}", {"t": one}, {"t": one})
    for label, given in filters.items():
        check_name("task.filters", label)
        conditions = _conditions(label, given)
        if "filter" not in conditions[-1]:
            yield Cell(label, {"filters": label}, {"t": conditions})
        elif not t:
            raise HalaError(
                f"task.filters.{label}: some tensors may have no t", "end with a value without filter, or give task.t"
            )
        else:
            for one in t:
                rest = [*conditions, {"value": one}]
                yield Cell(f"{label}-t{short(float(one))}", {"filters": label, "t": one}, {"t": rest})


def _conditions(label: str, given: Any) -> list[dict[str, Any]]:
    if not isinstance(given, list) or not given:
        raise HalaError(f"task.filters.{label}: a list is wanted", FILTERS)
    for one in given:
        if not isinstance(one, dict) or not {"value"} <= one.keys() <= {"filter", "value"}:
            raise HalaError(f"task.filters.{label}: {one!r} is not a filter and a value", FILTERS)
        values = one["value"] if isinstance(one["value"], list) else [one["value"]]
        if not values or not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            raise HalaError(f"task.filters.{label}: {one['value']!r} is neither a number nor a list of them", FILTERS)
    return given
