"""How far a training is, from files that look as the ranks write them."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.run import status
from hala_hpc.tasks.train import metrics, paths, progress
from hala_hpc.tasks.train.checkpoints import Checkpoints, complete
from tests.conftest import Hala
from tests.damaged import hala as in_process
from tests.run.helpers import output, planned_run, silent, worker

START = 1_700_000_000.0


def index(run: Path, steps: int) -> None:
    (run / paths.INDEX).mkdir(parents=True)
    (run / paths.INDEX / "report.json").write_text(json.dumps({"steps": steps}))


def launch(run: Path, name: str, steps: range, **more: Any) -> None:
    writer = metrics.Writer(run, name, [], "test")
    for step in steps:
        line = {"loss": 5.0 - step / 100, "seconds": 2.0, "tokens_per_second": 1000.0, "time": START + 3.0 * step}
        writer.write(step=step, **line | more)
        if step % 10 == 0:
            writer.write(step=step, eval_loss=4.0 + step)
    writer.close()


def checkpoint(run: Path, step: int, whole: bool = True, age: float = 100.0) -> None:
    folder = run / paths.CHECKPOINTS / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    if whole:
        (folder / "complete.json").write_text("{}")
        os.utime(folder / "complete.json", (START - age, START - age))


def test_nothing_is_known_before_the_order_is(tmp_path: Path) -> None:
    assert progress.read(tmp_path) is None
    index(tmp_path, 100)
    found = progress.read(tmp_path)
    assert found is not None
    assert (found.step, found.steps, found.loss, found.seconds_left, found.curve) == (0, 100, None, None, "")


def test_step_loss_rate_and_time_left(tmp_path: Path) -> None:
    index(tmp_path, 100)
    launch(tmp_path, "a", range(1, 41))
    checkpoint(tmp_path, 20)
    checkpoint(tmp_path, 30)
    checkpoint(tmp_path, 40, whole=False)
    found = progress.read(tmp_path, START)
    assert found is not None
    assert (found.step, found.loss, found.eval_loss, found.eval_step) == (40, 4.6, 44.0, 40)
    assert found.tokens_per_second == pytest.approx(1000.0)
    assert found.seconds_per_step == pytest.approx(3.0)  # from step to step: what is between them counts
    assert found.seconds_left == pytest.approx(180.0)
    assert (found.checkpoint, found.checkpoint_age) == (30, 100.0)
    assert len(found.curve) == 40 and found.curve[0] == "█" and found.curve[-1] == "▁"


def test_after_a_resume_it_is_back_at_the_checkpoint(tmp_path: Path) -> None:
    index(tmp_path, 100)
    launch(tmp_path, "b", range(1, 41))
    metrics.Writer(tmp_path, "a", [], "test").close()
    started = progress.read(tmp_path)
    assert started is not None
    assert (started.step, started.launches) == (40, 2)  # no step of its own yet
    launch(tmp_path, "0", range(31, 34), loss=0.5)
    found = progress.read(tmp_path)
    assert found is not None
    assert (found.step, found.loss, found.eval_step) == (33, 0.5, 40)
    assert len(found.curve) == 33 and found.curve.endswith("▁▁▁") and found.curve[-4] != "▁"


def test_a_long_training_is_read_quickly(tmp_path: Path) -> None:
    index(tmp_path, 200_000)
    folder = tmp_path / metrics.FOLDER
    folder.mkdir(parents=True)
    more = {"phases": {"data": 0.1, "forward_backward": 1.0, "optimizer": 0.1}, "epoch": 1.0, "memory_gb": 1.0}
    with (folder / "a.jsonl").open("w") as file:
        for step in range(1, 100_001):
            line = {
                "step": step,
                "loss": 9.0 - step / 20_000,
                "seconds": 1.0,
                "time": START + step,
                "launch": 0,
                **more,
            }
            file.write(json.dumps(line) + "\n")
            if step == 90_000:
                file.write(json.dumps({"step": step, "eval_loss": 2.5}) + "\n")
    began = time.perf_counter()
    found = progress.read(tmp_path)
    took = time.perf_counter() - began
    assert found is not None
    assert (found.step, found.eval_loss, found.eval_step) == (100_000, 2.5, 90_000)
    assert len(found.curve) == progress.WIDTH and progress.GAP not in found.curve
    assert list(found.curve) == sorted(found.curve, reverse=True)
    assert took < 0.1, f"{took:.3f} s"  # measured: 0.01 s


def test_a_flat_curve_and_one_with_holes() -> None:
    assert progress.curve([(1, 2.0), (2, 2.0)], 10) == "▁▁"
    assert progress.curve([(1, 0.0), (10, 7.0)], 10) == "▁        █"
    assert progress.curve([], 10) == ""


def test_status_shows_a_training(tmp_path: Path, hala: Hala) -> None:
    run = training_run(tmp_path / "r")
    for name, rows in (("one", [10, 20]), ("two", [5])):
        nested = planned_run(run / "prepare" / name, rows)
        if name == "two":
            output(nested, 0)
    alive = worker_of(run)
    told = hala.json("status", run)
    assert told["training"] is None and told["unit"] == "models"
    assert [(one["run"], one["done"], one["shards"], one["rows_done"]) for one in told["preparation"]] == [
        ("one", 0, 2, 0),
        ("two", 1, 1, 5),
    ]
    assert "prepare one" in hala("status", run).stdout

    index(run, 100)
    launch(run, "a", range(1, 41))
    told = hala.json("status", run)
    assert (told["training"]["step"], told["training"]["steps"], told["preparation"]) == (40, 100, [])
    assert told["seconds_left"] == pytest.approx(180.0)
    shown = hala("status", run).stdout
    assert "40 of 100" in shown and "█" in shown and "3 min 00 s" in shown

    silent(alive)
    (run / paths.FAILURE).write_text(json.dumps({"step": 41, "reason": "the loss is nan"}))
    shown = hala("status", run).stdout
    assert "stopped for good at step 41: the loss is nan" in shown
    assert "nobody works on it" in shown
    assert hala.json("status", run)["seconds_left"] is None
    assert [one["run"] for one in hala.json("runs", "--root", tmp_path)] == ["r"]


def test_status_shows_that_a_damaged_checkpoint_cost_steps(tmp_path: Path) -> None:
    run = training_run(tmp_path / "r")
    index(run, 100)
    launch(run, "a", range(1, 9))
    saved = Checkpoints(run / paths.CHECKPOINTS, keep=3)
    for step in (4, 8):
        saved.path(step).mkdir(parents=True)
        (saved.path(step) / "model.pt").write_bytes(b"whole")
        saved.mark(step, 1, 0, 0.0)
    assert saved.newest_whole(print) == complete(saved.folder)[0]
    assert json.loads(in_process("status", run, "--json")[1])["training"]["fallback"] is None
    (saved.path(8) / "model.pt").write_bytes(b"Whole")
    saved.newest_whole(print)
    told = json.loads(in_process("status", run, "--json")[1])["training"]["fallback"]
    assert (told["step"], list(told["damaged"])) == (4, ["checkpoint-8"])
    (line,) = (line for line in in_process("status", run)[1].splitlines() if "damaged" in line)
    assert " ".join(line.split()).startswith("resumed from checkpoint-4: checkpoint-8 is damaged (model.pt is not")
    (saved.path(4) / "model.pt").unlink()
    with pytest.raises(HalaError, match="every checkpoint is damaged") as refused:
        saved.newest_whole(print)
    (run / paths.FAILURE).write_text(json.dumps({"reason": str(refused.value)}))
    assert "stopped for good: " in in_process("status", run)[1]


def training_run(path: Path) -> Path:
    """A planned run of a training, as far as status looks at it."""
    from hala_hpc.run import manifest
    from hala_hpc.run.layout import RunDirectory
    from hala_hpc.run.manifest import Facts, Shard

    run = RunDirectory(path, "")
    run.create_folders(1)
    manifest.write(run.manifest, [Shard(0, "train", "m", 0, 0, 1, 10, 10, "")], Facts("", 1, 35, 10, 10, unit="models"))
    recipe = {
        "run": {"lease_seconds": 60.0, "attempts": 3},
        "task": {"kind": "train", "datasets": {"one": {}, "two": {}}},
    }
    run.recipe.write_text(json.dumps(recipe))
    return path


def worker_of(run: Path) -> Any:
    from hala_hpc.run.layout import RunDirectory

    leases = worker(RunDirectory(run, ""), "w")
    assert leases.claim(0)
    (run / "ledger" / "w.jsonl").write_text(json.dumps({"event": "started", "time": START, "host": "n1"}) + "\n")
    assert status.read(run, 60.0, 3).running == 1
    return leases
