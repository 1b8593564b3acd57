"""How many weights a model has, from its ``config.json`` alone; nothing is loaded."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

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
