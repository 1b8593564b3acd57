"""``hala best`` and ``hala report`` as people call them."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Hala
from tests.report import made
from tests.report.made import Model
from tests.tasks.merge.merge_pairs import store

MODELS = [Model("base", 0.45), Model("t0.25", 0.52, "/models/a"), Model("t0.50", 0.8, "/models/b")]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return made.evaluation(tmp_path / "runs" / "evaluate", MODELS)


def test_the_choice_is_written_down_with_its_table(hala: Hala, run: Path) -> None:
    told = hala.json("best", "evaluate")
    assert json.loads((run / "best.json").read_text()) == told
    assert (told["model"], told["path"], told["weights"]) == ("t0.50", "/models/b", MODELS[2].weights)
    assert told["rule"]["name"] == "average"
    assert told["split"] == {"share": 0.5, "seed": 0, "by": "hash of the question's name"}
    assert [one["model"] for one in told["candidates"]] == ["t0.25", "t0.50"]
    assert all(one["chosen_by"]["questions"] + one["held_out"]["questions"] == 240 for one in told["candidates"])


def test_people_see_the_table_and_the_path(hala: Hala, run: Path) -> None:
    said = hala("best", run, "--rule", "one-se", "--split", "all", "--to", "choice.json").stdout
    assert "t0.50: /models/b" in said and "points ahead of t0.25 on the questions that chose it" in said
    assert (hala.folder / "choice.json").is_file()
    assert not (run / "best.json").exists()


def test_weights_that_were_replaced_since_are_not_chosen(hala: Hala, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    store(model, {"a": np.zeros(2, np.float32)})
    made.evaluation(tmp_path / "runs" / "evaluate", [MODELS[0], Model("t0.50", 0.8, str(model))])
    assert "t0.50: " in hala("best", "evaluate", code=2).stderr
    assert not (tmp_path / "runs" / "evaluate" / "best.json").exists()


def test_an_unfinished_evaluation_chooses_nothing(hala: Hala, tmp_path: Path) -> None:
    made.evaluation(tmp_path / "runs" / "half", MODELS, skip=[("t0.50", "aratrust")])
    assert "half: 1 shard not finished" in hala("best", "half", code=2).stderr
    assert not (tmp_path / "runs" / "half" / "best.json").exists()


def test_a_report_as_json_names_its_files(hala: Hala, run: Path) -> None:
    told = hala.json("report", "evaluate", "--format", "md", "--format", "csv", "--benchmarks", "ara*")
    assert {row["model"] for row in told["tables"]["scores"]["rows"]} == {"base", "t0.25", "t0.50"}
    assert str(hala.folder / "report-evaluate" / "report.md") in told["files"]
    assert all(Path(path).is_file() for path in told["files"])


def test_a_translation_that_nobody_did_has_a_report(hala: Hala) -> None:
    (hala.folder / "a.jsonl").write_text('{"text": "a"}\n')
    (hala.folder / "r.yaml").write_text(
        json.dumps(
            {"name": "t", "task": {"kind": "translate"}, "engine": {"kind": "echo"}, "data": {"path": "a.jsonl"}}
        )
    )
    hala("plan", "r.yaml", "--create")
    hala("report", "t", "--format", "md")
    assert "Nobody has worked on it" in (hala.folder / "report-t" / "report.md").read_text()


def test_no_such_base(hala: Hala, run: Path) -> None:
    said = hala("report", "evaluate", "--base", "bse", code=2).stderr
    assert "did you mean 'base'?" in said
    assert not (hala.folder / "report-evaluate").exists()


def test_a_grid_stands_for_its_runs(hala: Hala, tmp_path: Path) -> None:
    for name, model in (("one", MODELS[0]), ("two", MODELS[1])):
        made.evaluation(tmp_path / "runs" / "grid" / name, [model], {"aratrust": ["ethics"]})
    cells = [
        {"name": "one", "state": "run"},
        {"name": "two", "state": "run"},
        {"name": "three", "state": "same as one"},
    ]
    (tmp_path / "runs" / "grid" / "grid.json").write_text(json.dumps({"name": "grid", "cells": cells}))
    told = hala.json("report", "grid", "--format", "md")
    assert [row["run"] for row in told["tables"]["runs"]["rows"]] == ["one", "two"]
    assert [row["model"] for row in told["tables"]["scores"]["rows"]] == ["base", "t0.25"]
