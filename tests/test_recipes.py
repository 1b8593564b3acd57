"""Every recipe under jobs/ composes with every site profile, and every value in it says where it comes from."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from hala_hpc.config import grid, pipeline
from hala_hpc.config.compose import compose
from hala_hpc.config.schema import Recipe
from hala_hpc.data.shapes import SHAPES
from hala_hpc.pipeline import stages
from hala_hpc.tasks.train.estimate import architecture
from hala_hpc.tasks.train.estimate import memory as estimates
from hala_hpc.text.checks import Pair, checks, flags
from hala_hpc.text.forms import Turns
from hala_hpc.text.languages import language
from hala_hpc.worker import registry
from tests.conftest import ROOT
from tests.tasks.train.estimate.real_models import REAL

PROMPTS = sorted((ROOT / "jobs" / "prompts").glob("*.yaml"))
FILES = sorted({*(ROOT / "jobs").glob("*/*.yaml")} - {*PROMPTS, *(ROOT / "jobs" / "tasks").glob("*.yaml")})
"""Without jobs/tasks, which holds benchmarks as lm-eval's own files describe them."""
PIPELINES = [file for file in FILES if pipeline.is_pipeline(file)]
RECIPES = [file for file in FILES if file not in PIPELINES]
SITES = sorted((ROOT / "hpc" / "sites").glob("*.yaml"))
LABEL = re.compile(r"\s# (paper|observed|ours)\b")
MARK = re.compile(r"⟦\d+⟧")
SECTION = re.compile(r"[\w.{}-]+:$")


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def composed(recipe: Path, site: Path) -> list[Recipe]:
    """The recipe, or those of a grid's cells that are runs."""
    if not grid.is_grid(recipe):
        return [compose(recipe, site, [], registry.options_of)]
    return [
        cell.recipe
        for cell in grid.expand(recipe, site, [], registry.options_of)[1]
        if cell.recipe and cell.state == "run"
    ]


PAIRS = [(recipe, site) for recipe in RECIPES for site in (SITES[:1] if grid.is_grid(recipe) else SITES)]
"""A grid has many cells to compose: it is tried with one site."""


@pytest.mark.parametrize(("recipe", "site"), PAIRS, ids=short)
def test_recipe_composes_with_site(recipe: Path, site: Path) -> None:
    for cell in composed(recipe, site):
        assert registry.create(cell).environment in cell.site.environments or not cell.site.environments


TRAININGS = [path for path in RECIPES if "kind: train" in path.read_text() and path.parent.name != "mini"]
"""Those for GPUs: the models of jobs/mini train on a CPU."""


@pytest.mark.parametrize("recipe", TRAININGS, ids=short)
def test_a_training_fits_where_its_header_says(recipe: Path) -> None:
    """80 GB GPUs, on one node, two and four of eight; and the header tells the memory that `hala plan` would."""
    training = composed(recipe, ROOT / "hpc" / "sites" / "local.yaml")[0]
    model = architecture.read(REAL[training.model.name])
    own, *_ = estimated = [estimates.estimate(model, training.task, gpus) for _, gpus in estimates.hardware(training)]
    assert all(estimate.fits(estimates.GPU_BYTES) for estimate in estimated), estimated
    gibibytes = re.search(r"about (\d+) GiB", recipe.read_text())
    assert gibibytes is not None
    assert int(gibibytes[1]) == pytest.approx(own.total / 1024**3, abs=1)


@pytest.mark.parametrize("file", PIPELINES, ids=short)
def test_pipeline_composes(file: Path, tmp_path: Path) -> None:
    """Every stage of it, and what each takes is there: no address of a recipe leads out of the pipeline."""
    site = str(ROOT / "hpc" / "sites" / "example-h100.yaml")
    whole = stages.compose(pipeline.read(file), site, (f"run.root={tmp_path}",))
    assert len(whole.order) == len(whole.stages)
    assert [path for stage in whole.stages for path in stage.reads if path.startswith(str(tmp_path))] == []


