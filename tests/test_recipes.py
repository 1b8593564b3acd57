"""Every recipe under jobs/ composes with every site profile, and every value in it says where it comes from."""

import re
from pathlib import Path

import pytest
import yaml

from hala_hpc import tasks
from hala_hpc.config.compose import compose
from tests.conftest import ROOT

RECIPES = sorted((ROOT / "jobs").rglob("*.yaml"))
SITES = sorted((ROOT / "hpc" / "sites").glob("*.yaml"))
LABEL = re.compile(r"\s# (paper|observed|ours)\b")
SECTION = re.compile(r"[\w-]+:$")


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("site", SITES, ids=short)
@pytest.mark.parametrize("recipe", RECIPES, ids=short)
def test_recipe_composes_with_site(recipe: Path, site: Path) -> None:
    asked = compose(recipe, site, [], tasks.options_of)
    assert tasks.create(asked).stage in asked.site.environments or not asked.site.environments


@pytest.mark.parametrize("recipe", RECIPES, ids=short)
def test_each_value_is_labelled(recipe: Path) -> None:
    lines = [line.strip() for line in recipe.read_text().splitlines()]
    values = [line for line in lines if line and not line.startswith("#") and not SECTION.fullmatch(line)]
    assert values
    assert [line for line in values if not LABEL.search(line)] == []


@pytest.mark.parametrize("recipe", RECIPES, ids=short)
def test_header_tells_how_to_run_it(recipe: Path) -> None:
    header = recipe.read_text().split("\nname:")[0]
    assert all(
        word in header for word in ("# Before:", "# Hardware:", "# Time:", "# Run:", f"hala submit {short(recipe)}")
    )


@pytest.mark.parametrize("site", SITES, ids=short)
def test_a_site_says_only_what_a_site_is(site: Path) -> None:
    """What is to be done belongs in recipes: a profile names the site, and perhaps where its runs live."""
    assert set(yaml.safe_load(site.read_text())) <= {"site", "run"}
    assert len({yaml.safe_load(path.read_text())["site"]["name"] for path in SITES}) == len(SITES)
