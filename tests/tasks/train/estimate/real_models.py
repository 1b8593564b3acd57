"""The form of models that shipped recipes start from, as their own config.json on the hub says it."""

from typing import Any

_LFM2: dict[str, Any] = {
    "model_type": "lfm2",
    "vocab_size": 65536,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "conv_L_cache": 3,
    "full_attn_idxs": [2, 5, 8, 10, 12, 14],
}
_GEMMA2: dict[str, Any] = {
    "model_type": "gemma2",
    "hidden_size": 3584,
    "num_hidden_layers": 42,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "intermediate_size": 14336,
}
_LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
}
REAL: dict[str, dict[str, Any]] = {
    "LiquidAI/LFM2-350M": _LFM2 | {"hidden_size": 1024, "num_attention_heads": 16, "block_ff_dim": 6656},
    "LiquidAI/LFM2-700M": _LFM2 | {"hidden_size": 1536, "num_attention_heads": 24, "block_ff_dim": 10240},
    "LiquidAI/LFM2-1.2B": _LFM2 | {"hidden_size": 2048, "num_attention_heads": 32, "block_ff_dim": 12288},
    "google/gemma-2-9b": _GEMMA2 | {"vocab_size": 256000},
    # Its vocabulary is inferred: with it the form has the 8.78 billion weights that the hub tells of the model.
    "QCRI/Fanar-1-9B-Instruct": _GEMMA2 | {"vocab_size": 128256},
    "meta-llama/Llama-3.1-8B": _LLAMA,
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA,
}
