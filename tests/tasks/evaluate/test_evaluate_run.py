"""Two models, two benchmarks, real vLLM, one worker after the other: the first is killed in the middle of a shard."""

import itertools
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hala_hpc.run import ledger, manifest
from hala_hpc.tasks.evaluate import results
from tests.conftest import SMALL_VLLM, Hala, TinyModel

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

VARIABLES = SMALL_VLLM | {
    "VLLM_LOGGING_LEVEL": "WARNING",
}
TASKS = {
    "arabic_mmlu": ["Accounting (University)", "Biology (High School)"],
    "arabic_mmlu_ht": ["anatomy", "astronomy"],
}


@pytest.fixture(scope="module")
def run(
    data: Path, serve_python: Path, tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("evaluate")
    bench = data / "arabic_bench"
    folders = {"arabic_mmlu": bench / "arabicmmlu_egypt", "arabic_mmlu_ht": bench / "mmlu_arabic"}
    recipe = {
        "name": "e",
        "task": {
            "kind": "evaluate",
            "models": {model: {"name": str(tiny_model(model))} for model in ("llama", "gemma2")},
            "benchmarks": list(TASKS),
            "settings": {
                name: {"data": str(folders[name]), "tasks": [f"{name}:{subset}" for subset in subsets]}
                for name, subsets in TASKS.items()
            },
            "limit": 40,
        },
        "engine": {
            "kind": "vllm",
            "dtype": "float32",
            "max_model_len": 1024,
            "max_num_seqs": 4,
            "enforce_eager": True,
            "arguments": {"distributed_executor_backend": "uni"},
        },
        "run": {"lease_seconds": 3, "flush_seconds": 0.05},  # the kill comes in the middle, however quick the machine
    }
    (folder / "e.yaml").write_text(json.dumps(recipe))
    Hala(folder)("plan", "e.yaml", "--create")
    path = folder / "runs" / "e"
    first = worker(serve_python, path)
    try:
        wait_for_answers(path, first)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert not list((path / "shards" / "000").iterdir()), "nothing was finished when the worker was killed"
    second = worker(serve_python, path)
    assert second.wait(timeout=600) == 0, (path.parent / "worker.log").read_text()[-4000:]
    yield path


def worker(python: Path, run: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | VARIABLES | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(run.parent / "hub")}
    with (run.parent / "worker.log").open("ab") as log:
        return subprocess.Popen([python, "-m", "hala_hpc.worker", run], env=environment, stdout=log, stderr=log)


def wait_for_answers(run: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while not any(file.stat().st_size for file in (run / "partial" / "000").glob("*.kept/*.jsonl")):
        assert time.monotonic() < deadline and process.poll() is None, (run.parent / "worker.log").read_text()[-4000:]
        time.sleep(0.05)


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    found = [event for file in (run / "ledger").glob("*.jsonl") for event in ledger.read(file)]
    return sorted((event for event in found if event["event"] == kind), key=lambda event: float(event["time"]))


def test_every_score_is_what_its_samples_say(run: Path) -> None:
    assert Hala(run.parents[1]).json("verify", "e")["proven"]
    found = {(result.model, result.benchmark): result for result in results.read(run)}
    assert len(found) == 4
    for (_, name), result in found.items():
        rows = results.samples(result.folder).to_pylist()
        assert {row["task"] for row in rows} == {f"{name}:{subset}" for subset in TASKS[name]}
        by_hand = []
        for subset in TASKS[name]:
            asked = [row for row in rows if row["task"] == f"{name}:{subset}"]
            assert len(asked) == 40 and len({row["index"] for row in asked}) == 40
            right = [row["normalised"].index(max(row["normalised"])) in row["gold"] for row in asked]
            assert result.tasks[f"{name}:{subset}"].score == pytest.approx(sum(right) / 40)
            by_hand.append(sum(right) / 40)
        assert result.score == pytest.approx(sum(by_hand) / 2)


def test_what_the_killed_worker_had_answered_is_not_asked_again(run: Path) -> None:
    remembered = [event["remembered"] for event in events(run, "published")]
    assert len(remembered) == 4
    assert sum(count > 0 for count in remembered) == 1
    begun = events(run, "claimed")
    assert len(list((run / "ledger").glob("*.jsonl"))) == 2
    assert [event["shard"] for event in begun].count(begun[0]["shard"]) == 2


def test_a_worker_keeps_its_engine_while_the_model_is_the_same(run: Path) -> None:
    """In whatever order the shards came: the killed worker's is free only when its lease is stale."""
    items = manifest.read(run / "manifest.parquet").facts.items
    for file in (run / "ledger").glob("*.jsonl"):
        told = list(ledger.read(file))
        starts = sum(event.get("doing") == "starting the engine" for event in told)
        models = [items[event["shard"]]["model"] for event in told if event["event"] == "claimed"]
        assert starts == len(list(itertools.groupby(models))), "one start each time that the model is another"
        assert len(models) == 1 or starts < len(models), "models are worked off together"


def test_models_are_told_apart_by_their_weights(run: Path) -> None:
    found = results.read(run)
    assert len({result.weights for result in found}) == 2
    assert len({json.dumps([result.model, result.weights]) for result in found}) == 2
