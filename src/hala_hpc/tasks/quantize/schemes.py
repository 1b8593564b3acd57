"""How weights may be quantized, and which of a model's weights are: known where LLM Compressor is not installed.

The schemes are those of compressed-tensors 0.19 (``PRESET_SCHEMES``), by their names there.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from hala_hpc.config.errors import HalaError, did_you_mean
from hala_hpc.models.safetensors_file import Tensor

Strategy = Literal["tensor", "channel", "group", "block", "tensor_group"]
"""What shares a scale: the whole weight, a row, so many columns of a row, a square; or a group under a global scale."""


@dataclass(frozen=True)
class Scheme:
    """How one weight is stored. ``group`` is the columns of a group, or the side of a block.

    ``number`` and ``bits`` say what each value becomes; values of 16 or fewer than 8 bits are packed, in ``int32``
    words or (``float`` of 4 bits) bytes. ``exponents``: scales are powers of two, stored as biased exponents.
    ``calibrated``: activations have fixed scales, which only texts can tell: the whole model has to run.
    """

    name: str
    number: Literal["float", "int"]
    bits: int
    strategy: Strategy
    group: int = 0
    symmetric: bool = True
    packed: bool = False
    exponents: bool = False
    calibrated: bool = False

    @property
    def suffixes(self) -> tuple[str, ...]:
        """The tensors that a quantized module has instead of ``weight``."""
        is_global = self.strategy == "tensor_group"
        wanted = {
            "weight_packed" if self.packed else "weight": True,
            "weight_scale": True,
            "weight_global_scale": is_global,
            "weight_shape": self.packed and self.number == "int",
            "weight_zero_point": not self.symmetric,
            "input_global_scale" if is_global else "input_scale": self.calibrated,
        }
        return tuple(suffix for suffix, is_there in wanted.items() if is_there)


SCHEMES: Final = {
    scheme.name: scheme
    for scheme in (
        Scheme("FP8_DYNAMIC", "float", 8, "channel"),
        Scheme("FP8_BLOCK", "float", 8, "block", 128),
        Scheme("FP8", "float", 8, "tensor", calibrated=True),
        Scheme("W8A8", "int", 8, "channel"),
        Scheme("INT8", "int", 8, "channel"),
        Scheme("W4A16_ASYM", "int", 4, "group", 128, symmetric=False, packed=True),
        Scheme("W4AFP8", "int", 4, "group", 128, packed=True),
        *(Scheme(f"W{bits}A16", "int", bits, "group", 128, packed=True) for bits in range(2, 9)),
        *(Scheme(name, "float", 8, "group", 32, exponents=True) for name in ("MXFP8", "MXFP8A16")),
        *(Scheme(name, "float", 4, "group", 32, packed=True, exponents=True) for name in ("MXFP4", "MXFP4A16")),
        Scheme("NVFP4A16", "float", 4, "tensor_group", 16, packed=True),
        Scheme("NVFP4", "float", 4, "tensor_group", 16, packed=True, calibrated=True),
    )
}

ALWAYS: Final = (
    r"re:(.*\.)?lm_head$",
    r"re:.*(embed_tokens|embed_positions|word_embeddings|wte|wpe)$",
    r"re:.*(router|block_sparse_moe\.gate|mlp\.gate|feed_forward\.gate)$",
    r"re:.*(vision_tower|vision_model|multi_modal_projector)\..*",
)
"""Left in full precision in every architecture: what turns tokens into vectors and back, what chooses experts, images.

As the recipes of LLM Compressor have it; the paper says nothing of it.
"""
BY_ARCHITECTURE: Final = {"lfm2": (r"re:.*conv\.conv$",), "lfm2_moe": (r"re:.*conv\.conv$",)}
"""By ``model_type``: short convolutions are not matrices."""

FUSED: Final = (
    (re.compile(r"(.+?\.(?:attn|attention|self_attn|self_attention))\.q_proj\.weight"), ("k_proj", "v_proj")),
    (re.compile(r"(.+?\.(?:attn|attention|self_attn))\.wq_a\.weight"), ("wkv_a_with_mqa",)),
    (re.compile(r"(.+?\.(?:mlp|feed_forward))\.gate_proj\.weight"), ("up_proj",)),
    (re.compile(r"(.+?)\.w1\.weight"), ("w3",)),
)
"""Weights that engines read as one, so that they need one global scale: a first one and its partners.

As ``DEFAULT_FUSED_MAPPINGS`` of LLM Compressor 0.14: the file of the first takes in its partners.
"""


def find(name: str) -> Scheme:
    """A scheme by its name. Raises HalaError listing what there is."""
    if name.upper() not in SCHEMES:
        raise HalaError(f"task.scheme: no scheme '{name}'", did_you_mean(name.upper(), SCHEMES))
    return SCHEMES[name.upper()]


def ignored(config: Mapping[str, Any]) -> list[str]:
    """Modules that stay as they are, by a model's ``config.json``: names, and patterns after ``re:``."""
    return [*ALWAYS, *BY_ARCHITECTURE.get(str(config.get("model_type")), ())]


def matches(module: str, patterns: Iterable[str]) -> bool:
    """Whether one of the names or patterns means a module (``compressed_tensors.utils.match.match_name``)."""
    return any(
        re.match(pattern[3:], module) is not None if pattern.startswith("re:") else pattern == module
        for pattern in patterns
    )


def is_quantized(name: str, ignore: Sequence[str]) -> bool:
    """Whether a tensor of the source becomes quantized: a module's ``weight``, but for norms and what is ignored."""
    module, _, parameter = name.rpartition(".")
    return parameter == "weight" and not module.endswith("norm") and not matches(module, ignore)


def parts(name: str, scheme: Scheme) -> set[str]:
    """The tensors that a quantized weight becomes."""
    return {name.removesuffix("weight") + suffix for suffix in scheme.suffixes}


def expected(names: Iterable[str], scheme: Scheme, ignore: Sequence[str]) -> set[str]:
    """All tensors that tensors of the source become."""
    return {part for name in names for part in (parts(name, scheme) if is_quantized(name, ignore) else {name})}


def partners(name: str, scheme: Scheme) -> list[str]:
    """The tensors that must be quantized together with this one, where it is the first of them."""
    if scheme.strategy != "tensor_group":
        return []
    for pattern, others in FUSED:
        if match := pattern.fullmatch(name):
            return [f"{match[1]}.{other}.weight" for other in others]
    return []


def misfits(tensors: Iterable[Tensor], scheme: Scheme, ignore: Sequence[str]) -> list[str]:
    """Tensors that the scheme cannot hold, each with the reason."""
    reasons = []
    for tensor in tensors:
        if not is_quantized(tensor.name, ignore):
            if tensor.name.rpartition(".")[2] in ("gate_up_proj", "down_proj") and len(tensor.shape) == 3:
                reasons.append(f"{tensor.name}: experts in one tensor, which would be taken apart")
            continue
        if len(tensor.shape) != 2:
            reasons.append(f"{tensor.name}: is not a matrix, its shape is {list(tensor.shape)}")
        elif tensor.dtype not in ("BF16", "F16", "F32"):
            reasons.append(f"{tensor.name}: is {tensor.dtype} already, not a floating-point number")
        elif scheme.group and tensor.shape[1] % scheme.group:
            reasons.append(f"{tensor.name}: {tensor.shape[1]} columns cannot be cut into groups of {scheme.group}")
    return reasons
