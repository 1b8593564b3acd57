"""What a recipe takes of other runs: rows of finished ones, columns that are named, models by the names of items."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Data
from hala_hpc.data.cut import PlanWatch
from hala_hpc.data.files import sources
from hala_hpc.data.outputs import quarantine
from hala_hpc.data.outputs.collect import collect, collected
from hala_hpc.models import location
from hala_hpc.pipeline import outlook, planning
from hala_hpc.publish import content
from hala_hpc.run import lease, manifest
from hala_hpc.tasks.compare import measure
from hala_hpc.worker import job
from tests.conftest import Hala
from tests.data.tokenizer_kinds import KINDS, save
from tests.publish import runs
from tests.report import made

PAIRS = [{"instruction": f"say {number}", "output": f"it is {number}", "response": "yes"} for number in range(12)]
"""With `instruction_ar` and `output_ar` once they are translated."""
Write = Callable[..., Path]


@pytest.fixture
def written(tmp_path: Path, write_recipe: Write) -> Write:
    """A recipe whose runs are in ``runs``, for the engine that echoes."""

    def write(name: str, **sections: Any) -> Path:
        run = {"root": tmp_path / "runs", "shard_rows": 5, "lease_seconds": 1.2}
        return write_recipe(name, **{"run": run} | sections)

    return write


@pytest.fixture
def first(tmp_path: Path, written: Write) -> Path:
    """A translation, planned: three shards, and a row that will be in quarantine."""
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    engine = {"kind": "echo", "fail_on": "say 7"}
    return planned(written("first", data={"path": tmp_path / "in.jsonl"}, engine=engine))


def planned(recipe: Path) -> Path:
    runs = planning.read(recipe, "local", ())
    planning.plan(runs, runs.folder)
    return runs.folder


def finished(run: Path) -> Path:
    assert job.work_until(run, lambda: False, "one") is job.Outcome.FINISHED
    return run


def summary(recipe: Path) -> outlook.Summary:
    (found,), _ = outlook.summaries(planning.read(recipe, "local", ()), create=True)
    return found


def frozen(run: Path) -> Any:
    return yaml.safe_load((run / "recipe.yaml").read_text())


# --- rows -------------------------------------------------------------------------------------------------------------


def test_a_plan_collects_the_rows_that_it_takes_and_says_so(
    first: Path, written: Write, capfd: pytest.CaptureFixture[str]
) -> None:
    finished(first)
    data = {"path": "run:first", "columns": ["instruction_ar"]}
    found = summary(written("second", data=data, task={"suffix": "_eu"}))
    assert f"collecting 12 rows of first into {first / 'final'}" in capfd.readouterr().err.replace("\n", " ")
    assert found["rows"] == 11 and pq.read_table(first / "final/quarantine.parquet").num_rows == 1
    planned_at = manifest.read(first / "manifest.parquet").facts.made_by
    assert found["takes"] == [
        {"key": "data.path", "address": "run:first", "path": str(first / "final")}
        | {key: planned_at[key] for key in ("recipe_digest", "planned_at")}
    ]
    second = finished(first.with_name("second"))
    collect(second, second / "final")
    rows = pq.read_table(second / "final/data").to_pylist()
    assert {row["instruction_ar_eu"].strip("«»").count("say 7") for row in rows} == {0}
    assert frozen(second)["data"]["path"] == [str(first)]
    summary(written("third", data=data, task={"suffix": "_eu"}))
    assert capfd.readouterr().err == ""
    assert not list(first.glob(".final*")) and not list((first / "leases/collect").iterdir())


def test_a_run_that_is_not_finished_is_refused_with_how_far_it_is(first: Path, written: Write) -> None:
    second = written("second", data={"path": "run:first", "columns": ["instruction_ar"]})
    with pytest.raises(HalaError, match=r"data\.path: .*/first is not finished: 0 of its 3 shards are done \(`hala"):
        planned(second)
    finished(first)
    (first / "shards/000/000001.parquet").rename(first / "away")
    with pytest.raises(HalaError, match="2 of its 3 shards are done"):
        planned(second)
    assert not (first / "final").exists() and not (first.parent / "second").exists()
    with pytest.raises(HalaError, match=r"data\.path: no run 'frist' \(did you mean 'first'\? runs in"):
        planned(written("second", data={"path": "run:frist"}))


def test_rows_that_are_not_all_there_or_older_than_the_run_are_not_read(first: Path, written: Write) -> None:
    second = written("second", data={"path": "run:first", "columns": ["instruction_ar"]})
    finished(first)
    held = first / "shards/000/000001.parquet"
    held.rename(first / "away")
    collect(first, first / "final", partial=True)
    (first / "away").rename(held)
    with pytest.raises(HalaError, match=r"first/final holds 7 of the run's 12 rows, as with --partial \(move .* away"):
        planned(second)
    (first / "final").rename(first.parent / "partial")
    collect(first, first / "final")
    assert sources.resolve(Data(path=[str(first)])) == sources.resolve(Data(path=[str(first / "final")]))
    assert quarantine.reopen(first, "").rows == 1
    with pytest.raises(HalaError, match="2 of its 3 shards are done"):
        planned(second)
    finished(first)
    for path in (first, first / "final"):
        with pytest.raises(HalaError, match="is older than the run's rows: some were taken away since"):
            sources.resolve(Data(path=[str(path)]))
    with pytest.raises(HalaError, match=r"taken away since, to be done again \(move it away; `hala collect"):
        content.dataset(first, first / "final")
    (first / "final").rename(first.parent / "old")
    assert summary(second)["rows"] == 11


def test_rows_are_not_collected_while_some_are_taken_away(first: Path) -> None:
    finished(first)

    def takes_away(shards: Any) -> Any:
        yield next(shards)
        quarantine.reopen(first, "")
        yield from shards

    with pytest.raises(HalaError, match="taken away to be done again while they were collected"):
        collect(first, first / "final", progress=takes_away)
    assert not (first / "final").exists()


def test_one_plan_collects_while_the_others_wait(first: Path) -> None:
    finished(first)
    said: list[str] = []
    waiting = threading.Thread(target=lambda: collected(first, said.append))
    with lease.alone(first, lease.COLLECT, "another", 5.0, 0.0):
        waiting.start()
        time.sleep(1.0)
        assert waiting.is_alive() and not (first / "final").exists()
        collect(first, first / "final")
    waiting.join(20)
    assert not waiting.is_alive() and len(said) == 1
    assert collected(first, said.append) == first / "final" and len(said) == 1


def test_nothing_else_of_a_run_is_data(first: Path) -> None:
    finished(first)
    collect(first, first / "final")
    root = first.parent
    (root / "grid").mkdir()
    (root / "grid/grid.json").write_text("{}")
    for path, said in (
        (first / "shards", "lies in the run first, and holds what nobody has collected"),
        (first / "shards/000/000001.parquet", "lies in the run first"),
        (first / "shards/*/*.parquet", "lies in the run first"),
        (first / "manifest.parquet", "lies in the run first"),
        (root / "grid", "is a grid of runs"),
        (root, "holds the run"),
    ):
        with pytest.raises(HalaError, match=said):
            sources.resolve(Data(path=[str(path)]))
    with pytest.raises(HalaError, match=r"data\.hub: .* is a run \(data\.path takes its rows\)"):
        sources.resolve(Data(hub=str(first)))
    merge = runs.merged(root / "merge", [])
    with pytest.raises(HalaError, match="has no rows: it is a run of merges"):
        sources.resolve(Data(path=[str(merge)]))


def takers(folder: Path) -> dict[str, dict[str, Any]]:
    """Tasks that take rows, as recipes that do not say which columns."""
    tokenizer = save(KINDS["byte level"]([]), folder / "tiny")
    data = {"data": {"path": "run:first"}}
    return {
        "translate": {"task": {"kind": "translate", "suffix": "_eu"}, **data},
        "of a shape": {
            "task": {"kind": "translate", "suffix": "_eu"},
            "data": {"path": "run:first", "shape": "alpaca"},
        },
        "judge": {"task": {"kind": "judge", "rows": "instructions", "prompts": []}, **data},
        "mix": {"task": {"kind": "mix", "sources": {"a": {"path": "run:first"}}}},
        "prepare": {"task": {"kind": "prepare", "sequence_length": 64}, "model": {"name": tokenizer}, **data},
    }


TAKERS = ("translate", "of a shape", "judge", "mix", "prepare")


@pytest.mark.parametrize("taker", TAKERS)
def test_which_columns_of_a_translation_is_never_guessed(
    first: Path, written: Write, tmp_path: Path, taker: str
) -> None:
    finished(first)
    sections = takers(tmp_path)[taker]
    said = r"'instruction' is the original of 'instruction_ar' \(say which is meant: columns: \[instruction_ar.*"
    with pytest.raises(HalaError, match=said + r" or columns: \[instruction,"):
        planned(written("second", **sections))
    named = sections["task"]["sources"]["a"] if taker == "mix" else sections["data"]
    named |= {"columns": ["instruction_ar", "output_ar"], "shape": "columns"}
    assert planned(written("second", **sections)).is_dir()


def test_a_comparison_does_not_guess_either(first: Path, tmp_path: Path) -> None:
    finished(first)
    collect(first, first / "final")
    with pytest.raises(HalaError, match="say which is meant"):
        measure.read(Data(path=[str(first)]), 3, tmp_path, PlanWatch(), Counter())
    texts = measure.read(Data(path=[str(first)], columns=["output_ar"]), 3, tmp_path, PlanWatch(), Counter())
    assert all(text.startswith("«") for text in texts.values())


def test_a_mix_and_a_scored_set_are_taken_as_they_are(first: Path, written: Write) -> None:
    finished(first)
    source = {"path": "run:first", "columns": ["instruction_ar", "output_ar"]}
    finished(
        planned(
            written(
                "mixed", task={"kind": "mix", "sources": {"a": source}, "duplicates": {"exact": False, "near": None}}
            )
        )
    )
    found = summary(written("of-mix", data={"path": "run:mixed"}))
    assert (found["rows"], found["texts"]) == (11, 22)
    sides = {"path": "run:first", "column": "output"}
    systems = {"own": {"path": "run:first", "column": "output_ar"}}
    task = {"kind": "score", "systems": systems, "references": sides, "metrics": ["bleu"], "missing": "empty"}
    found = summary(written("scored", task=task))
    assert [take["key"] for take in found["takes"]] == ["task.systems.own.path", "task.references.path"]
    with pytest.raises(HalaError, match="scored is not finished: 0 of its 1 shard"):
        planned(written("of-scored", data={"path": "run:scored", "columns": ["own.text"]}))
    finished(first.with_name("scored"))
    found = summary(written("of-scored", data={"path": "run:scored", "columns": ["own.text"], "limit": 5}))
    assert found["rows"] == 5 and found["takes"][0]["path"].endswith("scored/final/rows.parquet")


def test_a_score_of_a_run_says_which_columns_there_are(hala: Hala, first: Path) -> None:
    finished(first)
    said = hala("score", "in.jsonl", "run:first", "--reference-column", "output", code=2).stderr
    assert "one of its translations, instruction_ar, output_ar; or of instruction, output, response" in said
    assert not (first / "final").exists()
    assert hala.json("status", "run:first")["rows"] == 12


# --- models -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Real(made.Model):
    """A model that is there."""

    @property
    def weights(self) -> str:
        return location.digest(Path(self.path))


@pytest.fixture
def merge(tmp_path: Path) -> Path:
    return runs.merged(tmp_path / "runs" / "merge", [], ("t0.25", "t0.50"))


@pytest.fixture
def evaluation(merge: Path) -> Path:
    """In which t0.50 is better."""
    models = [made.Model("base", 0.4)]
    models += [
        Real(name, skill, str(location.of_item(merge, name))) for name, skill in (("t0.25", 0.5), ("t0.50", 0.8))
    ]
    return made.evaluation(merge.parent / "evaluation", models)


def shard(run: Path, number: int) -> str:
    return str(run / f"shards/000/{number:06d}")


def test_an_engine_gets_the_folder_of_an_item_and_a_recipe_keeps_it(
    merge: Path, written: Write, tmp_path: Path
) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n')
    sections: dict[str, Any] = {"data": {"path": tmp_path / "in.jsonl"}, "engine": {"kind": "vllm"}}
    model = {"name": "run:merge/t0.50", "tokenizer": "run:merge/t0.25"}
    found = summary(written("t", model=model, **sections))
    assert [(take["key"], take["address"], take["path"]) for take in found["takes"]] == [
        ("model.name", "run:merge/t0.50", shard(merge, 1)),
        ("model.tokenizer", "run:merge/t0.25", shard(merge, 0)),
    ]
    again = frozen(tmp_path / "runs/t")["model"]
    assert (again["name"], again["tokenizer"]) == (shard(merge, 1), shard(merge, 0))
    with pytest.raises(HalaError, match=r"run 't' exists in .*, with the same recipe"):
        planned(written("t", model=model, **sections))
    for name, said in (
        ("run:merge", r"model\.name: .*merge holds 2 models: t0\.25, t0\.50 \(name one: .*merge/t0\.25\)"),
        ("run:merge/t0.75", r"model\.name: merge: no model 't0\.75' \(it makes: t0\.25, t0\.50\)"),
        ("run:merg/t0.75", r"model\.name: no run 'merg' \(did you mean 'merge'"),
        ("run:t", r"model\.name: .*/t makes no model: it is a run of rows"),
    ):
        with pytest.raises(HalaError, match=said):
            planned(written("u", model={"name": name}, **sections))
    Path(shard(merge, 1), "config.json").unlink()
    with pytest.raises(HalaError, match=r"merge: t0\.50 is not there \(`hala status"):
        planned(written("u", model=model, **sections))
    sections["engine"] = {"kind": "echo"}
    assert "takes" not in summary(written("u", model={"name": "run:absent"}, **sections))


def test_an_evaluation_takes_all_models_of_a_run_or_one(merge: Path, evaluation: Path, written: Write) -> None:
    with pytest.raises(HalaError, match=r"evaluation: no model of it was chosen yet \(`hala best evaluation`\)"):
        location.locate(str(evaluation / "best"))
    choose(evaluation, shard(merge, 1))
    models = {"all": "run:merge", "one": "run:merge/t0.25", "chosen": "run:evaluation/best"}
    task = {
        "kind": "evaluate",
        "benchmarks": ["aratrust"],
        "models": {key: {"name": name} for key, name in models.items()},
    }
    found = summary(written("e", task=task, engine={"kind": "vllm"}))
    items = manifest.read(merge.parent / "e/manifest.parquet").facts.items
    assert [(item["model"], item["path"]) for item in items] == [
        ("all-t0.25", shard(merge, 0)),
        ("all-t0.50", shard(merge, 1)),
        ("one", shard(merge, 0)),
        ("chosen", shard(merge, 1)),
    ]
    assert [take["path"] for take in found["takes"]] == [str(merge), shard(merge, 0), shard(merge, 1)]
    kept = frozen(merge.parent / "e")["task"]["models"]
    assert [model["name"] for model in kept.values()] == [str(merge), shard(merge, 0), shard(merge, 1)]


def test_questions_of_a_run_are_its_rows_alone(merge: Path, first: Path, written: Write) -> None:
    """A harness would read all files of a run's folder, also the rows in quarantine."""
    finished(first)
    task = {"kind": "evaluate", "benchmarks": ["mine"], "settings": {"mine": {"data": "run:first"}}}
    models = {"models": {"one": {"name": "run:merge/t0.25"}}}
    found = summary(written("e", task=task | models, engine={"kind": "vllm"}))
    assert [take["path"] for take in found["takes"]] == [shard(merge, 0), str(first / "final/data")]
    assert frozen(merge.parent / "e")["task"]["settings"]["mine"]["data"] == str(first / "final/data")


