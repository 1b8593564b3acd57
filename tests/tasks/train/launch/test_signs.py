"""What a launch's files tell."""

import json
from pathlib import Path

from hala_hpc.tasks.train import checkpoints, metrics, paths
from hala_hpc.tasks.train.launch import signs
from hala_hpc.tasks.train.launch.signs import End
from hala_hpc.tasks.train.options import Watchdog


def test_patience_follows_the_usual_step() -> None:
    watch = Watchdog(stall_factor=10, stall_seconds=120, start_seconds=1800)
    assert signs.patience(watch, [], ["starting"]) == 1800
    assert signs.patience(watch, [2.0, 3.0, 4.0], ["data"]) == 120
    assert signs.patience(watch, [60.0, 30.0, 31.0], ["data"]) == 310
    assert signs.patience(watch, [2.0], ["data", "saving"]) == 1800, "no step ends while one saves"


def test_seconds_of_steps_survive_torn_lines_and_other_lines(tmp_path: Path) -> None:
    assert signs.step_seconds(tmp_path, "one") == []
    writer = metrics.Writer(tmp_path, "one", [], "test")
    for step in range(30):
        writer.write(step=step, loss=1.0, seconds=float(step))
    writer.write(step=30, eval_loss=1.0)
    before = signs.steps_ended(tmp_path, "one")
    with (tmp_path / metrics.FOLDER / "one.jsonl").open("ab") as file:
        file.write(b'{"step": 31, "loss": 1.0, "seco')
    assert signs.step_seconds(tmp_path, "one") == [float(step) for step in range(10, 30)]
    assert signs.steps_ended(tmp_path, "one") > before
    assert signs.steps_ended(tmp_path, "other") == 0


def test_heartbeats_and_ends(tmp_path: Path) -> None:
    folder = signs.folder(tmp_path, "one")
    folder.mkdir(parents=True)
    told = {"rank": 3, "host": "n1", "pid": 7, "step": 5, "phase": "data", "time": 1.5}
    (folder / "3.json").write_text(json.dumps(told))
    (folder / "4.json").write_text('{"rank": 4, "ho')
    assert signs.heartbeats(tmp_path, "one") == {3: signs.RankHeartbeat(**told)}  # type: ignore[arg-type]
    signs.write_end(tmp_path, "one", End(1, -9))
    signs.write_end(tmp_path, "one", End(0, 85))
    assert [(end.rank, end.code) for end in signs.ends(tmp_path, "one", 2)] == [(1, -9), (0, 85)], "in order of time"
    assert signs.heartbeats(tmp_path, "other") == {} and signs.ends_so_far(tmp_path, "other") == []


def test_only_complete_checkpoints_count(tmp_path: Path) -> None:
    assert checkpoints.newest_step(tmp_path / paths.CHECKPOINTS) == -1
    for step, is_complete in ((5, True), (10, True), (15, False)):
        folder = tmp_path / paths.CHECKPOINTS / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        if is_complete:
            (folder / "complete.json").touch()
    assert checkpoints.newest_step(tmp_path / paths.CHECKPOINTS) == 10
