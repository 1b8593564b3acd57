"""Grids on the command line: several runs from one recipe, one table, one proof."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Hala
from tests.minislurm.cluster import Cluster
from tests.work import work_python as work_python

Write = Callable[..., Path]
LANGUAGES = {"eu": {"task": {"target": "Basque"}}, "ar": {"task": {"target": "Arabic"}}, "es": {}}


@pytest.fixture
def recipe(write_recipe: Write, tmp_path: Path) -> Callable[..., Path]:
    """Three cells: Basque runs, Arabic too, Spanish is left out."""
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(f'{{"text": "line {i}"}}\n' for i in range(20)))

    def write(name: str = "langs", **sections: Any) -> Path:
        grid = {"axes": {"language": LANGUAGES}, "exclude": [{"language": "es"}]}
        return write_recipe(name, grid=grid, data={"path": str(source)}, **sections)

    return write


def wait(hala: Hala, run: str, seconds: float = 90.0) -> dict[str, Any]:
    """Until all runs of a grid are finished."""
    end = time.monotonic() + seconds
    while not (found := hala.json("status", run))["finished"]:
        assert time.monotonic() < end, found
        time.sleep(1)
    state: dict[str, Any] = found
    return state


def test_a_grid_from_plan_to_proof(hala: Hala, recipe: Callable[..., Path]) -> None:
    planned = hala.json("plan", recipe())
    assert [(cell["name"], cell["state"], cell.get("plan", {}).get("rows")) for cell in planned["cells"]] == [
        ("eu", "run", 20),
        ("ar", "run", 20),
        ("es", "excluded", None),
    ]
    assert not (hala.folder / "runs").exists()
    made = hala.json("submit", recipe())
    assert [Path(run).name for run in made["runs"]] == ["eu", "ar"]
    state = wait(hala, "langs")
    assert [cell["status"] for cell in state["cells"]] == ["done", "done", "left out"]
    assert hala.json("verify", "langs")["proven"]
    assert "2 done of 2 runs" in hala("status", "langs").stdout
    assert "nothing to start" in hala("resume", "langs").stdout
    assert hala.json("resume", "langs") == {"grid": str(hala.folder / "runs" / "langs"), "runs": [], "jobs": []}
    assert hala.json("status", "langs/eu")["rows_done"] == 20  # a cell is a run like any other
    assert "exists in" in (said := hala("submit", recipe(), code=2).stderr) and "with the same recipe" in said
    said = hala("submit", recipe(), "run.workers=7", code=2).stderr
    assert "cell eu with another recipe: run.workers=7 (was 1)" in said
    more = json.loads(recipe().read_text())
    more["grid"]["axes"]["language"]["gl"] = {"task": {"target": "Galician"}}
    recipe().write_text(json.dumps(more))
    said = hala("submit", hala.folder / "langs.yaml", code=2).stderr
    assert "grid 'langs' exists in" in said and "cell gl is not in it" in said


def test_a_cell_that_cannot_be_planned_leaves_nothing_behind(hala: Hala, recipe: Callable[..., Path]) -> None:
    said = hala("submit", recipe(task={"kind": "translate", "prompt": "no place for the text"}), code=2).stderr
    assert "cell eu: task.prompt" in said
    assert not (hala.folder / "runs" / "langs").exists()


def test_cells_whose_workers_died_are_resumed(hala: Hala, recipe: Callable[..., Path]) -> None:
    hala("submit", recipe(engine={"kind": "echo", "die_on": "line 7"}, run={"lease_seconds": 2, "attempts": 1}))
    end = time.monotonic() + 90
    while {cell["status"] for cell in hala.json("status", "langs")["cells"][:2]} != {"failed"}:
        assert time.monotonic() < end
        time.sleep(0.5)
    assert hala("verify", "langs", code=1).stdout.splitlines()[-1] == "NOT proven"
    resumed = hala.json("resume", "langs")
    assert len(resumed["runs"]) == 2


@pytest.mark.train
def test_trainings_of_a_grid_share_their_tokens(
    hala: Hala, work_python: Path, tiny_model: Callable[[str], Path]
) -> None:
    model = tiny_model("gemma2")
    rates = {"fast": 1.0e-3, "slow": 1.0e-5}
    axes = {"rate": {name: {"task": {"optimizer": {"learning_rate": rate}}} for name, rate in rates.items()}}
    data = {"demo": {"path": str(ROOT / "jobs" / "demo" / "instructions.jsonl"), "shape": "messages", "limit": 40}}
    task = {"kind": "train", "datasets": data, "precision": "float32", "sequence_length": 256, "too_long": "drop"}
    task |= {"batch": {"sequences": 4, "per_device": 2}, "watch": {"preflight": False}, "report_to": []}
    recipe = hala.folder / "rates.yaml"
    recipe.write_text(
        json.dumps({"name": "rates", "model": {"name": str(model)}, "task": task, "grid": {"axes": axes}})
    )
    site = ROOT / "hpc" / "sites" / "local-cpu.yaml"
    plan = hala.json("plan", recipe, "--site", site)
    about = plan["cells"][0]["plan"]["training"]
    assert about["datasets"][0]["rows"] == 40
    assert about["estimated_steps"] >= 1
    own = about["memory"][0]
    assert own["fits"] and own["total"] == sum(own[part] for part in own if part in ABOUT)
    hala("submit", recipe, "--site", site)
    state = wait(hala, "rates", 240)
    assert len(list((hala.folder / "runs" / "rates" / "prepared").glob("demo-*"))) == 1
    losses = [cell["training"]["loss"] for cell in state["cells"]]
    assert losses[0] != losses[1]
    assert hala.json("verify", "rates")["proven"]


ABOUT = ("parameters", "gradients", "optimizer", "activations", "working")


@pytest.mark.slurm
def test_cells_are_one_array_on_slurm(cluster: Cluster, hala: Hala, recipe: Callable[..., Path]) -> None:
    hala.env = dict(cluster.env)
    slurm = {"partition": "main", "cpus_per_worker": 1, "minutes": 5, "gpus_per_worker": 0}
    made = hala.json("submit", recipe(site={"executor": "slurm", "slurm": slurm}))
    assert len(made["jobs"]) == 1
    assert [cell["status"] for cell in wait(hala, "langs", 180)["cells"]] == ["done", "done", "left out"]
    assert hala.json("verify", "langs")["proven"]
