"""Is a quantized file what it should be: held against the source, tensor by tensor, by numpy alone."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hala_hpc.models.safetensors_file import Unreadable
from hala_hpc.tasks.quantize import schemes
from hala_hpc.tasks.quantize.schemes import Scheme
from tests.tasks.quantize.oracle.numbers import Rows, Weights, numbers, rows_of, scales_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.floating[Any]]

EPSILON: Final = {"F32": 2.0**-22, "F16": 2.0**-9, "BF16": 2.0**-6, "F8_E4M3": 2.0**-3, "U8": 1.0}
"""How far, relatively, a scale may be from the ideal one, by the type that it is stored in: a few roundings of that
type, and a factor of two where only powers of two are stored."""
QUOTIENT: Final = {"F32": 2.0**-20, "F16": 2.0**-10, "BF16": 2.0**-7}
"""By the source's type, in which weight / scale is computed before it is rounded: two roundings of it."""
INPUT: Final = ("input_scale", "input_global_scale")
"""What calibration adds to a module: one positive number each."""


@dataclass(frozen=True)
class TensorReport:
    """What became of one tensor of the source.

    ``error`` is the root mean square of the difference over that of the source; ``worst`` the largest difference as a
    share of what rounding allows.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    error: float | None = None
    worst: float | None = None
    problems: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For a report in JSON; tensors that were not quantized have no errors."""
        told: dict[str, Any] = {"name": self.name, "shape": list(self.shape), "dtype": self.dtype}
        found = {"error": self.error, "worst": self.worst}
        return told | {key: round(value, 8) for key, value in found.items() if value is not None}


def compare(
    sources: Sequence[Path],
    made: Sequence[Path],
    names: Sequence[str],
    scheme: Scheme,
    ignore: Sequence[str],
    is_rounded: bool = True,
    check_stop: Callable[[], None] = lambda: None,
) -> list[TensorReport]:
    """Hold quantized files against the tensors ``names`` of the source, which they must hold and nothing else.

    Ignored tensors must be the source's byte for byte. Of the others, scales must be positive, finite and of the
    scheme's shape, and with ``is_rounded`` each number must be the source's but for the scheme's rounding, and each
    scale the one that just covers its numbers; methods that look at texts (GPTQ) give both up.

    Tensors are looked at by as many threads as there are cores, which call ``check_stop``. Raises Unreadable, OSError
    for files that are none.
    """
    source, result = Weights(*sources), Weights(*made)
    expected: set[str] = set()
    for name in names:
        if schemes.is_quantized(name, ignore):
            module = name.removesuffix("weight")
            expected |= {module + suffix for suffix in (*scheme.suffixes, *(INPUT if scheme.calibrated else ()))}
        else:
            expected.add(name)

    def report(name: str) -> TensorReport:
        check_stop()
        if schemes.is_quantized(name, ignore):
            return _quantized(name, source, result, scheme, is_rounded)
        return _kept(name, source, result)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        reports = list(threads.map(report, names))
    beyond = sorted(result.found.keys() - expected)
    return [*reports, *(_stranger(name, result) for name in beyond)]


def faults(reports: Sequence[TensorReport]) -> list[str]:
    """All that is wrong, in plain words."""
    return [f"{report.name}: {problem}" for report in reports for problem in report.problems]


def problems_of(check: Callable[[], Sequence[TensorReport]]) -> list[str]:
    """``faults`` of a check that may not be possible, for want of whole files."""
    try:
        return faults(check())
    except (OSError, Unreadable) as error:
        return [f"cannot be compared: {error}"]


def _stranger(name: str, result: Weights) -> TensorReport:
    tensor = result.tensor(name)
    return TensorReport(name, tensor.shape, tensor.dtype, problems=("the source has no such tensor",))


def _kept(name: str, source: Weights, result: Weights) -> TensorReport:
    tensor = source.tensor(name)
    if name not in result:
        problems: tuple[str, ...] = ("is missing",)
    else:
        problems = () if result.is_same(name, source) else ("is left out of quantizing, yet not the source's",)
    return TensorReport(name, tensor.shape, tensor.dtype, problems=problems)


