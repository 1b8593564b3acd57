"""Quantize one weights file at a time, by LLM Compressor's path that needs no model; and measure the errors.

Memory holds what becomes of one file, and one weight with the copies that the library makes of it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NotRequired, TypedDict

from hala_hpc.models.safetensors_file import Tensors
from hala_hpc.tasks.quantize import schemes
from hala_hpc.tasks.quantize.schemes import Scheme

ELEMENTS: Final = 1 << 22
"""Numbers compared at a time: memory does not grow with the weights."""
WORST: Final = 1.0
"""The relative error of zeros in place of the weight."""


class TensorError(TypedDict):
    """A tensor of the source in a report.

    ``error`` is the root mean square of the difference over that of the source; absent for a tensor that stayed.
    """

    name: str
    shape: list[int]
    dtype: str
    error: NotRequired[float]


@dataclass(frozen=True)
class Weights:
    """The tensors ``names`` in some files of the source, and how they are quantized."""

    files: Sequence[Path]
    names: Sequence[str]
    scheme: Scheme
    ignore: Sequence[str]


def quantize_file(weights: Weights, target: Path, device: str, check_stop: Callable[[], None]) -> Mapping[str, Any]:
    """Write ``target``: the weights, quantized where they are to be.

    Returns the configuration that belongs into the model's ``config.json`` as ``quantization_config``. ``check_stop``
    is called before each weight. What is half written when it raises is the caller's to remove.
    """
    from llmcompressor.entrypoints.model_free.converter import ModelFreePtqConverter
    from safetensors.torch import save_file

    converter = ModelFreePtqConverter(configuration(weights.scheme, weights.ignore))
    results: dict[str, Any] = {}
    with Tensors(*weights.files) as source:
        for group in _groups(weights.names, weights.scheme):
            check_stop()
            if schemes.is_quantized(group[0], weights.ignore):
                quantized = converter.process({name: source[name].to(device) for name in group})
                results |= {name: tensor.cpu() for name, tensor in quantized.items()}
            else:
                results |= {name: source[name] for name in group}
        save_file(results, target, {"format": "pt"})
    return _described(converter)


def configuration(scheme: Scheme, ignore: Sequence[str]) -> Any:
    """LLM Compressor's own configuration of a scheme (``QuantizationConfig``)."""
    import torch
    from compressed_tensors.compressors.format import infer_module_format
    from llmcompressor.entrypoints.model_free.validate import validate_config

    config = validate_config(None, scheme.name, ignore)
    for group in config.config_groups.values():  # known only when a first weight is quantized, and a file may have none
        group.format = infer_module_format(torch.nn.Linear, group)
    return config


def measure_errors(
    weights: Weights, written: Sequence[Path], config: Mapping[str, Any], check_stop: Callable[[], None]
) -> list[TensorError]:
    """Compare the files ``written`` with the weights of the source, which they must hold and nothing else.

    Ignored tensors must be the source's byte for byte. compressed-tensors restores the others by the model's
    ``quantization_config``. ``check_stop`` is called before each tensor.

    Raises RuntimeError that names tensors which are not what they should be.
    """
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    (group,) = QuantizationConfig.model_validate(config).config_groups.values()
    compressor = BaseCompressor.get_value_from_registry(group.format)
    scheme, ignore = weights.scheme, weights.ignore
    lines: list[TensorError] = []
    problems = []
    with Tensors(*weights.files) as source, Tensors(*written) as result:
        for name in weights.names:
            check_stop()
            weight = source[name]
            line = TensorError(name=name, shape=list(weight.shape), dtype=str(weight.dtype).removeprefix("torch."))
            lines.append(line)
            parts = schemes.parts(name, scheme)
            if not schemes.is_quantized(name, ignore):
                if name not in result or not _is_same(weight, result[name]):
                    problems.append(f"{name}: is not the source's")
            elif missing := sorted(parts - result.keys()):
                problems.append(f"{name}: {missing[0]} is missing")
            else:
                stored = {part.removeprefix(name.removesuffix("weight")): result[part] for part in parts}
                error = _relative_error(weight, compressor.decompress(stored, group)["weight"])
                line |= {"dtype": f"{scheme.number}{scheme.bits}", "error": round(error, 8)}
                if not error < WORST:
                    problems.append(f"{name}: is {error:.3g} off, relative to its size")
        surplus = result.keys() - schemes.expected(weights.names, scheme, ignore)
    problems += [f"{name}: the source has no such tensor" for name in sorted(surplus)]
    if problems:
        raise RuntimeError(f"{len(problems)} tensors are not what they should be: {'; '.join(problems[:3])}")
    return lines


def _described(converter: Any) -> Mapping[str, Any]:
    """The converter's configuration for a model's ``config.json``."""
    from llmcompressor.entrypoints.model_free.save_utils import (
        COMPRESSION_VERSION_NAME,
        QUANTIZATION_METHOD_NAME,
        TRANSFORM_CONFIG_NAME,
        ct_version,
    )

    config = {
        COMPRESSION_VERSION_NAME: ct_version,
        QUANTIZATION_METHOD_NAME: "compressed-tensors",
        TRANSFORM_CONFIG_NAME: {},
        **converter.update_config(None).model_dump(),
    }
    plain: Mapping[str, Any] = json.loads(json.dumps(config))
    return plain


def _groups(names: Sequence[str], scheme: Scheme) -> list[list[str]]:
    """Tensors that have to be quantized together."""
    taken: set[str] = set()
    groups = []
    for name in sorted(names, key=lambda name: not schemes.partners(name, scheme)):
        if name not in taken:
            group = [name, *(other for other in schemes.partners(name, scheme) if other in names)]
            taken.update(group)
            groups.append(group)
    return groups


def _is_same(source: Any, written: Any) -> bool:
    """Byte for byte: NaN is itself, and 0 is not -0."""
    import torch

    if (source.dtype, source.shape) != (written.dtype, written.shape):
        return False
    flat = [tensor.contiguous().view(-1).view(torch.uint8).split(ELEMENTS) for tensor in (source, written)]
    return all(torch.equal(*pieces) for pieces in zip(*flat, strict=True))


def _relative_error(weight: Any, restored: Any) -> float:
    """The error over all numbers; NaN where a restored one is."""
    if weight.shape != restored.shape:
        return float("inf")
    squares = reference = 0.0
    for part, other in zip(weight.reshape(-1).split(ELEMENTS), restored.reshape(-1).split(ELEMENTS), strict=True):
        exact = part.double()
        squares += float((other.double() - exact).square().sum())
        reference += float(exact.square().sum())
    if not reference:
        return 0.0 if not squares else float("inf")
    return float((squares / reference) ** 0.5)