def choose(evaluation: Path, path: str) -> None:
    choice = {"model": "t0.50", "path": path, "weights": location.digest(Path(path))}
    (evaluation / location.CHOICE).write_text(json.dumps(choice))


def test_what_hala_best_chose_is_a_model(hala: Hala, merge: Path, evaluation: Path) -> None:
    hala("best", "evaluation")
    best = str(evaluation / "best")
    assert location.locate(best) == {"": Path(shard(merge, 1))}
    (config := Path(shard(merge, 1), "config.json")).write_text('{"other": 1}')
    with pytest.raises(HalaError, match=r"has changed since t0\.50 was evaluated \(evaluate it again, as a new run\)"):
        location.locate(best)
    config.unlink()
    with pytest.raises(HalaError, match=r"the chosen model t0\.50 is not at .*000001 any more"):
        location.locate(best)
    with pytest.raises(HalaError, match=r"makes no model: .* \(run:evaluation/best is the model that `hala best eval"):
        location.locate(str(evaluation))


def test_an_export_takes_the_run_itself(tmp_path: Path, written: Write) -> None:
    trained = runs.trained(tmp_path / "runs/sft", {"name": "Org/base"}, {"mine": {"hub": "Org/mine"}}, [])
    asked = planning.read(written("x", task={"kind": "export"}, model={"name": "run:sft"}), "local", ())
    (cell,) = planning.looked_up(asked).cells
    assert cell.recipe is not None and cell.recipe.model.name == str(trained)
    asked = planning.read(written("x", task={"kind": "quantize"}, model={"name": "run:sft"}), "local", ())
    (cell,) = planning.looked_up(asked).cells
    assert cell.recipe is not None and cell.recipe.model.name == shard(trained, 0)


