"""A grid expands to the cells that a person would list by hand, and says what is wrong with it."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from hala_hpc.config import grid
from hala_hpc.config.compose import compose
from hala_hpc.config.errors import HalaError
from hala_hpc.config.grid import GridCell
from hala_hpc.worker import registry
from tests.conftest import ROOT

Expand = Callable[..., list[GridCell]]
AXES = {
    "target": {"eu": {"task": {"target": "Basque"}}, "ar": {"task": {"target": "Arabic"}}},
    "workers": {1: {"run": {"workers": 1}}, 2: {"run": {"workers": 2}}},
}


@pytest.fixture
def expand(tmp_path: Path) -> Expand:
    def expand(*words: str, site: dict[str, Any] | None = None, **section: Any) -> list[GridCell]:
        recipe, profile = tmp_path / "g.yaml", tmp_path / "site.yaml"
        values = {
            "name": "g",
            "task": {"kind": "translate", "segments": {"tokens": 0}},
            "engine": {"kind": "echo"},
            "grid": {"axes": AXES} | section,
        }
        recipe.write_text(yaml.safe_dump(values, sort_keys=False))
        profile.write_text(yaml.safe_dump({"site": {"name": "s"}} | (site or {})))
        return grid.expand(recipe, profile, words, registry.options_of)[1]

    return expand


def test_cells_are_all_combinations_the_last_axis_fastest(expand: Expand) -> None:
    found = expand(name="{target}_{workers}")
    assert [(cell.name, cell.state) for cell in found] == [(f"{a}_{b}", "run") for a in ("eu", "ar") for b in (1, 2)]
    assert [(cell.recipe.task.target, cell.recipe.run.workers) for cell in found if cell.recipe] == [
        ("Basque", 1),
        ("Basque", 2),
        ("Arabic", 1),
        ("Arabic", 2),
    ]
    assert found[0].recipe and found[0].recipe.name == "eu_1"
    assert found[0].values == {"target": "eu", "workers": "1"}


def test_an_axis_is_stronger_than_the_site_and_weaker_than_the_command_line(expand: Expand) -> None:
    found = expand(
        "task.target=Maltese", "name=mine", site={"run": {"workers": 7, "attempts": 7}}, name="{workers}{target}"
    )
    assert [cell.recipe.run.workers for cell in found if cell.recipe and cell.state == "run"] == [1, 2]
    assert {(cell.recipe.task.target, cell.recipe.run.attempts) for cell in found if cell.recipe} == {("Maltese", 7)}
    assert {cell.recipe.name for cell in found if cell.recipe} == {"1eu", "2eu", "1ar", "2ar"}  # never `mine`


def test_equal_recipes_run_once(expand: Expand) -> None:
    found = expand("task.target=Maltese", name="{target}_{workers}")
    assert [(cell.state, cell.same_as) for cell in found] == [("run", None)] * 2 + [("same", "eu_1"), ("same", "eu_2")]


def test_cells_fall_away_by_rule(expand: Expand) -> None:
    found = expand(
        name="{target}_{workers}",
        exclude=[{"target": "eu", "workers": [2]}],
        as_is=[{"target": "ar", "workers": 1}],
        aliases={"ar_1": ["ar_2"]},
    )
    assert [(cell.name, cell.state, cell.same_as) for cell in found] == [
        ("eu_1", "run", None),
        ("eu_2", "excluded", None),
        ("ar_1", "as_is", None),
        ("ar_2", "same", "ar_1"),
    ]


def test_paths_of_an_axis_are_relative_to_the_recipe(expand: Expand, tmp_path: Path) -> None:
    axes = {"data": {"small": {"data": {"path": "small.jsonl"}}, "large": {"data": {"path": "/data/large.jsonl"}}}}
    found = expand(axes=axes)
    assert [cell.recipe.data.path for cell in found if cell.recipe] == [
        [str(tmp_path / "small.jsonl")],
        ["/data/large.jsonl"],
    ]


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"nme": "x"}, "unknown key 'grid.nme' (did you mean 'name'?"),
        ({"axes": None}, "'grid.axes' must be a mapping"),
        ({"axes": {"a": ["x"]}}, "'grid.axes.a' must be a mapping"),
        ({"axes": {"a": {"x": {"tsk": {}}}}}, "cell x: "),
        ({"name": "{traget}"}, "grid.name: no axis 'traget' (did you mean 'target'?"),
        ({"name": "{target}{"}, "a brace too many"),
        ({"name": "{target}"}, "two cells would be called 'eu'"),
        ({"exclude": [{"tagret": "eu"}]}, "grid.exclude: no axis 'tagret' (did you mean 'target'?"),
        ({"as_is": [{"target": "es"}]}, "grid.as_is.target: no value 'es'"),
        ({"aliases": {"eu-1": ["ar-3"]}}, "grid.aliases: no cell 'ar-3'"),
        ({"aliases": {"eu-1": ["ar-1"], "eu-2": ["ar-1"]}}, "'ar-1' is an alias of two cells"),
        ({"aliases": {"eu-1": ["ar-1"], "ar-1": ["ar-2"]}}, "'ar-1' is itself an alias, of 'eu-1'"),
    ],
)
def test_a_wrong_grid_is_told_in_one_line(expand: Expand, section: dict[str, Any], said: str) -> None:
    with pytest.raises(HalaError) as caught:
        expand(**section)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_grid_is_no_single_run(tmp_path: Path) -> None:
    recipe = tmp_path / "g.yaml"
    recipe.write_text("name: g\ngrid: {axes: {a: {x: {}}}}")
    assert grid.is_grid(recipe)
    with pytest.raises(HalaError, match="is a grid, and this command"):
        compose(recipe, None, [], registry.options_of)


def test_latxa_trains_the_published_cells() -> None:
    """The 17 configurations in the authors' repository (model_training/train_configs), and what they left out."""
    _, found = grid.expand(ROOT / "jobs" / "latxa" / "grid.yaml", None, [], registry.options_of)
    assert Counter(cell.state for cell in found) == {"run": 17, "same": 4, "as_is": 2, "excluded": 1}
    assert {cell.name.removeprefix("exp_") for cell in found if cell.state == "run"} == {
        *("0_010", "0_011", "0_101", "0_110", "0_111"),
        *("1_001", "1_010", "1_011", "1_101", "1_110", "1_111"),
        *("2_010", "2_011", "2_100", "2_101", "2_110", "2_111"),
    }
    by_name = {cell.name: cell for cell in found}
    assert {other: cell.same_as for other, cell in by_name.items() if cell.state == "same"} == {
        "exp_0_001": "exp_2_000",
        "exp_2_001": "exp_2_000",
        "exp_0_100": "exp_1_000",
        "exp_1_100": "exp_1_000",
    }
    for cell in found:
        if cell.state == "run" and cell.recipe:
            assert registry.create(cell.recipe).environment == "work"
            used = {
                "corpus": "1" in cell.values["corpus"],
                "eu": cell.values["eu"] == "1",
                "en": cell.values["en"] == "1",
            }
            assert set(cell.recipe.task.datasets) == {name for name, is_used in used.items() if is_used}
