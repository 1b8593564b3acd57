"""Weights are counted from a config exactly: held against transformers' own models, and published models' counts."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.tasks.train.estimate import architecture
from tests.tasks.train.estimate.real_models import REAL
from tests.work import work_python as work_python

SMALL = {"vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
CONFIGS: list[dict[str, Any]] = [
    {"model_type": "llama", "num_key_value_heads": 2, "intermediate_size": 96},
    {
        "model_type": "llama",
        "intermediate_size": 96,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
    },
    {"model_type": "mistral", "num_key_value_heads": 2, "intermediate_size": 96, "head_dim": 32},
    {"model_type": "qwen2", "num_key_value_heads": 2, "intermediate_size": 96},
    {"model_type": "qwen3", "num_key_value_heads": 2, "intermediate_size": 96, "head_dim": 32},
    {"model_type": "gemma2", "num_key_value_heads": 2, "intermediate_size": 96, "head_dim": 32},
    {"model_type": "cohere2", "num_key_value_heads": 2, "intermediate_size": 96},
    {"model_type": "lfm2", "num_key_value_heads": 2, "intermediate_size": 200, "full_attn_idxs": [1]},
    {
        "model_type": "lfm2",
        "num_key_value_heads": 2,
        "block_ff_dim": 200,
        "block_auto_adjust_ff_dim": False,
        "conv_bias": True,
        "layer_types": ["conv", "full_attention", "conv"],
        "conv_L_cache": 5,
    },
]
COUNT = """
import json, sys, torch
from transformers import AutoConfig, AutoModelForCausalLM
counts = []
for values in json.loads(sys.argv[1]):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(values.pop("model_type"), **values))
    counts.append([model.num_parameters(), model.get_input_embeddings().weight.numel(),
                   model.get_input_embeddings().weight is model.get_output_embeddings().weight])
print(json.dumps(counts))
"""


@pytest.mark.train
def test_counts_are_those_of_transformers(work_python: Path) -> None:
    configs = [SMALL | config for config in CONFIGS]
    said = subprocess.run([work_python, "-c", COUNT, json.dumps(configs)], capture_output=True, text=True, check=True)
    for config, (total, embedding, tied) in zip(configs, json.loads(said.stdout.splitlines()[-1]), strict=True):
        form = architecture.read(config)
        assert (form.weights, form.embedding, form.tied) == (total, embedding, tied), config


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("LiquidAI/LFM2-350M", 354_483_968),
        ("LiquidAI/LFM2-700M", 742_489_344),
        ("LiquidAI/LFM2-1.2B", 1_170_340_608),
        ("meta-llama/Llama-3.1-8B", 8_030_261_248),
        ("google/gemma-2-9b", 9_241_705_984),
    ],
)
def test_real_bases_have_their_published_size(name: str, published: int) -> None:
    assert architecture.read(REAL[name]).weights == published


def test_what_is_looked_up_does_not_compute() -> None:
    tied = architecture.read(SMALL | CONFIGS[5])
    assert tied.tied and tied.computing == tied.weights
    apart = architecture.read(SMALL | CONFIGS[0])
    assert not apart.tied and apart.computing == apart.weights - 320 * 64


def test_an_unknown_family_is_refused_by_name() -> None:
    with pytest.raises(HalaError, match="'mamba9' is not known"):
        architecture.read({"model_type": "mamba9"})
    with pytest.raises(HalaError, match="no 'hidden_size'"):
        architecture.read({"model_type": "llama", "vocab_size": 3})
