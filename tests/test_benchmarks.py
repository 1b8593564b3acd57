"""The benchmarks run, at a small size. Their bars are held by hand, on a quiet machine: see benchmarks/README.md."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, SMALL_VLLM
from tests.work import work_python

__all__ = ["work_python"]


def bench(name: str, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_startup() -> None:
    assert "hala --help" in bench("startup")


@pytest.mark.usefixtures("data")
def test_plan() -> None:
    assert "20,000 synthetic rows: peak memory" in bench("plan", "--rows", "20000", "--times", "1")


@pytest.mark.usefixtures("data")
def test_text() -> None:
    assert "caught, by the shape: a list item lost" in bench("text", "--rows", "200")


@pytest.mark.usefixtures("data")
def test_judge() -> None:
    assert "rejected: what rules are made for (70)" in bench("judge", "--each", "10")


@pytest.mark.usefixtures("data")
def test_shape() -> None:
    assert "ours: protected spans intact                                    100.000 %" in bench(
        "shape", "--texts", "50"
    )


@pytest.mark.usefixtures("data")
def test_mix() -> None:
    assert "duplicates left out: rensa" in bench("mix", "--rows", "2000")


@pytest.mark.usefixtures("data")
def test_score() -> None:
    assert "the same numbers" in bench("score", "--rows", "100", "--times", "1")


def test_runstate() -> None:
    out = bench("runstate", "--shards", "2000", "--processes", "8", "--workers", "20")
    assert "hala status of 2,000 shards, 20 workers" in out and "listings beyond unfinished folders" in out


def test_tail() -> None:
    assert "end of the run / bound, shards of 45 % of the slowest's time" in bench(
        "tail", "--rows", "200", "--shard-rows", "5"
    )


@pytest.mark.slurm
@pytest.mark.usefixtures("cluster")
def test_submit() -> None:
    out = bench("submit", "--shards", "200", "--workers", "50")
    assert "sbatch calls for 50 workers" in out


@pytest.mark.vllm
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("data")
def test_throughput(serve_python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert serve_python.exists()
    for name, value in SMALL_VLLM.items():
        monkeypatch.setenv(name, value)
    out = bench("throughput", "--rows", "100", "--times", "1", "--eager", "--ladder-rows", "20")
    assert "whole: worker / raw" in out and "ladder: worker / raw" in out


TRAINING = ("--steps", "5", "--times", "1", "--rows", "400", "--hidden", "128", "--length", "256")


@pytest.mark.train
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("data")
def test_the_start_of_a_training(work_python: Path) -> None:
    assert work_python.exists()
    out = bench("train", *TRAINING, "--only", "start")
    assert "padding share" in out and "first step" in out


@pytest.mark.train
@pytest.mark.exhaustive
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("data")
def test_train(work_python: Path) -> None:
    assert work_python.exists()
    out = bench("train", *TRAINING)
    for figure in ("padding share", "first step", "both packed", "TRL not packed", "lost at a kill"):
        assert figure in out


@pytest.mark.train
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("data")
def test_train_shapes(work_python: Path) -> None:
    small = ("--shrink", "--per-device", "2", "--checkpointing", "false", "--steps", "6", "--length", "256")
    where = ("--site", "local-cpu", "--python", str(work_python))
    assert "lfm2-350m: best: per_device 2" in bench("train_shapes", *small, *where, "--shapes", "lfm2-350m")


@pytest.mark.train
@pytest.mark.timeout(900)
def test_models(work_python: Path) -> None:
    assert work_python.exists()
    out = bench("models", "--hidden", "256", "--layers", "4", "--files", "3", "--questions", "0")
    assert "merge by slerp: peak memory" in out
