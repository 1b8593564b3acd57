"""What would be frozen into a run directory for all to read is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from hala_hpc.config.compose import compose
from hala_hpc.config.errors import HalaError
from hala_hpc.worker import registry


@pytest.mark.parametrize(
    "override",
    ["site.environments.serve.variables.HF_TOKEN=hf_x", "model.name=${oc.env:WANDB_API_KEY}"],
)
def test_secrets_are_refused(write_recipe: Callable[..., Path], override: str) -> None:
    with pytest.raises(HalaError, match=r"would be written into the run directory .*export (HF_TOKEN|WANDB_API_KEY)="):
        compose(write_recipe(data={"path": "x.jsonl"}), None, [override], registry.options_of)


KEY = "hf_" + "a" * 34


@pytest.mark.parametrize(
    "override",
    [
        "site.environments.serve.setup=[export HF_TOKEN=abc]",
        "site.environments.serve.setup=['OPENAI_API_KEY=\"abc\" true']",
        "site.slurm.extra.export='ALL,WANDB_API_KEY=abc'",
        "site.environments.serve.container={image: x, args: ['--env=MY_SECRET=abc']}",
        "site.environments.serve.variables.HF_TOKEN=$HOME",
        "site.environments.serve.setup=['hf auth login --token abc']",
        "site.environments.serve.setup=['wandb login 0123456789abcdef0123456789abcdef01234567']",
        "site.environments.serve.setup=['curl -H \"Authorization: Bearer abcdefgh\" https://host']",
        "site.environments.serve.setup=['git clone https://me:abc@host/x']",
        "site.environments.serve.setup=['mysql --password abc']",
        "site.environments.serve.variables.http_proxy=http://me:abc@proxy:3128",
        "site.slurm.extra.export='ALL,https_proxy=http://me:abc@proxy'",
    ],
)
def test_secrets_in_lines_of_shell_are_refused(write_recipe: Callable[..., Path], override: str) -> None:
    with pytest.raises(HalaError, match="would be written into the run directory"):
        compose(write_recipe(data={"path": "x.jsonl"}), None, [override], registry.options_of)


@pytest.mark.parametrize(
    "override",
    [
        f"site.environments.serve.setup=[login {KEY}]",
        f"site.environments.serve.variables.X={KEY}",
        f"site.slurm.extra.comment={KEY}",
        "site.environments.serve.setup=[x glpat-0123456789abcdefghij]",
        "site.environments.serve.variables.X=AKIAABCDEFGHIJKLMNOP",
        f"site.environments.serve.setup=[x github_pat_{'a1' * 20}]",
        f"engine={{kind: vllm, arguments: {{hf_token: {KEY}}}}}",
        f"task.prompt='{{text}} {KEY}'",
    ],
)
def test_what_looks_like_a_key_is_refused_wherever_it_stands(write_recipe: Callable[..., Path], override: str) -> None:
    with pytest.raises(HalaError, match="holds what looks like a secret key"):
        compose(write_recipe(data={"path": "x.jsonl"}, engine={}), None, [override], registry.options_of)


@pytest.mark.parametrize(
    "line",
    [
        "export HF_TOKEN=$(cat ~/.hf_token)",
        'export HF_TOKEN="$HF"',
        "export HF_TOKEN_PATH=~/x",
        "monkey=1",
        'hf auth login --token "$HF"',
        "mysql --password-file x",
        "vllm --tokenizer abc",
        "login node17",
        "git clone https://host:8443/x",
    ],
)
def test_where_a_secret_lies_may_be_told(write_recipe: Callable[..., Path], line: str) -> None:
    recipe = write_recipe(data={"path": "x.jsonl"}, site={"environments": {"serve": {"setup": [line]}}})
    assert compose(recipe, None, [], registry.options_of).site.environments["serve"].setup == [line]


def test_what_only_sounds_like_one_is_not(write_recipe: Callable[..., Path]) -> None:
    override = "site.environments.serve.variables.TOKENIZERS_PARALLELISM='false'"
    recipe = compose(write_recipe(data={"path": "x.jsonl"}), None, [override], registry.options_of)
    assert recipe.site.environments["serve"].variables == {"TOKENIZERS_PARALLELISM": "false"}
