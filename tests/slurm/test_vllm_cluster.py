"""The main job with real vLLM on a real Slurm: one worker killed, one preempted, and the rows of an unbroken run."""

import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.conftest import SERVE_PYTHON, Hala, TinyModel
from tests.minislurm.cluster import Cluster
from tests.slurm.test_cluster import finished, nodes_of, pid_of, slurm_hala, wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.vllm]
__all__ = ["slurm_hala"]

ROWS = 1200


@pytest.fixture(scope="module")
def recipe(data: Path, tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "alpaca.yaml"
    path.write_text(f"""
name: alpaca
task: {{kind: translate, truncated: keep, segments: {{tokens: 0}}}}
data: {{path: {data}/instructions/alpaca_52k, limit: {ROWS}}}
model: {{name: {tiny_model("gemma2")}}}
engine:
  kind: vllm
  dtype: float32
  max_model_len: 2048
  max_num_seqs: 8
  enforce_eager: true
  arguments: {{distributed_executor_backend: uni}}
sampling: {{max_tokens: 24}}
run: {{workers: 3, shard_tokens: 5000, lease_seconds: 20, flush_seconds: 1}}
site:
  environments:
    serve:
      venv: {SERVE_PYTHON.parents[1]}
      variables: {{VLLM_CPU_KVCACHE_SPACE: "1", VLLM_ENABLE_V1_MULTIPROCESSING: "0"}}
""")
    return path


@pytest.mark.timeout(900)
def test_a_broken_run_equals_an_unbroken_one(cluster: Cluster, slurm_hala: Hala, recipe: Path) -> None:
    """Three workers: kill -9 for one, preemption for another, then at most one resume."""
    site = ("site.executor=slurm", "site.slurm.cpus_per_worker=2", "site.slurm.gpus_per_worker=1")
    job = slurm_hala.json("submit", recipe, *site, "site.slurm.minutes=30")["jobs"][0]
    wait_for(lambda: len(alive(slurm_hala)) == 3, 120)
    nodes = nodes_of(cluster, job)
    lonely = next(task for task, node in nodes.items() if list(nodes.values()).count(node) == 1)

    def at_work() -> dict[str, Any] | None:
        return next((one for one in alive(slurm_hala) if one["job"] != lonely and one["rows"] > 20), None)

    victim = wait_for(at_work, 300)
    cluster.run(
        "sbatch", "-p", "urgent", "-w", nodes[lonely], "--gres=gpu:2", "-t", "1", "-o", "/dev/null", "--wrap", "sleep 1"
    )
    os.kill(pid_of(slurm_hala, "alpaca", victim["worker"]), 9)
    before = slurm_hala.json("status", "alpaca")
    assert not before["finished"], "the run was over before it was broken"
    wait_for(lambda: finished(slurm_hala, "alpaca")() or not alive(slurm_hala), 400)
    if not finished(slurm_hala, "alpaca")():
        slurm_hala("resume", "alpaca")
        wait_for(finished(slurm_hala, "alpaca"), 300)
    broken = collected(slurm_hala, "alpaca")
    states = slurm_hala.json("status", "alpaca")
    assert len(states["workers"]) >= 4, "the preempted worker came back"

    slurm_hala("submit", recipe, *site, "name=whole", "run.workers=1", "run.shard_tokens=40000")
    wait_for(finished(slurm_hala, "whole"), 400)
    assert broken == collected(slurm_hala, "whole")
    assert len(broken) + states["quarantined"] >= ROWS


def alive(hala: Hala) -> list[dict[str, Any]]:
    return [worker for worker in hala.json("status", "alpaca")["workers"] if worker["alive"]]


def collected(hala: Hala, run: str) -> list[dict[str, object]]:
    hala("verify", run)
    hala("collect", run)
    rows: list[dict[str, object]] = pq.read_table(hala.folder / "runs" / run / "final" / "data").to_pylist()
    return rows
