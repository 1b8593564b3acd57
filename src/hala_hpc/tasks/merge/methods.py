"""What a recipe may ask of mergekit, so that a wrong one is refused where mergekit is not installed.

Its merge methods with their parameters, and the grid: every combination of t, filters and other parameters.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from hala_hpc.config.errors import HalaError, did_you_mean, refuse_odd_name

Base = Literal["required", "optional", "ignored"]
"""What a method does with a base model: it needs one, works with or without, or takes all models alike."""


@dataclass(frozen=True)
class Method:
    """What a method needs. ``inputs`` and ``others``: the least and most models, with and without the base.

    ``parameters`` hold for all models; those of ``each`` may differ from model to model, the base included if
    ``with_base``. ``needed`` have no default. ``is_exact``: it computes in float32 whatever the recipe says.
    """

    base: Base
    inputs: tuple[int, int | None] = (1, None)
    others: tuple[int, int | None] = (0, None)
    parameters: tuple[str, ...] = ()
    each: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()
    with_base: bool = False
    is_exact: bool = False

    def known(self) -> tuple[str, ...]:
        """All parameters' names."""
        return (*self.parameters, *self.each)


def _tasks(*more: str) -> Method:
    """A method of the family of task arithmetic."""
    shared = ("int8_mask", "normalize", "rescale", "lambda")
    return Method("required", parameters=shared, each=("weight", "density", *more), needed=("weight",))


METHODS: Final[dict[str, Method]] = {
    "slerp": Method("required", (2, 2), parameters=("t",), needed=("t",), is_exact=True),
    "nearswap": Method("required", (2, 2), parameters=("t",), needed=("t",)),
    "arcee_fusion": Method("required", (2, 2)),
    "linear": Method("ignored", parameters=("normalize",), each=("weight",), needed=("weight",), with_base=True),
    "nuslerp": Method(
        "optional", others=(2, 2), parameters=("nuslerp_row_wise", "nuslerp_flatten"), each=("weight",),
        needed=("weight",),
    ),
    "multislerp": Method(
        "optional", others=(1, None), parameters=("normalize_weights", "eps"), each=("weight",), needed=("weight",)
    ),
    "karcher": Method("ignored", parameters=("max_iter", "tol")),
    "passthrough": Method("ignored", (1, 1), each=("scale",), with_base=True, is_exact=True),
    "model_stock": Method("required", (3, None), parameters=("filter_wise",)),
    "ram": Method("required", parameters=("epsilon",)),
    "ramplus_tl": Method("required", parameters=("r", "alpha", "epsilon")),
    "sce": Method("required", parameters=("int8_mask", "select_topk")),
    "task_arithmetic": _tasks(),
    "ties": _tasks(),
    "dare_ties": _tasks(),
    "dare_linear": _tasks(),
    "breadcrumbs": _tasks("gamma"),
    "breadcrumbs_ties": _tasks("gamma"),
    "della": _tasks("epsilon"),
    "della_linear": _tasks("epsilon"),
}  # fmt: skip
"""By name, as mergekit 0.1.5 has them (its registry; a test holds the two against each other)."""


def method_of(name: str) -> Method:
    """A method by its name. Raises HalaError that lists what there is."""
    if name not in METHODS:
        raise HalaError(f"task.method: mergekit has no method '{name}'", did_you_mean(name, METHODS))
    return METHODS[name]


def most_others(method: Method, has_base: bool) -> int | None:
    """How many models besides the recipe's own go into one merge at most; None: any number.

    ``has_base``: the recipe's own is the base, not an input like the others.
    """
    bounds = ((method.inputs[1], 1), (method.others[1], not has_base))
    return min((most - own for most, own in bounds if most is not None), default=None)


def check_count(name: str, method: Method, others: int, has_base: bool) -> None:
    """Raises HalaError where one merge has too few or too many models: the recipe's own and so many ``others``."""
    least = max(method.inputs[0] - 1, method.others[0] - (not has_base), 0)
    most = most_others(method, has_base)
    if others < least or (most is not None and others > most):
        wanted = f"{least}" if least == most else f"{least} to {most}" if most is not None else f"at least {least}"
        raise HalaError(f"task.models: {others} models, where {name} takes {wanted} besides model.name")


