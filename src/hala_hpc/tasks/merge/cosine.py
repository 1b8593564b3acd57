"""How alike the tensors of two models are, read in pieces: memory does not grow with the tensors."""

import math
from collections.abc import Callable, Iterable
from typing import Any, Final

from hala_hpc.models.safetensors_file import Tensor, Tensors
from hala_hpc.tasks.merge.inputs import FLOATS, Input

PIECE: Final = 1 << 22
"""Numbers looked at in one go."""
LERP_ABOVE: Final = 0.9995
"""Of the cosine's absolute value: mergekit's slerp interpolates linearly there (its ``dot_threshold``)."""


def cosines(
    one: Input, two: Input, names: Iterable[str], check_stop: Callable[[], None] = lambda: None
) -> dict[str, float | None]:
    """The cosine between the tensors of two models, by name, each tensor taken as one long vector, in float64.

    None where one of the two is all zeros, and for tensors that hold no real numbers. ``check_stop`` may raise.
    """
    found: dict[str, float | None] = dict.fromkeys(names)
    with Tensors(*one.files()) as mine, Tensors(*two.files()) as other:
        for name in (name for name in found if one.tensors[name][1].dtype in FLOATS):
            check_stop()
            found[name] = _cosine(_part(mine[name], one.tensors[name][1]), _part(other[name], two.tensors[name][1]))
    return found


def _part(stored: Any, tensor: Tensor) -> Any:
    """The rows that are meant: of a vocabulary that was cut they are fewer than are stored."""
    return stored[: tensor.shape[0]] if tensor.shape else stored


def _cosine(one: Any, two: Any) -> float | None:
    dot = square = other_square = 0.0
    for a, b in zip(one.reshape(-1).split(PIECE), two.reshape(-1).split(PIECE), strict=True):
        a, b = a.double(), b.double()
        dot += float(a @ b)
        square += float(a @ a)
        other_square += float(b @ b)
    if not square or not other_square:
        return None
    cosine = dot / math.sqrt(square) / math.sqrt(other_square)
    return max(-1.0, min(1.0, cosine)) if math.isfinite(cosine) else None
