"""How far quantized weights are from those of the source: taken back by compressed-tensors, tensor by tensor."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hala_hpc.models.safetensors_file import Tensors
from hala_hpc.tasks.quantize import schemes
from hala_hpc.tasks.quantize.schemes import Scheme

ELEMENTS: Final = 1 << 22
"""Numbers compared at a time: memory does not grow with the weights."""
WORST: Final = 1.0
"""A relative error that zeros in place of the weight would have."""


@dataclass(frozen=True)
class TensorReport:
    """What became of one tensor of the source.

    ``error`` is the root mean square of the difference over that of the source; None for a tensor that stayed.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    error: float | None = None
    problem: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For a report in JSON."""
        told: dict[str, Any] = {"name": self.name, "shape": list(self.shape), "dtype": self.dtype}
        return told if self.error is None else told | {"error": round(self.error, 8)}


def compare(
    sources: Sequence[Path],
    made: Sequence[Path],
    names: Sequence[str],
    scheme: Scheme,
    ignore: Sequence[str],
    config: Mapping[str, Any],
    check_stop: Callable[[], None],
) -> list[TensorReport]:
    """Hold the files ``made`` against the tensors ``names`` of the source, which they must hold and nothing else.

    Ignored tensors must be the source's byte for byte. Others are turned into numbers again, by the
    ``quantization_config`` of the model. ``check_stop`` is called before each tensor.
    """
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    (group,) = QuantizationConfig.model_validate(config).config_groups.values()
    compressor = BaseCompressor.get_value_from_registry(group.format)
    reports = []
    with Tensors(*sources) as source, Tensors(*made) as result:
        for name in names:
            check_stop()
            weight = source[name]
            shape, dtype = tuple(weight.shape), str(weight.dtype).removeprefix("torch.")
            if not schemes.is_quantized(name, ignore):
                problem = None if name in result and _is_same(weight, result[name]) else "is not the source's"
                reports.append(TensorReport(name, shape, dtype, problem=problem))
                continue
            dtype = f"{scheme.number}{scheme.bits}"
            wanted = schemes.parts(name, scheme)
            if missing := sorted(wanted - result.keys()):
                reports.append(TensorReport(name, shape, dtype, problem=f"{missing[0]} is missing"))
                continue
            module = name.removesuffix("weight")
            stored = {part.removeprefix(module): result[part] for part in wanted}
            error = _relative_error(weight, compressor.decompress(stored, group)["weight"])
            problem = None if error < WORST else f"is {error:.3g} off, relative to its size"
            reports.append(TensorReport(name, shape, dtype, error, problem))
        beyond = result.keys() - schemes.expected(names, scheme, ignore)
    return [*reports, *(TensorReport(name, (), "", problem="the source has no such tensor") for name in sorted(beyond))]


def _is_same(one: Any, other: Any) -> bool:
    """Byte for byte: NaN is itself, and 0 is not -0."""
    import torch

    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    flat = [tensor.contiguous().view(-1).view(torch.uint8).split(ELEMENTS) for tensor in (one, other)]
    return all(torch.equal(*pieces) for pieces in zip(*flat, strict=True))


def _relative_error(weight: Any, restored: Any) -> float:
    """Of all numbers; NaN where a restored one is."""
    if weight.shape != restored.shape:
        return float("inf")
    squares = reference = 0.0
    for one, other in zip(weight.reshape(-1).split(ELEMENTS), restored.reshape(-1).split(ELEMENTS), strict=True):
        exact = one.double()
        squares += float((other.double() - exact).square().sum())
        reference += float(exact.square().sum())
    if not reference:
        return 0.0 if not squares else float("inf")
    return float((squares / reference) ** 0.5)