def _quantized(name: str, source: Weights, result: Weights, scheme: Scheme, is_rounded: bool) -> TensorReport:
    tensor = source.tensor(name)
    dtype = f"{scheme.number}{scheme.bits}"
    problems = tuple(_misshapen(name, source, result, scheme))
    if problems:
        return TensorReport(name, tensor.shape, dtype, problems=problems)
    error, worst, told = _differences(name, source, result, scheme, is_rounded)
    return TensorReport(name, tensor.shape, dtype, error, worst, tuple(told))


def _misshapen(name: str, source: Weights, result: Weights, scheme: Scheme) -> Iterator[str]:
    """Missing parts, other shapes and types, scales that are none."""
    import numpy as np

    module = name.removesuffix("weight")
    wanted = _shapes(source.tensor(name).shape, scheme)
    inputs = [suffix for suffix in INPUT if scheme.calibrated and module + suffix in result]
    if scheme.calibrated and not inputs:
        yield "has no scale for its inputs"
    for suffix in (*scheme.suffixes, *inputs):
        part = module + suffix
        if part not in result:
            yield f"{suffix} is missing"
            continue
        tensor = result.tensor(part)
        shape, dtypes = wanted.get(suffix, ((1,), ()))
        if tensor.shape != shape or (dtypes and tensor.dtype not in dtypes):
            found = f"{tensor.dtype} {list(tensor.shape)}"
            yield f"{suffix} is {found}, not {' or '.join(dtypes)} {list(shape)}"
        elif suffix.endswith("scale"):
            values = numbers(result.raw(part), tensor.dtype, scheme.exponents)
            if not bool((np.isfinite(values) & (values > 0)).all()):
                yield f"{suffix} holds what is no positive number"
        elif suffix == "weight_shape" and list(result.raw(part)) != list(source.tensor(name).shape):
            yield f"{suffix} tells of another shape"


