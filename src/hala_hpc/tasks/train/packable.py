"""Which models can keep documents apart that share a sequence."""

import importlib.util
from typing import Any

CONVOLUTIONAL = ("lfm2", "mamba", "mamba2", "falcon_mamba", "jamba", "bamba", "zamba2", "granitemoehybrid", "falcon_h1")
"""Model types whose layers mix neighbouring tokens outside attention: only a kernel keeps documents apart there."""
KERNEL = "causal_conv1d"
"""The package whose convolution takes ``seq_idx``; for LFM2 (transformers 5.17) it is enough."""


def is_convolutional(config: dict[str, Any]) -> bool:
    """By the ``config.json`` of a model."""
    return config.get("model_type") in CONVOLUTIONAL or "conv" in (config.get("layer_types") or ())


def can_pack(config: dict[str, Any], on_gpu: bool, has_kernel: bool | None = None) -> bool:
    """Whether documents may share a sequence: attention tells them apart by their positions, convolutions do not.

    ``has_kernel`` is whether ``KERNEL`` is there where the training runs; null looks here.
    """
    if not is_convolutional(config):
        return True
    found = importlib.util.find_spec(KERNEL) is not None if has_kernel is None else has_kernel
    return config.get("model_type") == "lfm2" and on_gpu and found