def test_a_plan_shows_what_an_address_is(hala: Hala, first: Path, written: Write) -> None:
    finished(first)
    recipe = written("second", data={"path": "run:first", "columns": ["output_ar"]})
    done = hala("plan", recipe)
    assert f"takes data.path: run:first is {first}/final (planned 20" in done.stdout
    assert "collecting 12 rows of first" in done.stderr and not (first.parent / "second").exists()
    assert hala.json("plan", recipe)["takes"][0]["address"] == "run:first"


def test_another_root_is_named_by_its_path(first: Path, written: Write, tmp_path: Path) -> None:
    finished(first)
    data = {"path": first, "columns": ["output_ar"]}
    found = summary(written("second", data=data, run={"root": tmp_path / "elsewhere"}))
    assert found["takes"][0]["address"] == str(first) and found["rows"] == 11


def test_a_submitted_run_goes_on_with_the_model_that_was_chosen_then(
    merge: Path, evaluation: Path, written: Write
) -> None:
    """A later choice changes nothing."""
    choose(evaluation, shard(merge, 1))
    task = {"kind": "quantize", "scheme": "FP8_DYNAMIC"}
    asked = planning.read(written("q", task=task, model={"name": "run:evaluation/best"}), "local", ())
    (cell,) = planning.looked_up(asked).cells
    choose(evaluation, shard(merge, 0))
    assert cell.recipe is not None and cell.recipe.model.name == shard(merge, 1)
