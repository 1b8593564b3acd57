"""How many weights a model has, and how much of a GPU training it uses, from its ``config.json`` alone."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hala_hpc.config.errors import HalaError
from hala_hpc.tasks.train.estimate.architecture import Architecture

HEADER_BYTES = 8
"""A safetensors file begins with the length of its JSON header, a little-endian unsigned 64-bit number."""
MOST_HEADER = 100_000_000
"""The format's own limit of a header; anything above is no safetensors file."""


@dataclass(frozen=True)
class Parameters:
    """Counts of weights. ``embedding`` is the input's, ``head`` the output projection's: 0 where it is the same."""

    total: int
    embedding: int
    head: int

    @property
    def tied(self) -> bool:
        """Whether input and output share their embedding."""
        return not self.head

    @property
    def computing(self) -> int:
        """Those that take part in a matrix product: all but the input embedding, which is looked up."""
        return self.total - self.embedding + (self.embedding if self.tied else 0)


def count(model: Architecture) -> Parameters:
    """Weights of a model, exactly (held against transformers' own models in the tests)."""
    embedding = model.vocabulary * model.hidden
    head = 0 if model.tied else embedding
    layers = model.attentions * _attention(model) + model.convolutions * _convolution(model)
    layers += model.layers * (_mlp(model) + model.norms * model.hidden)
    return Parameters(embedding + head + layers + model.hidden, embedding, head)  # and the last norm


def largest_layer(model: Architecture) -> int:
    """Weights of the layer that has most: what is gathered at once with activation checkpointing under ZeRO-3."""
    inner = max(_attention(model) if model.attentions else 0, _convolution(model) if model.convolutions else 0)
    return inner + _mlp(model) + model.norms * model.hidden


def in_folder(folder: Path) -> Parameters:
    """Weights in the safetensors files of a folder, for models whose form is not known. Raises HalaError."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise HalaError(f"{folder}: no safetensors files in it")
    sizes: dict[str, int] = {}
    for file in files:
        sizes |= {name: math.prod(shape) for name, shape in shapes(file).items()}
    embedding = sum(size for name, size in sizes.items() if name.endswith("embed_tokens.weight"))
    head = sum(size for name, size in sizes.items() if name.endswith("lm_head.weight"))
    return Parameters(sum(sizes.values()), embedding, head)


def shapes(file: Path) -> dict[str, list[int]]:
    """Shapes of the tensors in a safetensors file, by name. Raises HalaError for a file that is none."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(HEADER_BYTES), "little")
            header = json.loads(opened.read(length) if length <= MOST_HEADER else b"")
        return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise HalaError(f"{file}: not a safetensors file") from error


def _attention(model: Architecture) -> int:
    matrices = model.hidden * (2 * model.queries + 2 * model.keys)
    biases = model.qkv_bias * (model.queries + 2 * model.keys) + model.output_bias * model.hidden
    return matrices + biases + 2 * model.head_norms * model.head_size


def _convolution(model: Architecture) -> int:
    """lfm2's short convolution: in to three gates, depthwise over ``kernel`` tokens, out."""
    return model.hidden * (4 * model.hidden + model.kernel) + model.conv_bias * 5 * model.hidden


def _mlp(model: Architecture) -> int:
    """Gate, up and down."""
    return 3 * model.hidden * model.intermediate + model.mlp_bias * (2 * model.intermediate + model.hidden)


PEAK_BF16: Final[dict[str, float]] = {
    "A100": 312e12,
    "A30": 165e12,
    "A40": 149.7e12,
    "A10": 125e12,
    "A10G": 70e12,
    "A6000": 154.8e12,
    "L4": 121e12,
    "L40": 181.05e12,
    "L40S": 362.05e12,
    "RTX 3090": 71e12,
    "RTX 4090": 165.2e12,
    "H100": 989.4e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H200": 989.4e12,
    "H200 NVL": 835e12,
    "GH200": 989.4e12,
    "B100": 1750e12,
    "B200": 2250e12,
    "GB200": 2500e12,
    "MI210": 181e12,
    "MI250X": 191.5e12,
    "MI300X": 1307.4e12,
    "MI325X": 1307.4e12,
}
"""Dense bfloat16 peak of one device in FLOP/s, from the makers' data sheets (half of a figure given "with sparsity").

Keys are words of the name that the driver gives, e.g. "NVIDIA H100 80GB HBM3" (SXM). An MI250X is two devices.
"""


def peak_flops(gpu: str) -> float | None:
    """Peak bf16 FLOP/s of a device by the driver's name for it; None for one that is not in the table (a CPU)."""
    words = set(re.split(r"[\s-]+", gpu))
    if "MIG" in words:  # a slice, of which the name does not tell how much of the device it is
        return None
    known = [name for name in PEAK_BF16 if set(name.split()) <= words]
    return PEAK_BF16[max(known, key=lambda name: len(name.split()))] if known else None


def flops_per_token(parameters: int, layers: int, hidden: int, sequence_length: int) -> float:
    """Model FLOPs of training one token: ``6 N + 12 L H T``.

    Chowdhery et al. 2022 (PaLM), appendix B: 2 N forward and 4 N backward for the matrix products, and 12 L H T for
    attention over a sequence of length T with L layers of width H (heads x head size). Recomputation of activations is
    not counted, and attention is counted in full, without regard to its mask, to sliding windows or to the borders of
    packed documents.

    Parameters
    ----------
    parameters : those that take part in products: without an embedding table that is only looked up in. One that is
        tied to the output head counts, once.
    """
    return 6.0 * parameters + 12.0 * layers * hidden * sequence_length


def mfu(tokens_per_second: float, flops: float, gpu: str, gpus: int) -> float | None:
    """Model FLOPs utilization, 0 to 1: ``tokens/s x FLOPs per token / (GPUs x peak)``; None for an unknown device."""
    peak = peak_flops(gpu)
    return None if peak is None else tokens_per_second * flops / (gpus * peak)
