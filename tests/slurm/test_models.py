"""From two models to a report on a real Slurm: quantized, merged over t, evaluated, with workers killed on the way."""

import csv
import json
import math
import os
import signal
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT, SMALL_VLLM, Hala, TinyModel
from tests.minislurm.cluster import Cluster
from tests.report import browser
from tests.report.test_page import DRAWN, MARKS, SIZES
from tests.slurm.looking import alive, finished
from tests.slurm.test_cluster import pid_of, slurm_hala, wait_for
from tests.tasks.merge.merge_pairs import pair, weights_of
from tests.tasks.merge.test_merge import assert_slerp
from tests.work import work_python

pytestmark = [pytest.mark.slurm, pytest.mark.train, pytest.mark.vllm, pytest.mark.timeout(1200)]
__all__ = ["slurm_hala", "work_python"]

SUBJECTS = ("anatomy", "astronomy")
ARABIC_TEXTS = """[...document.querySelectorAll('dd')].filter(each => /^[\u0621-\u064a]/.test(each.textContent.trim()))
    .map(each => getComputedStyle(each).direction)"""
WEIGHTS = [0.0, 0.25, 0.5, 0.75, 1.0]
ENGINE = {
    "kind": "vllm",
    "dtype": "float32",
    "max_model_len": 1024,
    "max_num_seqs": 8,
    "enforce_eager": True,
    "arguments": {"distributed_executor_backend": "uni"},
}


@pytest.fixture
def submit(slurm_hala: Hala, work_python: Path, serve_python: Path) -> Callable[..., str]:
    """Write a recipe and submit it with two workers; the run's name."""

    def start(name: str, workers: int = 2, **sections: Any) -> str:
        environments = {
            "work": {"venv": str(work_python.parents[1])},
            "serve": {"venv": str(serve_python.parents[1]), "variables": SMALL_VLLM},
        }
        slurm = {"cpus_per_worker": 2, "gpus_per_worker": 1, "minutes": 20, "mem_gb": 4}
        site = {"executor": "slurm", "slurm": slurm, "environments": environments, "offline": True}
        run = {"workers": workers, "lease_seconds": 8}
        path = slurm_hala.folder / f"{name}.yaml"
        path.write_text(json.dumps({"name": name, "run": run, "site": site, **sections}))
        slurm_hala.json("submit", path)
        return name

    return start


def kill_one_at_work(hala: Hala, run: str) -> None:
    """Kill -9, as a node that fails would."""

    def busy() -> Any:
        return next((worker for worker in alive(hala, run) if worker.working_on), None)

    victim = wait_for(busy, 200)
    os.kill(pid_of(hala, run, victim.worker), signal.SIGKILL)
    assert not hala.json("status", run)["finished"], "the run was over before it was broken"


def done(hala: Hala, run: str) -> Path:
    """Wait for the run, resuming it where workers ran out, and have it proven."""
    path = hala.folder / "runs" / run

    def idle() -> bool:
        if finished(hala, run)() or alive(hala, run):
            return finished(hala, run)()
        state = hala.json("status", run)
        return bool(state["finished"] or not any(name in ("PENDING", "RUNNING") for name in state["jobs"]))

    wait_for(idle, 400)
    if not finished(hala, run)():
        hala("resume", run)
        wait_for(finished(hala, run), 300)
    hala("verify", run)
    return path


def test_quantized_and_merged(
    submit: Callable[..., str], slurm_hala: Hala, cluster: Cluster, tiny_model: TinyModel, tmp_path: Path
) -> None:
    base, tuned = pair(tiny_model("gemma2"), tmp_path / "models", files=3)
    models = {"gemma2": tuned} | {name: pair(tiny_model(name), tmp_path / name)[0] for name in ("cohere2", "lfm2")}
    for name, model in models.items():
        submit(f"fp8-{name}", workers=1, task={"kind": "quantize"}, model={"name": str(model)})
    merge = {"kind": "merge", "models": {"tuned": {"name": str(tuned)}}, "t": WEIGHTS}
    submit("merge", task=merge, model={"name": str(base)})
    kill_one_at_work(slurm_hala, "merge")
    for name, model in models.items():
        whole = done(slurm_hala, f"fp8-{name}") / "final"
        assert json.loads((whole / "config.json").read_text())["quantization_config"]["quant_method"]
        assert size(whole) < 0.8 * size(model)
    run = done(slurm_hala, "merge")
    before, after = weights_of(base), weights_of(tuned)
    for shard, t in enumerate(WEIGHTS):
        assert_slerp(run / "shards" / "000" / f"{shard:06d}", t, before, after)


