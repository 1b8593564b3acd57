"""Checkpoints to export are looked for when the run is planned; ``tests/training`` exports real ones."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.run.manifest import Shard
from hala_hpc.tasks.train import paths
from hala_hpc.tasks.train.checkpoints import MARKER, Checkpoints
from hala_hpc.tasks.train.export.task import Exporting
from hala_hpc.worker.items import Item
from tests.conftest import Hala
from tests.test_flips import flips


@pytest.fixture
def training(tmp_path: Path, write_recipe: Callable[..., Path]) -> Path:
    """The folder of a run, as far as it is looked at, with checkpoints after steps 20 and 100, and half of one."""
    run = tmp_path / "sft"
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    for step in (20, 100, 110):
        folder = run / paths.CHECKPOINTS / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        if step != 110:
            (folder / "complete.json").write_text(json.dumps({"step": step, "world": 2, "stage": 3, "seconds": 1.5}))
    model = {"name": str(tmp_path / "model")}
    recipe = {"name": "sft", "task": {"kind": "train", "datasets": {"mine": {"path": "mine.jsonl"}}}, "model": model}
    (run / "recipe.yaml").write_text(json.dumps(recipe))
    return run


def plan(hala: Hala, training: Path, *words: str, code: int = 0) -> str:
    recipe = hala.folder / "export.yaml"
    recipe.write_text(json.dumps({"name": "export", "task": {"kind": "export"}, "model": {"name": str(training)}}))
    done = hala("plan", recipe, "--create", *words, code=code)
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("word", "names"), [("task.steps=[]", ["step-020", "step-100"]), ("task.steps=[20]", ["step-20"])]
)
def test_every_complete_checkpoint_is_a_model(hala: Hala, training: Path, word: str, names: list[str]) -> None:
    from hala_hpc.run import manifest

    plan(hala, training, word)
    found = manifest.read(hala.folder / "runs" / "export" / "manifest.parquet").facts
    assert [item["name"] for item in found.items] == names


def test_what_is_not_there_is_refused(hala: Hala, training: Path) -> None:
    said = plan(hala, training, "task.steps=[20,30]", code=2)
    assert "sft has no checkpoint after step 30" in said and "those after 20, 100" in said
    assert "is not a run" in plan(hala, training.parent / "model", code=2)
    marker = training / paths.CHECKPOINTS / "checkpoint-100" / "complete.json"
    if os.getuid() == 0:
        os.chown(marker, 12345, -1)
        assert "belongs to another user" in plan(hala, training, code=2)
    for path in (training / paths.CHECKPOINTS).glob("*/complete.json"):
        path.unlink()
    assert "no complete checkpoint yet" in plan(hala, training, code=2)


def test_no_flip_in_a_checkpoint_is_exported(training: Path, tmp_path: Path) -> None:
    saved = Checkpoints(training / paths.CHECKPOINTS, keep=9)
    folder = saved.path(30)
    folder.mkdir()
    for name in ("model.pt", "zero_pp_rank_0_optim.pt", "trainer_state.json"):
        (folder / name).write_bytes(random.Random(name).randbytes(200))
    asked = {"run": str(training), "checkpoint": saved.mark(30, 1, 2, 0.5).marker}
    shard = Shard(0, "export", "r", 0, 0, 1, 0, 1, "")
    item = Item(shard, asked, tmp_path / "exported", tmp_path / "kept", lambda: None, lambda _: None)
    for path in flips(folder, seed=7):
        is_marker = path.name == MARKER
        told = "its checkpoint after step 30 is gone" if is_marker else f"{folder} is damaged: {path.name} "
        with pytest.raises(HalaError, match=told):
            Exporting().do(item)
    assert not item.place.exists()


def test_another_kind_of_run_has_none(hala: Hala, training: Path) -> None:
    (training / "recipe.yaml").write_text(json.dumps({"name": "t", "task": {"kind": "translate"}}))
    assert "a run of kind translate" in plan(hala, training, code=2)
