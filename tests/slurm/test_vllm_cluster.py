"""The main job with real vLLM on a real Slurm: one worker killed, one preempted, and the rows of an unbroken run; texts
that keep their shape; and a tenth of them done again.
"""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from hala_hpc.run.status import WorkerStatus
from tests.conftest import SERVE_PYTHON, SMALL_VLLM, Hala, TinyModel
from tests.minislurm.cluster import Cluster
from tests.slurm.looking import alive, finished
from tests.slurm.test_cluster import nodes_of, pid_of, slurm_hala, wait_for

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
      variables: {json.dumps(SMALL_VLLM)}
""")
    return path


@pytest.mark.timeout(900)
def test_a_broken_run_equals_an_unbroken_one(cluster: Cluster, slurm_hala: Hala, recipe: Path) -> None:
    """Three workers: kill -9 for one, preemption for another, then at most one resume."""
    site = ("site.executor=slurm", "site.slurm.cpus_per_worker=2", "site.slurm.gpus_per_worker=1")
    job = slurm_hala.json("submit", recipe, *site, "site.slurm.minutes=30")["jobs"][0]
    wait_for(lambda: len(alive(slurm_hala, "alpaca")) == 3, 120)
    nodes = nodes_of(cluster, job)
    lonely = next(task for task, node in nodes.items() if list(nodes.values()).count(node) == 1)

    def at_work() -> WorkerStatus | None:
        return next((one for one in alive(slurm_hala, "alpaca") if one.job != lonely and one.rows > 20), None)

    victim = wait_for(at_work, 300)
    cluster.run(
        "sbatch", "-p", "urgent", "-w", nodes[lonely], "--gres=gpu:2", "-t", "1", "-o", "/dev/null", "--wrap", "sleep 1"
    )
    os.kill(pid_of(slurm_hala, "alpaca", victim.worker), 9)
    before = slurm_hala.json("status", "alpaca")
    assert not before["finished"], "the run was over before it was broken"
    wait_for(lambda: finished(slurm_hala, "alpaca")() or not alive(slurm_hala, "alpaca"), 400)
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


def collected(hala: Hala, run: str) -> list[dict[str, Any]]:
    hala("verify", run)
    hala("collect", run)
    rows: list[dict[str, Any]] = pq.read_table(hala.folder / "runs" / run / "final" / "data").to_pylist()
    return rows


MIXED = 500


@pytest.fixture(scope="module")
def mixed(data: Path, recipe: Path) -> Path:
    """Instructions, code, mathematics, and texts that are longer than the model's context."""
    alpaca = json.loads(next(iter(sorted((data / "instructions" / "alpaca_52k").glob("*.json")))).read_text())
    code = json.loads((data / "math_code" / "gpteacher_codegen-instruct.json").read_text())
    gsm8k = [json.loads(line) for line in (data / "math_code" / "gsm8k_train.jsonl").open()]
    wiki = (data / "raw_text" / "wiki_demo.txt").read_text()
    rows = [{"asked": row["instruction"], "answered": row["output"]} for row in alpaca[:300]]
    rows += [{"asked": row["instruction"], "answered": code_of(row)} for row in code[:120]]
    rows += [{"asked": row["question"], "answered": row["answer"]} for row in gsm8k[:76]]
    rows += [{"asked": "Go on.", "answered": wiki[at * 12_000 : (at + 1) * 12_000]} for at in range(4)]
    assert len(rows) == MIXED
    folder = recipe.parent
    (folder / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = recipe.read_text().replace("name: alpaca", "name: mixed")
    text = text.replace("segments: {tokens: 0}", "segments: {tokens: 200, gate: {shape: ask, loops: ask}}")
    text = text.replace(
        f"data: {{path: {data}/instructions/alpaca_52k, limit: {ROWS}}}",
        "data: {path: mixed.jsonl, columns: [asked, answered]}",
    )
    text = text.replace("max_tokens: 24", "max_tokens: 12").replace("workers: 3", "workers: 2")
    text = text.replace("max_num_seqs: 8", "max_num_seqs: 32")  # the ladder asks some thousand times
    (folder / "mixed.yaml").write_text(text)
    return folder / "mixed.yaml"


def code_of(row: dict[str, str]) -> str:
    return f"{row.get('output') or row.get('response')}"


@pytest.mark.timeout(900)
def test_texts_keep_their_shape_and_a_tenth_is_done_again(slurm_hala: Hala, mixed: Path) -> None:
    """The model writes noise, so nearly every segment climbs the whole ladder; a worker is killed in the middle."""
    site = ("site.executor=slurm", "site.slurm.cpus_per_worker=2", "site.slurm.gpus_per_worker=1")
    slurm_hala("submit", mixed, *site, "site.slurm.minutes=30")
    busy = wait_for(lambda: next((one for one in alive(slurm_hala, "mixed") if one.rows > 20), None), 300)
    os.kill(pid_of(slurm_hala, "mixed", busy.worker), 9)
    assert not slurm_hala.json("status", "mixed")["finished"], "the run was over before it was broken"
    wait_for(lambda: finished(slurm_hala, "mixed")() or not alive(slurm_hala, "mixed"), 400)
    if not finished(slurm_hala, "mixed")():
        slurm_hala("resume", "mixed")
        wait_for(finished(slurm_hala, "mixed"), 400)
    rows, state = collected(slurm_hala, "mixed"), slurm_hala.json("status", "mixed")
    assert len(rows) + state["quarantined"] == MIXED and len(rows) > 0.9 * MIXED
    assert all(row["hala_shape"] and row["hala_checks"] for row in rows)
    assert sum(worker["counts"].get("again", 0) for worker in state["workers"]) > 0
    long = max(rows, key=lambda row: len(str(row["answered"])))
    assert long["hala_checks"]["asks"] > 40

    slurm_hala("redo", "mixed", "--where", "hala_row % 10 == 3", "sampling.temperature=0.8", "run.workers=1")
    wait_for(finished(slurm_hala, "mixed-v2"), 400)
    again = collected(slurm_hala, "mixed-v2")
    assert [row for row in again if number_of(row) % 10 != 3] == [row for row in rows if number_of(row) % 10 != 3]
    before, after = ({number_of(row): row for row in each} for each in (rows, again))
    redone = [number for number in before if number % 10 == 3]
    changed = [number for number in redone if before[number] != after.get(number)]
    assert len(redone) > 0.9 * MIXED / 10 and len(changed) > 0.9 * len(redone)


def number_of(row: dict[str, Any]) -> int:
    number: int = row["hala_row"]
    return number
