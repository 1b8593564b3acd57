"""What a model's ``config.json`` says of its form: how many weights that is, and how much of a GPU training it uses."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from hala_hpc.config.errors import HalaError, did_you_mean


@dataclass(frozen=True)
class Family:
    """What the config of a family leaves to transformers' code.

    ``qkv_bias`` of query, key and value where the config does not say; ``norms`` in a layer, vectors of ``hidden``;
    ``tied`` unless the config says otherwise; ``norm_bytes`` kept of a number by each norm, where its float32
    arithmetic keeps more than others'; ``is_fusible``: liger-kernel replaces its norms and MLP.
    """

    qkv_bias: bool | None = None
    norms: int = 2
    head_norms: bool = False
    tied: bool = False
    norm_bytes: int = 0
    is_fusible: bool = True


FAMILIES: Final = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(head_norms=True),
    "gemma2": Family(norms=4, tied=True, norm_bytes=8),
    "cohere2": Family(norms=1, tied=True, norm_bytes=12, is_fusible=False),
    "lfm2": Family(head_norms=True, tied=True, is_fusible=False),
}
NEEDED: Final = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")


@dataclass(frozen=True)
class Architecture:
    """A dense decoder. ``intermediate`` is the real width of the MLP; ``convolutions`` are layers without attention.

    ``kernel`` is the length of the short convolution (lfm2).
    """

    family: Family
    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    convolutions: int
    heads: int
    kv_heads: int
    head_size: int
    tied: bool
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    conv_bias: bool = False
    kernel: int = 0
    softcap: bool = False

    @property
    def attentions(self) -> int:
        """Layers with attention."""
        return self.layers - self.convolutions

    @property
    def queries(self) -> int:
        """Width of all heads together."""
        return self.heads * self.head_size

    @property
    def keys(self) -> int:
        """Width of all key heads together; values are as wide."""
        return self.kv_heads * self.head_size

    @property
    def embedding(self) -> int:
        """Weights of the input embedding; the output projection has as many."""
        return self.vocabulary * self.hidden

    @property
    def tables(self) -> int:
        """Weights of the input embedding and the output projection, which are one where they are tied."""
        return self.embedding if self.tied else 2 * self.embedding

    @property
    def computing(self) -> int:
        """Weights that take part in a matrix product: all but an input embedding that is only looked up in."""
        return self.weights - (0 if self.tied else self.embedding)

    @property
    def weights(self) -> int:
        """All weights, exactly (held against transformers' own models in the tests)."""
        layers = self.attentions * _attention(self) + self.convolutions * _convolution(self)
        layers += self.layers * (_mlp(self) + self.family.norms * self.hidden)
        return self.tables + layers + self.hidden  # and the last norm


def read(config: Mapping[str, Any]) -> Architecture:
    """The form of a model, from its config. Raises HalaError for a family that is not known here."""
    name = str(config.get("model_type"))
    if name not in FAMILIES:
        raise HalaError(f"model: the memory of a '{name}' is not known", did_you_mean(name, FAMILIES))
    width = "block_ff_dim" if "block_ff_dim" in config else "intermediate_size"
    for key in (*NEEDED, width):
        if config.get(key) is None:
            raise HalaError(f"model: its config.json has no '{key}'")
    family, is_lfm2 = FAMILIES[name], name == "lfm2"
    vocabulary, hidden, layers, heads = (int(config[key]) for key in NEEDED)
    bias = bool(config.get("attention_bias", False))
    return Architecture(
        family=family,
        vocabulary=vocabulary,
        hidden=hidden,
        intermediate=_intermediate(config, int(config[width])),
        layers=layers,
        convolutions=_convolutions(config, layers) if is_lfm2 else 0,
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_size=int(config.get("head_dim") or hidden // heads),
        tied=bool(config.get("tie_word_embeddings", config.get("tie_embedding", family.tied))),
        qkv_bias=bias if family.qkv_bias is None else family.qkv_bias,
        output_bias=bias and family.qkv_bias is None,
        mlp_bias=bool(config.get("mlp_bias", False)),
        conv_bias=bool(config.get("conv_bias", False)),
        kernel=int(config.get("conv_L_cache", 3)) if is_lfm2 else 0,
        softcap=name == "gemma2" and config.get("attn_logit_softcapping", 50.0) is not None,
    )


def _intermediate(config: Mapping[str, Any], width: int) -> int:
    """The MLP's width. lfm2 makes it of the config's: two thirds, rounded up (as in transformers' Lfm2MLP)."""
    if config["model_type"] == "lfm2" and config.get("block_auto_adjust_ff_dim", True):
        multiple = int(config.get("block_multiple_of", 256))
        width = int((config.get("block_ffn_dim_multiplier") or 1.0) * int(2 * width / 3))
        width = multiple * -(-width // multiple)
    return width


def _convolutions(config: Mapping[str, Any], layers: int) -> int:
    if config.get("layer_types"):
        return sum(kind == "conv" for kind in config["layer_types"])
    attentions = config.get("full_attn_idxs")
    return layers - len(attentions) if attentions is not None else 0


def _attention(model: Architecture) -> int:
    matrices = model.hidden * (2 * model.queries + 2 * model.keys)
    biases = model.qkv_bias * (model.queries + 2 * model.keys) + model.output_bias * model.hidden
    return matrices + biases + 2 * model.family.head_norms * model.head_size


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
    if "MIG" in words:  # a slice: the name does not say how much of the device it is
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