def test_evaluated_and_reported(
    submit: Callable[..., str], slurm_hala: Hala, cluster: Cluster, tiny_model: TinyModel, data: Path, tmp_path: Path
) -> None:
    bench = data / "arabic_bench"
    settings = {
        "arabic_mmlu": {"data": str(bench / "arabicmmlu_egypt")},
        "arabic_mmlu_ht": {
            "data": str(bench / "mmlu_arabic"),
            "tasks": [f"arabic_mmlu_ht:{name}" for name in SUBJECTS],
        },
        "mmlu_csv": {"data": str(bench / "mmlu_english"), "task_files": [str(ROOT / "jobs" / "tasks" / "local")]},
    }
    base, tuned = pair(tiny_model("gemma2"), tmp_path / "models")
    task = {
        "kind": "evaluate",
        "models": {"base": {"name": str(base)}, "tuned": {"name": str(tuned)}},
        "benchmarks": list(settings),
        "settings": settings,
        "limit": 8,
    }
    submit("scores", task=task, engine=ENGINE)
    kill_one_at_work(slurm_hala, "scores")
    run = done(slurm_hala, "scores")
    slurm_hala("report", "scores", "--to", tmp_path / "report")
    if browser.PROGRAM is not None:
        assert_shown(tmp_path / "report" / "report.html", tmp_path / "chromium")
    by_hand = averages(run)
    with (tmp_path / "report" / "tables" / "scores.csv").open() as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    assert rows.keys() >= by_hand.keys() == {"base", "tuned"}
    for model, benchmarks in by_hand.items():
        for name, score in benchmarks.items():
            assert math.isclose(float(rows[model][name]), 100 * score, abs_tol=1e-9)
        assert math.isclose(float(rows[model]["average"]), 100 * statistics.mean(benchmarks.values()), abs_tol=1e-9)
    best = slurm_hala.json("best", "scores", "--split", "all", "--with-base")
    assert best["model"] == max(by_hand, key=lambda model: statistics.mean(by_hand[model].values()))


def assert_shown(page: Path, folder: Path) -> None:
    """In a real browser, on a phone and a desktop: no error, every plot drawn, Arabic from right to left."""
    folder.mkdir()
    with browser.chromium(folder) as shown:
        for size in SIZES.values():
            shown.open(page, *size, until=DRAWN)
            assert shown.seen.errors == []
            figures = shown.evaluate(MARKS)
            assert figures and all(figure["marks"] for figure in figures), figures
            assert shown.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
            arabic = shown.evaluate(ARABIC_TEXTS)
            assert arabic and set(arabic) == {"rtl"}


def averages(run: Path) -> dict[str, dict[str, float]]:
    """By model and benchmark, the mean over tasks of the mean over questions; from the samples alone."""
    found: dict[str, dict[str, float]] = {}
    for path in sorted(run.glob("shards/*/*/samples.parquet")):
        by_task: dict[str, list[float]] = {}
        rows = pq.read_table(path).to_pylist()
        for row in rows:
            likely = row["normalised"]
            by_task.setdefault(row["task"], []).append(float(likely.index(max(likely)) in row["gold"]))
        model = json.loads(path.with_name("result.json").read_text())["model"]
        score = statistics.mean(map(statistics.mean, by_task.values()))
        found.setdefault(model, {})[rows[0]["benchmark"]] = score
    assert all(len(benchmarks) == 3 for benchmarks in found.values())
    return found


def size(model: Path) -> int:
    return sum(path.stat().st_size for path in model.glob("*.safetensors"))