def check_parameters(where: str, names: Iterable[str], valid: Sequence[str]) -> None:
    """Raises HalaError for a parameter that the method does not have."""
    if wrong := next((name for name in names if name not in valid), None):
        raise HalaError(f"{where}: no parameter '{wrong}'", did_you_mean(wrong, valid))


FILTERS: Final = "for example [{filter: self_attn, value: [0, 0.5, 1]}, {filter: mlp, value: 0.7}, {value: 0.5}]"


@dataclass(frozen=True)
class Combination:
    """``name`` ('' where nothing varies), the values that vary, as the report shows them, and mergekit's parameters."""

    name: str
    varied: Mapping[str, Any]
    parameters: Mapping[str, Any]


def combinations(
    t: Sequence[float], filters: Mapping[str, Any], grid: Mapping[str, Any], parameters: Mapping[str, Any]
) -> Iterator[Combination]:
    """All combinations, the last axis turning fastest.

    Parameters
    ----------
    t : slerp's weights; empty, and no filters, for a method without t.
    filters : by label, t as mergekit's list of conditions. One that does not end with a value for all other tensors
        is combined with each of ``t``, which it then takes for those.
    grid : by parameter, the values to try.
    parameters : those that are the same everywhere.

    Raises
    ------
    HalaError : a value that is not a list, a filter of another form, two combinations of one name.
    """
    for axis, values in grid.items():
        if not (isinstance(values, list) and values and all(isinstance(value, int | float | str) for value in values)):
            raise HalaError(f"task.grid.{axis}: a list of values is wanted, not {values!r}", "for example [0.3, 0.7]")
    axes = [[(axis, value) for value in values] for axis, values in grid.items()]
    weights = list(_weights(t, filters)) or [Combination("", {}, {})]
    names = set()
    for weight, chosen in itertools.product(weights, itertools.product(*axes)):
        name = "-".join([*filter(None, [weight.name]), *(f"{axis}{short(value)}" for axis, value in chosen)])
        if name in names:
            raise HalaError(f"task: two merges would be called '{name}'", "give each value once")
        if name:
            refuse_odd_name("task.grid", name, "a name")
        names.add(name)
        yield Combination(name, weight.varied | dict(chosen), {**parameters, **weight.parameters, **dict(chosen)})


def short(value: Any) -> str:
    """A value in a name: fractions with at least two decimals, so that names sort as they do."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.2f}" if round(value, 2) == value else repr(value)


def _weights(t: Sequence[float], filters: Mapping[str, Any]) -> Iterator[Combination]:
    for weight in t:
        yield Combination(f"t{short(float(weight))}", {"t": weight}, {"t": weight})
    for label, listed in filters.items():
        refuse_odd_name("task.filters", label, "a name")
        conditions = _conditions(label, listed)
        if "filter" not in conditions[-1]:
            yield Combination(label, {"filters": label}, {"t": conditions})
        elif not t:
            raise HalaError(
                f"task.filters.{label}: some tensors may have no t", "end with a value without filter, or give task.t"
            )
        else:
            for weight in t:
                name = f"{label}-t{short(float(weight))}"
                yield Combination(name, {"filters": label, "t": weight}, {"t": [*conditions, {"value": weight}]})


def _conditions(label: str, listed: Any) -> Sequence[Mapping[str, Any]]:
    if not isinstance(listed, list) or not listed:
        raise HalaError(f"task.filters.{label}: a list is wanted", FILTERS)
    for condition in listed:
        if not isinstance(condition, dict) or not {"value"} <= condition.keys() <= {"filter", "value"}:
            raise HalaError(f"task.filters.{label}: {condition!r} is not a filter and a value", FILTERS)
        value = condition["value"]
        values = value if isinstance(value, list) else [value]
        if not values or not all(isinstance(part, int | float) and not isinstance(part, bool) for part in values):
            raise HalaError(f"task.filters.{label}: {value!r} is neither a number nor a list of them", FILTERS)
    return listed
