"""What a model's ``config.json`` says of its form: all that counting its weights and its memory needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hala_hpc.config.errors import HalaError, did_you_mean

BIASED = {"qwen2": (True, False)}
"""Biases of (query, key and value; output) where the config does not say: read from transformers' models."""
NORMS = {"gemma2": 4, "cohere2": 1}
"""Norms in a layer, where they are not two."""
TIED = ("gemma2", "cohere2", "lfm2")
"""Families whose input embedding is also the output projection unless the config says otherwise."""
KNOWN = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "cohere2", "lfm2")


@dataclass(frozen=True)
class Architecture:
    """A dense decoder. ``intermediate`` is the real width of the MLP; ``convolutions`` are layers without attention.

    ``kernel`` is the length of the short convolution (lfm2); ``norms`` are vectors of ``hidden`` per layer.
    """

    family: str
    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    convolutions: int
    heads: int
    kv_heads: int
    head_size: int
    tied: bool
    norms: int = 2
    head_norms: bool = False
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


def read(config: Mapping[str, Any]) -> Architecture:
    """The form of a model, from its config. Raises HalaError for a family that is not known here."""
    family = str(config.get("model_type"))
    if family not in KNOWN:
        raise HalaError(f"model: the memory of a '{family}' is not known", did_you_mean(family, KNOWN))
    missing = [
        key for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads") if key not in config
    ]
    if missing:
        raise HalaError(f"model: its config.json has no '{missing[0]}'")
    heads, hidden, layers = (int(config[key]) for key in ("num_attention_heads", "hidden_size", "num_hidden_layers"))
    bias = bool(config.get("attention_bias", False))
    qkv_bias, output_bias = BIASED.get(family, (bias, bias))
    tied = config.get("tie_word_embeddings", config.get("tie_embedding", family in TIED))
    return Architecture(
        family=family,
        vocabulary=int(config["vocab_size"]),
        hidden=hidden,
        intermediate=_intermediate(config),
        layers=layers,
        convolutions=_convolutions(config, layers) if family == "lfm2" else 0,
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_size=int(config.get("head_dim") or hidden // heads),
        tied=bool(tied),
        norms=NORMS.get(family, 2),
        head_norms=family in ("qwen3", "lfm2"),
        qkv_bias=qkv_bias,
        output_bias=output_bias,
        mlp_bias=bool(config.get("mlp_bias", False)),
        conv_bias=bool(config.get("conv_bias", False)),
        kernel=int(config.get("conv_L_cache", 3)) if family == "lfm2" else 0,
        softcap=config.get("attn_logit_softcapping", 50.0) is not None if family == "gemma2" else False,
    )


def _intermediate(config: Mapping[str, Any]) -> int:
    """The MLP's width. lfm2 makes it of the config's: two thirds, rounded up (as in transformers' Lfm2MLP)."""
    given = config.get("block_ff_dim", config.get("intermediate_size"))
    if given is None:
        raise HalaError("model: its config.json has no 'intermediate_size'")
    width = int(given)
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
