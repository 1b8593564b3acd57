"""Quantize one weights file at a time, by LLM Compressor's path that needs no model.

Memory holds what becomes of one file, and one weight with the copies that the library makes of it.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hala_hpc.models.safetensors_file import Tensors
from hala_hpc.tasks.quantize import schemes
from hala_hpc.tasks.quantize.schemes import Scheme


def quantize_file(
    files: Sequence[Path],
    names: Sequence[str],
    target: Path,
    scheme: Scheme,
    ignore: Sequence[str],
    device: str,
    check_stop: Callable[[], None],
) -> dict[str, Any]:
    """Write ``target``: the tensors ``names`` of the source's ``files``, quantized where they are to be.

    Returns the configuration that belongs into the model's ``config.json`` as ``quantization_config``. ``check_stop``
    is called before each weight. What is half written when it raises is the caller's to remove.
    """
    from llmcompressor.entrypoints.model_free.converter import ModelFreePtqConverter
    from safetensors.torch import save_file

    converter = ModelFreePtqConverter(configuration(scheme, ignore))
    made: dict[str, Any] = {}
    with Tensors(*files) as source:
        for group in _groups(names, scheme):
            check_stop()
            if schemes.is_quantized(group[0], ignore):
                results = converter.process({name: source[name].to(device) for name in group})
                made |= {name: tensor.cpu() for name, tensor in results.items()}
            else:
                made |= {name: source[name] for name in group}
        save_file(made, target, {"format": "pt"})
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


def _described(converter: Any) -> dict[str, Any]:
    """What a model's ``config.json`` says of it."""
    from llmcompressor.entrypoints.model_free.save_utils import (
        COMPRESSION_VERSION_NAME,
        QUANTIZATION_METHOD_NAME,
        TRANSFORM_CONFIG_NAME,
        ct_version,
    )

    said = {
        COMPRESSION_VERSION_NAME: ct_version,
        QUANTIZATION_METHOD_NAME: "compressed-tensors",
        TRANSFORM_CONFIG_NAME: {},
        **converter.update_config(None).model_dump(),
    }
    plain: dict[str, Any] = json.loads(json.dumps(said))
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
