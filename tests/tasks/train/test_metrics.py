"""Metrics of a training over all its launches, and what reaches TensorBoard."""

import json
import os
import resource
import subprocess
from pathlib import Path

import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.tasks.train import metrics
from hala_hpc.tasks.train.estimate import architecture
from tests.work import work_python

__all__ = ["work_python"]


def launch(run: Path, name: str, steps: range, loss: float = 1.0) -> None:
    writer = metrics.Writer(run, name, [], "test")
    for step in steps:
        writer.write(step=step, loss=loss + step, seconds=2.0, tokens=100, time=1000.0 + step)
    writer.close()


def test_a_line_comes_back(tmp_path: Path) -> None:
    writer = metrics.Writer(tmp_path, "a", [], "test")
    writer.write(step=1, loss=2.5, phases={"data": 0.25}, mfu=None)
    writer.write(step=1, eval_loss=3.5, time=5.0)
    writer.close()
    (line,) = metrics.read(tmp_path)
    assert (line["step"], line["loss"], line["eval_loss"], line["phases"]) == (1, 2.5, 3.5, {"data": 0.25})
    assert line["time"] > 1e9  # that of the step, not of its evaluation


def test_later_launches_win_and_what_they_undid_is_gone(tmp_path: Path) -> None:
    launch(tmp_path, "z-first", range(1, 8))
    launch(tmp_path, "a-second", range(4, 6), loss=100.0)
    found = metrics.read(tmp_path)
    assert [line["step"] for line in found] == [1, 2, 3, 4, 5]  # 6 and 7 were never taken: the run is back at 5
    assert [line["loss"] for line in found] == [2.0, 3.0, 4.0, 104.0, 105.0]


def test_the_order_of_launches_outlives_file_times(tmp_path: Path) -> None:
    launch(tmp_path, "b", range(1, 4))
    launch(tmp_path, "a", range(2, 4), loss=50.0)
    os.utime(tmp_path / metrics.FOLDER / "a.jsonl", (1, 1))
    assert [line["loss"] for line in metrics.read(tmp_path)] == [2.0, 52.0, 53.0]


def test_an_evaluation_after_a_resume_keeps_the_step_before_it(tmp_path: Path) -> None:
    launch(tmp_path, "a", range(1, 4))
    writer = metrics.Writer(tmp_path, "b", [], "test")
    writer.write(step=3, eval_loss=9.0)
    writer.close()
    found = metrics.read(tmp_path)
    assert [line["step"] for line in found] == [1, 2, 3]
    assert (found[2]["loss"], found[2]["eval_loss"]) == (4.0, 9.0)


def test_a_launch_that_wrote_nothing_changes_nothing(tmp_path: Path) -> None:
    launch(tmp_path, "a", range(1, 3))
    metrics.Writer(tmp_path, "b", [], "test").close()
    assert len(metrics.read(tmp_path)) == 2


def test_torn_lines_are_passed_over(tmp_path: Path) -> None:
    launch(tmp_path, "a", range(1, 4))
    path = tmp_path / metrics.FOLDER / "a.jsonl"
    path.write_bytes(path.read_bytes()[:-20] + b'\n[1]\n"step"\n{"step": "x"}\n')
    assert [line["step"] for line in metrics.read(tmp_path)] == [1, 2]


def test_what_is_no_number_is_null_so_that_any_json_reader_reads_it(tmp_path: Path) -> None:
    writer = metrics.Writer(tmp_path, "a", [], "test")
    writer.write(step=1, loss=float("nan"), phases={"data": float("inf")})
    writer.close()
    text = (tmp_path / metrics.FOLDER / "a.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert metrics.read(tmp_path)[0]["loss"] is None


def test_a_full_disk_costs_a_line_and_not_the_training(tmp_path: Path) -> None:
    """A limit on the size of files acts it out: the write that crosses it is cut short, the next one fails."""
    writer = metrics.Writer(tmp_path, "a", [], "test")
    writer.write(step=1, loss=1.0)
    path = tmp_path / metrics.FOLDER / "a.jsonl"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, before[1]))
    try:
        writer.write(step=2, loss=2.0)  # ten bytes of it
        writer.write(step=3, loss=3.0)  # nothing
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    writer.write(step=4, loss=4.0)
    writer.close()
    assert [line["step"] for line in metrics.read(tmp_path)] == [1, 4]


def test_an_unknown_reporter_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(HalaError, match="did you mean 'wandb'"):
        metrics.check(["wanbd"])
    with pytest.raises(HalaError, match="tensorboard is missing"):  # torch is not in the core environment
        metrics.Writer(tmp_path, "a", ["tensorboard"], "test")


@pytest.mark.train
def test_tensorboard_shows_the_later_launch(tmp_path: Path, work_python: Path) -> None:
    code = f"""
from pathlib import Path
from hala_hpc.tasks.train import metrics
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
for number, steps in enumerate((range(1, 6), range(4, 8))):
    writer = metrics.Writer(Path({str(tmp_path)!r}), str(number), ["tensorboard"], "test")
    for step in steps:
        writer.write(step=step, loss=100.0 * number + step, phases={{"data": 0.5}})
    writer.write(step=step, eval_loss=7.0)
    writer.close()
events = EventAccumulator({str(tmp_path / "tensorboard")!r})
events.Reload()
print([(event.step, event.value) for event in events.Scalars("train/loss")])
print(sorted(events.Tags()["scalars"]), [event.value for event in events.Scalars("eval/loss")])
"""
    out = subprocess.run([work_python, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    expected = [(1, 1.0), (2, 2.0), (3, 3.0), (4, 104.0), (5, 105.0), (6, 106.0), (7, 107.0)]
    assert json.loads(out[-2].replace("(", "[").replace(")", "]")) == [list(point) for point in expected]
    assert out[-1].startswith("['eval/loss', 'phases/data', 'train/loss']")


@pytest.mark.train
def test_charts_that_cannot_be_written_cost_the_charts_only(tmp_path: Path, work_python: Path) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    code = f"""
from pathlib import Path
from hala_hpc.tasks.train import metrics
writer = metrics.Writer(Path({str(tmp_path)!r}), "a", ["tensorboard"], "test")
for step in (1, 2):
    writer.write(step=step, loss=1.0)
writer.close()
"""
    done = subprocess.run([work_python, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.count("no more tensorboard: ") == 1
    assert [line["step"] for line in metrics.read(tmp_path)] == [1, 2]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA L40S", 362.05e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("cpu", None),
    ],
)
def test_peaks_by_the_names_that_drivers_give(name: str, expected: float | None) -> None:
    assert architecture.peak_flops(name) == expected


def test_flops_are_those_that_palm_counts() -> None:
    """PaLM 540B, appendix B and table 3: 46.2 % MFU at 238,300 tokens/s on 6,144 TPU v4 of 275 TFLOP/s."""
    per_token = architecture.flops_per_token(540_350_000_000, 118, 48 * 256, 2048)
    assert 238_300 * per_token / (6144 * 275e12) == pytest.approx(0.462, abs=0.003)
    assert architecture.mfu(1000.0, 989.4e9, "NVIDIA H200", 2) == pytest.approx(0.5)
    assert architecture.mfu(1000.0, 989.4e9, "cpu", 2) is None
