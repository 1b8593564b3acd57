"""How alike the tensors of two models are, read in pieces: memory does not grow with the tensors. Needs numpy only."""

import math
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from hala_hpc.models.safetensors_file import Tensor
from hala_hpc.tasks.merge.inputs import FLOATS, Input

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PIECE: Final = 1 << 20
"""Numbers looked at in one go."""
LERP_ABOVE: Final = 0.9995
"""Of the cosine's absolute value: mergekit's slerp interpolates linearly there (its ``dot_threshold``)."""
MOST_THREADS: Final = 8


def cosines(
    one: Input, two: Input, names: Iterable[str], check_stop: Callable[[], None] = lambda: None
) -> dict[str, float | None]:
    """The cosine between the tensors of two models, by name, each tensor taken as one long vector, in float64.

    None where one of the two is all zeros, and for tensors that hold no real numbers. ``check_stop`` may raise.
    """
    asked = [name for name in names if one.tensors[name][1].dtype in FLOATS]
    found: dict[str, float | None] = dict.fromkeys(names)
    with ThreadPoolExecutor(min(MOST_THREADS, len(os.sched_getaffinity(0)))) as threads:
        waiting = [
            threads.submit(_cosine, *one.tensors[name], *two.tensors[name], check_stop=check_stop) for name in asked
        ]
        try:
            for name, cosine in zip(asked, waiting, strict=True):
                found[name] = cosine.result()
        except BaseException:
            threads.shutdown(wait=True, cancel_futures=True)
            raise
    return found


def numbers(file: BinaryIO, dtype: str, count: int) -> "NDArray[np.float64]":
    """The next ``count`` numbers of an open file, of a type by safetensors' name, as float64."""
    import numpy as np

    read: Any = np.fromfile(file, {"BF16": "<u2", "F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype], count)
    if dtype == "BF16":
        read = (read.astype("<u4") << 16).view("<f4")
    found: NDArray[np.float64] = read.astype(np.float64)
    return found


def _cosine(one_file: Path, one: Tensor, two_file: Path, two: Tensor, check_stop: Callable[[], None]) -> float | None:
    import numpy as np

    dot = square = other_square = 0.0
    count = math.prod(one.shape)
    with one_file.open("rb") as first, two_file.open("rb") as second:
        first.seek(one.begin)
        second.seek(two.begin)
        for at in range(0, count, PIECE):
            check_stop()
            size = min(PIECE, count - at)
            a, b = numbers(first, one.dtype, size), numbers(second, two.dtype, size)
            dot += float(np.dot(a, b))
            square += float(np.dot(a, a))
            other_square += float(np.dot(b, b))
    if not square or not other_square:
        return None
    cosine = dot / math.sqrt(square) / math.sqrt(other_square)
    return max(-1.0, min(1.0, cosine)) if math.isfinite(cosine) else None
