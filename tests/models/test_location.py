"""What a model's name stands for."""

import json
from pathlib import Path

import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.models import location
from tests.publish import runs

DATA = {"mine": {"hub": "Org/mine", "licence": "mit"}}
BASE = {"name": "Org/base", "licence": "mit"}


def test_a_grid_stands_for_the_models_of_its_cells(tmp_path: Path) -> None:
    """Left-out cells are no models, cells that are a model as it is are; one that is not trained is named."""
    grid = tmp_path / "grid"
    for name in ("small", "large"):
        runs.trained(grid / name, BASE, DATA, [])
    as_it_is = tmp_path / "base"
    as_it_is.mkdir()
    (as_it_is / "config.json").write_text("{}")
    cells = [{"name": name, "state": "run"} for name in ("small", "large")]
    cells += [{"name": "base", "state": "as_is", "model": str(as_it_is)}, {"name": "none", "state": "excluded"}]
    (grid / "grid.json").write_text(json.dumps({"name": "grid", "cells": cells}))
    found = location.locate(str(grid))
    assert found == {name: grid / name / "shards/000/000000" for name in ("small", "large")} | {"base": as_it_is}
    (found["large"] / "config.json").unlink()
    with pytest.raises(HalaError, match="1 of its 3 cells have no model yet: large"):
        location.locate(str(grid))
    assert location.locate(str(grid / "base")) == {"": as_it_is}
    (grid / "grid.json").write_text("{")
    with pytest.raises(HalaError, match="cannot be read"):
        location.locate(str(grid))


def test_an_item_is_named_as_commands_show_it(tmp_path: Path) -> None:
    """Also of a cell, and of a cell that is the same as another; it need not be the run's only finished one."""
    merge = runs.merged(tmp_path / "grid/a", [], ("t0.25", "best"))
    cells = [{"name": "a", "state": "run"}, {"name": "b", "state": "same", "same_as": "a"}]
    cells += [{"name": "none", "state": "excluded"}, {"name": "gone", "state": "run"}]
    (tmp_path / "grid/grid.json").write_text(json.dumps({"name": "grid", "cells": cells}))
    first, second = (merge / f"shards/000/{number:06d}" for number in range(2))
    for name, folder in (("a/t0.25", first), ("a/best", second), ("b/t0.25", first)):
        assert location.locate(str(tmp_path / "grid" / name)) == {"": folder}
    assert location.locate(str(tmp_path / "grid/b")) == {"t0.25": first, "best": second}
    (second / "config.json").unlink()
    assert location.locate(str(merge / "t0.25")) == {"": first}
    trained = runs.trained(tmp_path / "sft", BASE, DATA, [])
    for name, said in (
        ("grid/a/best", "a: best is not there"),
        ("grid/a/t0.5", r"a: no model 't0\.5' \(it makes: t0\.25, best\)"),
        ("grid/c", r"grid: no model 'c' \(its cells: a, b, gone\)"),
        ("grid/none", "grid: no model 'none'"),
        ("grid/gone", "grid/gone is gone"),
        ("sft/step-1", r"sft: no model 'step-1' \(it makes: one, without a name\)"),
        ("other", "is not a model folder: there is no such folder"),
    ):
        with pytest.raises(HalaError, match=said):
            location.locate(str(tmp_path / name))
    assert location.locate(str(trained)) == {"": trained / "shards/000/000000"}
