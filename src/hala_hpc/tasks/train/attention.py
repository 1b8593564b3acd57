"""Which attention a model is trained with."""

from typing import Any

from hala_hpc.config.errors import HalaError

CAPPED = "attn_logit_softcapping"
"""Key of the config of models (Gemma 2) whose attention scores are capped, which ``sdpa`` leaves out in silence."""


def attention_of(config: dict[str, Any], asked: str | None) -> str | None:
    """Transformers' ``attn_implementation``; None leaves it to the model. Raises HalaError for one that is wrong."""
    if not config.get(CAPPED):
        return asked
    if asked == "sdpa":
        raise HalaError(
            f"task.attention: sdpa leaves out what {config.get('model_type')} does to its scores (soft-capping)",
            "eager, flash_attention_2 or flex_attention",
        )
    return asked or "eager"
