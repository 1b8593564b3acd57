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
    (grid / "grid.json").write_text("{")
    with pytest.raises(HalaError, match="cannot be read"):
        location.locate(str(grid))
