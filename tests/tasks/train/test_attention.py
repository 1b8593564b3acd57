"""Gemma 2's capped scores are never lost in silence."""

import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.tasks.train.options import attention_of

GEMMA2 = {"model_type": "gemma2", "attn_logit_softcapping": 50.0}


def test_a_capped_model_is_not_left_to_a_default_that_drops_the_cap() -> None:
    assert attention_of(GEMMA2, None) == "eager"
    assert attention_of(GEMMA2, "flex_attention") == "flex_attention"
    with pytest.raises(HalaError, match="soft-capping"):
        attention_of(GEMMA2, "sdpa")


def test_others_are_left_alone() -> None:
    assert attention_of({"model_type": "llama"}, None) is None
    assert attention_of({"model_type": "gemma2", "attn_logit_softcapping": None}, "sdpa") == "sdpa"
