"""`~` and variables in paths are expanded, or refused by name; runs are found where they live."""

from collections.abc import Callable
from pathlib import Path

import pytest

from hala_hpc.config import places
from hala_hpc.config.compose import compose, freeze, thaw
from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Recipe
from hala_hpc.worker import registry

Asked = Callable[..., Recipe]


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.setenv("WHERE", "here")
    monkeypatch.delenv("NOPE", raising=False)
    monkeypatch.chdir(tmp_path)

    def asked(text: str = "", *words: str, site: str = "") -> Recipe:
        recipe, profile = tmp_path / "r.yaml", tmp_path / "site.yaml"
        recipe.write_text(f"name: r\ntask: {{kind: translate}}\n{text}")
        profile.write_text(site or "site: {}\n")
        return compose(recipe, profile, words, registry.options_of)

    return asked


def test_variables_expand_in_every_path(asked: Asked, tmp_path: Path) -> None:
    recipe = asked(
        "data: {path: [$SCRATCH/a.jsonl, '${WHERE}/b.jsonl', ~/c.jsonl, './${name}.jsonl']}\n"
        "model: {name: $SCRATCH/m, tokenizer: '${model.name}'}\n",
        "engine.kind=echo",
        "engine.log=$WHERE/log",
        site="run: {root: $SCRATCH/hala-runs}\n"
        "site:\n  cache: ${SCRATCH}/hf\n  environments:\n    serve:\n      venv: ~/envs/serve\n"
        "      python: $SCRATCH/py\n"
        "      variables: {LIBRARY: '$SCRATCH/lib:~/x', HOME_OF: ~/x}\n"
        "      container: {image: $SCRATCH/i.sif, mounts: ['$SCRATCH:$SCRATCH'], args: [--bind=$WHERE]}\n",
    )
    home, serve = str(Path.home()), recipe.site.environments["serve"]
    assert recipe.data.path == [
        "/scratch/me/a.jsonl",
        f"{tmp_path}/here/b.jsonl",
        f"{home}/c.jsonl",
        f"{tmp_path}/r.jsonl",
    ]
    assert (recipe.model.name, recipe.model.tokenizer) == ("/scratch/me/m", "/scratch/me/m")
    assert (recipe.run.root, recipe.site.cache) == ("/scratch/me/hala-runs", "/scratch/me/hf")
    assert (recipe.engine.log, serve.venv, serve.python) == (
        f"{tmp_path}/here/log",
        f"{home}/envs/serve",
        "/scratch/me/py",
    )
    assert serve.variables == {"LIBRARY": "/scratch/me/lib:~/x", "HOME_OF": f"{home}/x"}
    assert serve.container
    assert serve.container.image == "/scratch/me/i.sif"
    assert (serve.container.mounts, serve.container.args) == (["/scratch/me:/scratch/me"], ["--bind=here"])


@pytest.mark.parametrize(
    "word", ["run.root=$NOPE/x", "data.path=a/${NOPE}", "model.name=$NOPE", "data.path=~nobody-of-it/x"]
)
def test_a_variable_that_is_not_set_is_refused_by_name(asked: Asked, word: str) -> None:
    with pytest.raises(HalaError, match=r"no variable NOPE in this shell|no such home folder"):
        asked("", word)


def test_a_dollar_may_be_meant_and_a_frozen_path_is_not_expanded_again(asked: Asked, tmp_path: Path) -> None:
    recipe = asked("", "data.path=a$$SCRATCH.jsonl")
    assert recipe.data.path == [f"{tmp_path}/a$SCRATCH.jsonl"]
    frozen = tmp_path / "frozen.yaml"
    frozen.write_text(freeze(recipe))
    assert thaw(frozen, registry.options_of) == recipe


def test_prompts_keep_their_dollars(asked: Asked) -> None:
    assert asked("", "task.prompt='$5 ~ {text}'").task.prompt == "$5 ~ {text}"


def test_runs_live_where_the_nearest_word_says(asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = "run: {root: /profile/runs}\n"
    text = "model: {name: 'run:sft'}\ndata: {path: 'run:first/final'}\n"
    found = asked(text, site=site)
    assert (found.run.root, found.model.name, found.data.path) == (
        "/profile/runs",
        "/profile/runs/sft",
        ["/profile/runs/first/final"],
    )
    monkeypatch.setenv("HALA_RUNS", "$WHERE/runs")
    found = asked(text, site=site)
    assert (found.run.root, found.model.name) == (f"{tmp_path}/here/runs", f"{tmp_path}/here/runs/sft")
    assert asked(text, "run.root=/mine", site=site).model.name == "/mine/sft"
    monkeypatch.setenv("HALA_RUNS", "")
    assert asked(text, site=site).run.root == "/profile/runs"
    assert asked(text).model.name == f"{tmp_path}/runs/sft"


@pytest.mark.parametrize("name", ["'run:'", "run:../x", "run:/etc"])
def test_a_run_has_a_name(asked: Asked, name: str) -> None:
    with pytest.raises(HalaError, match="does not name a run"):
        asked("", f"model.name={name}")


def test_a_hub_name_that_is_a_folder_too_is_refused(asked: Asked, tmp_path: Path) -> None:
    (tmp_path / "models" / "foo").mkdir(parents=True)
    with pytest.raises(HalaError, match=r"is a folder here too \(write \./models/foo for the folder\)"):
        asked("", "model.name=models/foo")
    assert asked("", "model.name=./models/foo").model.name == str(tmp_path / "models" / "foo")
    assert asked("", "model.name=models/bar").model.name == "models/bar"


def test_a_recipe_is_no_site(asked: Asked) -> None:
    with pytest.raises(HalaError, match=r"site\.yaml: is a recipe, for it has 'task' \(--site wants a site profile"):
        asked("", site="name: r\ntask: {kind: translate}\n")


def test_variables_of_ours_expand_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALA_RUNS", "~/runs")
    assert places.from_environment("HALA_RUNS") == str(Path.home() / "runs")
    monkeypatch.setenv("HALA_RUNS", "  ")
    assert places.from_environment("HALA_RUNS") is None
