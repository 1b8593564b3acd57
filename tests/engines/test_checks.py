"""What the vLLM engine refuses before anything is loaded, and where there is no vLLM."""

from pathlib import Path
from typing import Any

import pytest

from hala_hpc import engines
from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Model, Recipe, Sampling
from hala_hpc.engines import vllm
from hala_hpc.engines.base import NoEngine
from hala_hpc.pipeline import planning
from hala_hpc.tasks.evaluate import task as evaluate
from hala_hpc.tasks.merge import task as merge


def recipe(max_tokens: int | None = None, **options: Any) -> Recipe:
    return Recipe(
        name="t",
        task=None,
        model=Model("org/model"),
        engine=vllm.Options(**options),
        sampling=Sampling(max_tokens=max_tokens),
    )


def test_a_context_that_leaves_no_room_for_a_prompt_is_refused() -> None:
    with pytest.raises(HalaError, match=r"sampling\.max_tokens: 200 tokens.*no room.*context of 100.*max_model_len"):
        engines.check(recipe(200, max_model_len=100))
    with pytest.raises(HalaError, match="no room"):
        engines.check(recipe(100, max_model_len=100))
    engines.check(recipe(99, max_model_len=100))
    engines.check(recipe(None, max_model_len=100))


def test_a_python_without_vllm_says_which_environment_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with pytest.raises(NoEngine, match=r"no vLLM in this Python.*hala env build serve-cuda.*environments\.serve"):
        vllm.start(recipe())


def test_engines_of_a_node_share_no_cache_but_what_vllm_learns_of_architectures(tmp_path: Path) -> None:
    first, second = (vllm._own_cache(str(tmp_path)) for _ in range(2))
    (first / "compiled").touch()
    (first / "modelinfos" / "llama.json").write_text("{}")
    assert [path.name for path in second.iterdir()] == ["modelinfos"]
    assert (second / "modelinfos" / "llama.json").read_text() == "{}"


@pytest.mark.parametrize("where", ["model", "task.models.one"])
def test_what_a_task_would_not_tell_its_template_is_refused(where: str) -> None:
    told = Model("org/model", chat_template_kwargs={"enable_thinking": False})
    plain = Model("org/model")
    asked = Recipe(
        name="t",
        task=evaluate.Options(models={"one": plain if where == "model" else told}),
        model=told if where == "model" else plain,
    )
    with pytest.raises(HalaError, match=rf"{where}\.chat_template_kwargs: task\.kind evaluate does not use it"):
        planning._refuse_unused(asked)
    planning._refuse_unused(Recipe(name="t", task=merge.Options()))