@pytest.mark.parametrize("recipe", [path for path in RECIPES if "kind: mix" in path.read_text()], ids=short)
def test_a_mix_names_the_shape_of_conversations_in_one_column(recipe: Path) -> None:
    """Else it is taken for the prompt of a pair, whose answer is missing."""
    sources = composed(recipe, ROOT / "hpc" / "sites" / "local.yaml")[0].task.sources.values()
    assert all(SHAPES[source.shape].turn_keys for source in sources if len(source.columns) == 1)


@pytest.mark.parametrize("recipe", [*FILES, *PROMPTS], ids=short)
def test_each_value_is_labelled(recipe: Path) -> None:
    text = re.sub(r"^( *)(\w+: \|.*)\n(?:\1 +.*\n|\n)+", r"\1\2\n", recipe.read_text(), flags=re.MULTILINE)
    lines = [line.strip() for line in text.splitlines()]
    values = [line for line in lines if line and not line.startswith("#") and not SECTION.fullmatch(line)]
    assert values
    assert [line for line in values if not LABEL.search(line)] == []


@pytest.mark.parametrize("recipe", FILES, ids=short)
def test_header_tells_how_to_run_it(recipe: Path) -> None:
    header = recipe.read_text().split("\nname:")[0]
    assert all(
        word in header for word in ("# Before:", "# Hardware:", "# Time:", "# Run:", f"hala submit {short(recipe)}")
    )


@pytest.mark.parametrize("recipe", [*RECIPES, *PROMPTS], ids=short)
def test_runs_are_named_by_their_address(recipe: Path) -> None:
    """A path holds on one machine, and RUN/final need not be there yet."""
    assert re.findall(r"\S*\bruns/\S*|run:[\w.-]+/final\b", recipe.read_text()) == []


@pytest.mark.parametrize("site", SITES, ids=short)
def test_a_site_says_only_what_a_site_is(site: Path) -> None:
    """What is to be done belongs in recipes: a profile names the site, and perhaps where its runs live."""
    assert set(yaml.safe_load(site.read_text())) <= {"site", "run"}
    assert len({yaml.safe_load(path.read_text())["site"]["name"] for path in SITES}) == len(SITES)


@pytest.mark.parametrize("prompt", PROMPTS, ids=short)
def test_a_prompt_can_be_included_and_renders(prompt: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    named = {"name": "r", "include": str(prompt), "task": {"kind": "translate"}, "engine": {"kind": "echo"}}
    recipe.write_text(yaml.safe_dump(named | {"data": {"path": "rows.jsonl"}}))
    composed = compose(recipe, None, [], registry.options_of)
    work = registry.create(composed).work_on(pa.schema([("text", pa.string())]))  # type: ignore[attr-defined]
    (sent,) = next(work.do({"text": "Use `x` for it."}))
    assert "Use ⟦1⟧ for it." in sent.last and not re.search(r"\{\w+\}", sent.last.replace("{text}", ""))


def test_the_worked_examples_of_a_few_shot_prompt_are_right() -> None:
    """Each example is what would be asked and answered: as many turns of the same roles, and the same marks."""
    prompt = yaml.safe_load((ROOT / "jobs" / "prompts" / "latxa-few-shot.yaml").read_text())["task"]["prompt"]
    lists = re.findall(r"(English|Basque):\n```json\n(.*?)\n```", prompt, re.DOTALL)
    examples = lists[:-1]  # the last is the place of the text
    assert [language for language, _ in examples] == ["English", "Basque"] * 4
    assert prompt.endswith("English:\n```json\n{text}\n```\nBasque:\n```json\n")
    for (_, source), (_, target) in zip(examples[::2], examples[1::2], strict=True):
        turns = json.loads(source)
        texts, roles = [turn["content"] for turn in turns], [turn["role"] for turn in turns]
        assert Turns().write(texts, roles) == source
        translated = Turns().read(target, texts, roles)
        assert [MARK.findall(text) for text in texts] == [MARK.findall(text) for text in translated]
        basque = Pair(language("English"), language("Basque"))
        for text, translation in zip(texts, translated, strict=True):
            assert not flags(checks(MARK.sub("", text), MARK.sub("", translation), basque)), translation
