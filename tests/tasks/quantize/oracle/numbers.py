"""Quantized weights as numbers again, by numpy alone: an oracle that shares nothing with the library."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hala_hpc.models import safetensors_file
from hala_hpc.models.safetensors_file import Tensor
from hala_hpc.tasks.quantize.schemes import Scheme

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.floating[Any]]
    Array = npt.NDArray[Any]

KINDS: Final = {
    "BF16": "<u2",
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
    "F8_E4M3": "u1",
    "I8": "i1",
    "U8": "u1",
    "I32": "<i4",
    "I64": "<i8",
}
"""By safetensors' name of a type: as what its bytes are read."""
BLOCK_ELEMENTS: Final = 1 << 18
"""Numbers looked at in one go: few enough to stay in a core's cache."""
FP4: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""E2M1, positive; the fourth bit is the sign (OCP Microscaling Formats 1.0, 5.3.3)."""
BIAS: Final = 127
"""Of a scale stored as an exponent (E8M0; OCP Microscaling Formats 1.0, 5.4.1)."""


class Weights:
    """The tensors of some safetensors files, read where they lie."""

    def __init__(self, *files: Path) -> None:
        self.found: dict[str, tuple[Path, Tensor]] = {}
        for file in files:
            for tensor in safetensors_file.tensors_of(file):
                self.found[tensor.name] = (file, tensor)

    def __contains__(self, name: str) -> bool:
        return name in self.found

    def tensor(self, name: str) -> Tensor:
        return self.found[name][1]

    def raw(self, name: str) -> "Array":
        """A tensor in its shape, as it is stored (bfloat16 and float8 by their bits)."""
        import numpy as np

        file, tensor = self.found[name]
        if tensor.begin == tensor.end:
            return np.empty(tensor.shape, KINDS[tensor.dtype])
        return np.memmap(file, KINDS[tensor.dtype], "r", tensor.begin, tensor.shape)

    def is_same(self, name: str, other: "Weights") -> bool:
        """Whether a tensor is there byte for byte, of the same type and shape."""
        mine, theirs = self.tensor(name), other.tensor(name)
        if (mine.dtype, mine.shape) != (theirs.dtype, theirs.shape):
            return False
        one, two = (part.reshape(-1).view("u1") for part in (self.raw(name), other.raw(name)))
        step = BLOCK_ELEMENTS * 8
        return all(bool((one[at : at + step] == two[at : at + step]).all()) for at in range(0, len(one), step))


@dataclass(frozen=True)
class Rows:
    """Some rows of a weight: the source's numbers, what was stored, the steps that it counts, and each one's scale.

    All have the shape [rows, columns]; a stored number is worth ``steps * scales``.
    """

    source: "Floats"
    steps: "Floats"
    scales: "Floats"


def scales_of(name: str, made: Weights, scheme: Scheme) -> "Floats":
    """What one step of a quantized weight is worth, in the shape in which scales are stored."""
    part = name.removesuffix("weight") + "weight_scale"
    found = numbers(made.raw(part), made.tensor(part).dtype, scheme.exponents)
    if scheme.strategy == "tensor_group":
        found = found / numbers(made.raw(name.removesuffix("weight") + "weight_global_scale"), "F32")
    return found


def rows_of(name: str, source: Weights, made: Weights, scheme: Scheme) -> Iterator[Rows]:
    """A quantized weight beside its source, some rows at a time. Shapes must have been looked at before."""
    import numpy as np

    module = name.removesuffix("weight")
    rows, columns = source.tensor(name).shape
    scales = scales_of(name, made, scheme)
    zeros = _zero_points(made, module, rows, scheme) if not scheme.symmetric else None
    least = scheme.group if scheme.strategy == "block" else 1  # rows that share a scale stay together
    step = max(1, BLOCK_ELEMENTS // max(1, columns) // least) * least
    for begin in range(0, rows, step):
        part = slice(begin, min(begin + step, rows))
        steps = _steps(made, module, part, columns, scheme)
        if zeros is not None:
            steps = steps - _spread(zeros[part], steps.shape, scheme)
        if scheme.strategy == "tensor":
            spread: Floats = np.broadcast_to(scales, steps.shape)
        else:
            spread = _spread(
                scales[begin // scheme.group :] if scheme.strategy == "block" else scales[part], steps.shape, scheme
            )
        yield Rows(numbers(source.raw(name)[part], source.tensor(name).dtype), steps, spread)


def numbers(stored: "Array", dtype: str, exponents: bool = False) -> "Floats":
    """What is stored, as float32, which holds all that is; float64 of such."""
    import numpy as np

    found: Floats
    if dtype == "BF16":
        found = (np.asarray(stored, "u4") << 16).view("f4")
    elif dtype == "F8_E4M3":
        found = float8()[stored]
    elif exponents:
        found = np.exp2(np.asarray(stored, "f4") - BIAS)
    else:
        found = np.asarray(stored, "f8" if dtype == "F64" else "f4")
    return found


def float8() -> "Floats":
    """The 256 numbers of float8 E4M3FN (OCP 8-bit Floating Point, table 1): bias 7, no infinity, NaN all ones."""
    import numpy as np

    bits = np.arange(256)
    exponent, mantissa = bits >> 3 & 15, bits & 7
    size = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * np.exp2(exponent - 10.0))
    size[(bits & 127) == 127] = np.nan
    found: Floats = np.where(bits & 128, -size, size).astype("f4")
    return found


def _steps(made: Weights, module: str, part: slice, columns: int, scheme: Scheme) -> "Floats":
    import numpy as np

    if not scheme.packed:
        name = f"{module}weight"
        return numbers(made.raw(name)[part], made.tensor(name).dtype)
    stored = made.raw(f"{module}weight_packed")[part]
    if scheme.number == "int":
        return unpacked(stored, scheme.bits, columns)
    halves = np.stack([stored & 15, stored >> 4], -1).reshape(len(stored), -1)
    table = np.array(FP4, "f4")
    return np.concatenate([table, -table])[halves]


def unpacked(words: "Array", bits: int, columns: int) -> "Floats":
    """Signed integers of ``bits`` bits out of int32 words, row by row, lowest bits first and without gaps."""
    import numpy as np

    flat = np.unpackbits(np.ascontiguousarray(words).view("u1"), axis=1, bitorder="little")[:, : columns * bits]
    places = 1 << np.arange(bits)
    return (flat.reshape(len(words), columns, bits) @ places).astype("f4") - (1 << bits - 1)


def _zero_points(made: Weights, module: str, rows: int, scheme: Scheme) -> "Floats":
    """One for each scale; they are packed down the columns."""
    stored = made.raw(f"{module}weight_zero_point")
    return unpacked(stored.T, scheme.bits, rows).T


def _spread(scales: "Floats", shape: tuple[int, ...], scheme: Scheme) -> "Floats":
    """Scales of channels, groups or blocks, one for each number."""
    import numpy as np

    if scheme.strategy == "channel":
        return np.broadcast_to(scales, shape)
    wide = np.repeat(scales, scheme.group, axis=1)
    if scheme.strategy == "block":
        wide = np.repeat(wide, scheme.group, axis=0)
    return wide[: shape[0], : shape[1]]
