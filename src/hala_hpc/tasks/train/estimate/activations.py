"""Bytes that a forward pass keeps for the backward pass, per token: what transformers' layers save.

Operation by operation, read from transformers 5.17's models by listing the tensors that autograd saves; the tests hold
the sums against a real training. Korthikanti et al. 2022 (arXiv 2205.05198) count the same for a fused GPT layer.
"""

from dataclasses import dataclass

from hala_hpc.tasks.train.estimate.architecture import Architecture

FUSED = ("llama", "mistral", "qwen2", "qwen3", "gemma2")
"""Families whose norms and MLP liger-kernel replaces; it then saves a norm's input, and gate and up of an MLP."""


@dataclass(frozen=True)
class Setting:
    """How the layers run.

    ``attention`` is eager, sdpa or another of transformers' names, for kernels that need no mask. ``autocast``: weights
    and the residual stream are float32 and matrix products bfloat16, else all is of ``width`` bytes. ``liger``: fused
    kernels.
    """

    attention: str
    autocast: bool = False
    width: int = 2
    liger: bool = False

    @property
    def stream(self) -> int:
        """Bytes of one number of the residual stream."""
        return 4 if self.autocast else self.width


def per_token(model: Architecture, setting: Setting, length: int) -> float:
    """Bytes per token of all layers together, the embedding and the last norm; sequences are ``length`` tokens long."""
    attention = _attention(model, setting, length) if model.attentions else 0.0
    convolution = _convolution(model, setting) if model.convolutions else 0.0
    layers = model.attentions * attention + model.convolutions * convolution + model.layers * _common(model, setting)
    mask = length if setting.attention in ("eager", "sdpa") else 0  # one, of truth values, for all layers
    return layers + mask + _norm(model, setting, 0) + setting.stream * model.hidden


def per_token_of_one_layer(model: Architecture, setting: Setting, length: int) -> float:
    """Bytes per token of the largest layer: what is computed anew at once with activation checkpointing."""
    attention = _attention(model, setting, length) if model.attentions else 0.0
    convolution = _convolution(model, setting) if model.convolutions else 0.0
    return max(attention, convolution) + _common(model, setting)


def _common(model: Architecture, setting: Setting) -> float:
    """Norms and MLP, which every layer has."""
    if model.norms == 1:  # attention and MLP side by side read the same norm
        norms = _norm(model, setting, 5)
    else:
        reads = 3 if model.convolutions < model.layers else 1
        norms = _norm(model, setting, reads) + _norm(model, setting, 2) + (model.norms - 2) * _norm(model, setting, 0)
    width = 2 if setting.autocast else setting.width
    return norms + (3 if _is_fused(model, setting) else 4) * width * model.intermediate


def _norm(model: Architecture, setting: Setting, readers: int) -> float:
    """One norm, and its output as far as matrix products read it; autocast makes a copy for each of ``readers``."""
    hidden, stream = model.hidden, setting.stream
    if _is_fused(model, setting):
        kept = stream * hidden
    elif model.family == "cohere2":
        kept = 12 * hidden  # float32: less its mean, that times the deviation, and the input
    elif model.family == "gemma2" or setting.autocast or setting.width == 4:
        kept = 8 * hidden  # float32: the input, and what is multiplied by the weight
    else:
        kept = (4 + setting.width) * hidden  # the input in float32, and what is multiplied by the weight
    if setting.autocast:
        return kept + 2 * readers * hidden
    return kept + (setting.width * hidden if readers else 0)


def _attention(model: Architecture, setting: Setting, length: int) -> float:
    width = 2 if setting.autocast else setting.width
    if setting.attention == "eager":
        scores = (4 + width + (width if model.softcap else 0)) * model.heads * length
        kept = width * 4 * model.queries + scores
    elif setting.attention == "sdpa":  # with a mask, which becomes numbers in each layer, keys are repeated per head
        kept = width * (4 * model.queries + length) + 4 * model.heads
    else:
        kept = width * (2 * model.queries + 2 * model.keys) + 4 * model.heads
    head_norms = (4 + width) * (model.queries + model.keys) if model.head_norms else 0
    return kept + head_norms


def _convolution(model: Architecture, setting: Setting) -> float:
    """lfm2: three gates, their product, the convolution's result and the product with the last gate."""
    return (2 if setting.autocast else setting.width) * 6 * model.hidden


def _is_fused(model: Architecture, setting: Setting) -> bool:
    return setting.liger and model.family in FUSED