def _shapes(shape: tuple[int, ...], scheme: Scheme) -> dict[str, tuple[tuple[int, ...], tuple[str, ...]]]:
    """By suffix: its shape and the types that it may have."""
    rows, columns = shape
    scales = scale_shape(shape, scheme)
    if scheme.packed:
        width = columns // 2 if scheme.number == "float" else -(-columns * scheme.bits // 32)
        kind = "U8" if scheme.number == "float" else "I32"
    else:
        width, kind = columns, "I8" if scheme.number == "int" else "F8_E4M3"
    stored = ("U8",) if scheme.exponents else ("F8_E4M3",) if scheme.strategy == "tensor_group" else _FLOATS
    return {
        "weight": (shape, (kind,)),
        "weight_packed": ((rows, width), (kind,)),
        "weight_scale": (scales, stored),
        "weight_global_scale": ((1,), ("F32",)),
        "weight_shape": ((2,), ("I64", "I32")),
        "weight_zero_point": ((-(-rows * scheme.bits // 32), scales[-1]), ("I32",)),
    }


_FLOATS: Final = ("BF16", "F16", "F32")


def _differences(
    name: str, source: Weights, result: Weights, scheme: Scheme, is_rounded: bool
) -> tuple[float, float | None, list[str]]:
    """Relative error, the worst difference as a share of the bound, and what is wrong."""
    import numpy as np

    quotient = QUOTIENT[source.tensor(name).dtype]
    slack = EPSILON[result.tensor(name.removesuffix("weight") + "weight_scale").dtype]
    squares = reference = worst = 0.0
    broken = 0
    peaks = []
    for rows in rows_of(name, source, result, scheme):
        found = rows.steps * rows.scales
        broken += int((~np.isfinite(found)).sum())
        difference = np.abs(found - rows.source)
        squares += float(np.square(difference).sum(dtype="f8"))
        reference += float(np.square(rows.source).sum(dtype="f8"))
        if is_rounded:
            share = difference / _bound(rows, scheme, quotient, slack)
            worst = max(worst, float(np.nan_to_num(share, nan=np.inf).max(initial=0.0)))
            peaks.append(_peaks(rows.source, scheme))
    problems = [f"{broken} of its numbers are none"] if broken else []
    if worst > 1 + 2.0**-12:  # computed in float32
        problems.append(f"a number is {worst:.3g} times as far off as rounding allows")
    if is_rounded and (off := _unfit(scales_of(name, result, scheme), peaks, scheme, slack)):
        problems.append(f"{off} scales do not fit their numbers")
    error = float(np.sqrt(squares / reference)) if reference else 0.0
    return error, worst if is_rounded else None, problems


def _bound(rows: Rows, scheme: Scheme, quotient: float, slack: float) -> "Floats":
    """The most by which rounding to the nearest may change each number.

    Half the distance of its neighbours, what computing weight / scale in the source's own type adds, and what is cut
    off at the end of the range where the stored scale came out smaller than the ideal one.
    """
    import numpy as np

    size = np.abs(rows.source) / rows.scales
    computed = size * quotient
    if scheme.number == "int":
        half = np.full_like(size, 0.5 if scheme.symmetric else 1.0)
    elif scheme.bits == 8:
        half = np.maximum((size + computed) * 2.0**-4, 2.0**-10)
    else:
        half = np.maximum((size + computed) * 0.25, 0.25)
    edge = largest(scheme) - (0.5 if scheme.number == "int" else 0.0)
    cut = np.minimum(np.maximum(size - edge, 0.0), 0.5 * (scheme.number == "int") + edge * slack)
    bound: Floats = rows.scales * (half + computed + cut)
    return bound


def _peaks(source: "Floats", scheme: Scheme) -> "Floats":
    """For each scale of some rows, what it has to cover: the largest size or, without symmetry, the range."""
    import numpy as np

    found: Floats
    if scheme.strategy == "tensor":
        found = np.abs(source).max(keepdims=True)
    elif scheme.strategy == "block":
        rows, columns = (np.arange(0, extent, scheme.group) for extent in source.shape)
        found = np.maximum.reduceat(np.maximum.reduceat(np.abs(source), rows, 0), columns, 1)
    else:
        grouped = source.reshape(len(source), -1, scheme.group or source.shape[1])
        found = np.abs(grouped).max(-1)
        if not scheme.symmetric:
            found = grouped.max(-1).clip(0) - grouped.min(-1).clip(None, 0)
    return found


def _unfit(scales: "Floats", peaks: Sequence["Floats"], scheme: Scheme, slack: float) -> int:
    """How many scales are larger or smaller than what covers their numbers.

    Of float8 scales only those are looked at that are far from its smallest numbers, where it rounds coarsely.
    """
    import numpy as np

    found = np.concatenate(list(peaks))
    if scheme.strategy == "tensor":
        found = found.max(keepdims=True)
    ideal = found.reshape(scales.shape) / (largest(scheme) if scheme.symmetric else 2 * largest(scheme))
    fits = (scales <= ideal * (1 + slack)) & (scales >= ideal / (1 + slack))
    least = float(scales.max()) * 2.0**-12 if scheme.strategy == "tensor_group" else float(np.finfo("f4").tiny)
    return int((~fits & (ideal > least)).sum())


def largest(scheme: Scheme) -> float:
    """Half of the range that a scale of 1 covers: the largest number, or for integers half a step more."""
    if scheme.number == "int":
        return ((1 << scheme.bits) - 1) / 2
    return 448.0 if scheme.bits == 8 else 6.0


def scale_shape(shape: Sequence[int], scheme: Scheme) -> tuple[int, ...]:
    """The shape of a weight's scales."""
    rows, columns = shape
    if scheme.strategy == "tensor":
        return (1,)
    if scheme.strategy == "channel":
        return (rows, 1)
    if scheme.strategy == "block":
        return (-(-rows // scheme.group), -(-columns // scheme.group))
    return (rows, columns // scheme.group)
