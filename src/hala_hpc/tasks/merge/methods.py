"""The merge methods of mergekit, so that a wrong recipe is refused where mergekit is not installed."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from hala_hpc.config.errors import HalaError, did_you_mean

Base = Literal["required", "optional", "ignored"]
"""What a method does with a base model: it needs one, can do with or without, or takes all models alike."""


@dataclass(frozen=True)
class Method:
    """What a method asks for. ``inputs`` and ``others``: how many models with and without the base, least and most.

    ``parameters`` hold for all models; those of ``each`` may be given for each, which its ``with_base`` includes the
    base in. ``needed`` are those without a default. ``is_exact``: it computes in float32 whatever it is given.
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
    """Of the family of task arithmetic."""
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
    """How many models besides the recipe's own go into one merge, at most; None: any number.

    ``has_base``: the recipe's own is the base, and no input like the others.
    """
    most = [bound - 1 for bound in [method.inputs[1]] if bound is not None]
    most += [bound - (not has_base) for bound in [method.others[1]] if bound is not None]
    return min(most, default=None)


def check_count(name: str, method: Method, others: int, has_base: bool) -> None:
    """Raises HalaError where one merge has too few or too many models: the recipe's own and so many ``others``."""
    least = max(method.inputs[0] - 1, method.others[0] - (not has_base), 0)
    most = most_others(method, has_base)
    if others < least or (most is not None and others > most):
        wanted = f"{least}" if least == most else f"{least} to {most}" if most is not None else f"at least {least}"
        raise HalaError(f"task.models: {others} models, where {name} takes {wanted} besides model.name")


def check_parameters(where: str, names: Iterable[str], valid: Iterable[str]) -> None:
    """Raises HalaError for a parameter that the method does not have."""
    valid = tuple(valid)
    if wrong := next((name for name in names if name not in valid), None):
        raise HalaError(f"{where}: no parameter '{wrong}'", did_you_mean(wrong, valid))
