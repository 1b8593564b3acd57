"""What would be frozen into a run directory for all to read is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from hala_hpc import tasks
from hala_hpc.config.compose import compose
from hala_hpc.config.errors import HalaError


@pytest.mark.parametrize(
    "override",
    ["site.environments.serve.variables.HF_TOKEN=hf_x", "model.name=${oc.env:WANDB_API_KEY}"],
)
def test_secrets_are_refused(write_recipe: Callable[..., Path], override: str) -> None:
    with pytest.raises(HalaError, match=r"would be written into the run directory .*export (HF_TOKEN|WANDB_API_KEY)="):
        compose(write_recipe(data={"path": "x.jsonl"}), None, [override], tasks.options_of)


def test_what_only_sounds_like_one_is_not(write_recipe: Callable[..., Path]) -> None:
    override = "site.environments.serve.variables.TOKENIZERS_PARALLELISM='false'"
    recipe = compose(write_recipe(data={"path": "x.jsonl"}), None, [override], tasks.options_of)
    assert recipe.site.environments["serve"].variables == {"TOKENIZERS_PARALLELISM": "false"}
