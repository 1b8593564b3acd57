"""LightEval through our vLLM model against LightEval's own pipeline with its transformers backend, on real questions.

Both are the real things: the same tasks of LightEval, the same tiny models with random weights, ours in vLLM.
"""

import json
import os
import statistics
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hala_hpc.tasks.evaluate.benchmarks import ARABIC
from tests.conftest import SMALL_VLLM, TinyModel
from tests.numbers import best_of, same_log_probabilities

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

MODELS = ("llama", "gemma2")
"""The first is asked without its chat template, the second with it; both with and without examples."""
ENVIRONMENT = SMALL_VLLM | {
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
}


@pytest.fixture(scope="module")
def seen(
    data: Path, serve_python: Path, tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("lighteval")
    script = Path(__file__).with_name("lighteval_script.py")
    models = [tiny_model(model) for model in MODELS]
    command = list(map(str, [serve_python, script, folder, data / "arabic_bench", *models]))
    environment = os.environ | ENVIRONMENT | {"HF_HOME": str(folder / "hub")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found: dict[str, Any] = json.loads((folder / "seen.json").read_text())
    return found


@pytest.mark.parametrize("model", MODELS)
def test_answers_and_log_probabilities_are_those_of_lighteval(seen: dict[str, Any], model: str) -> None:
    ours, theirs = seen[model]["ours"], seen[model]["theirs"]["samples"]
    assert ours.keys() == theirs.keys() and len(ours) == 20
    assert seen[model]["truncated"] == 0
    clear = 0
    for question, (_, likely, score) in ours.items():
        assert likely == same_log_probabilities(theirs[question][0]), question
        if len(best_of(theirs[question][0])) == 1:  # rounding decides nothing
            clear += 1
            assert score == theirs[question][1], question
    assert clear >= 0.9 * len(ours)
    assert len({answer for answer, _, _ in ours.values()}) > 1, "a model that always answers alike shows nothing"


@pytest.mark.parametrize("model", MODELS)
def test_scores_of_tasks_are_those_of_lighteval(seen: dict[str, Any], model: str) -> None:
    theirs = seen[model]["theirs"]["scores"]
    tasks: dict[str, list[float]] = {}
    for question, (_, _, score) in seen[model]["ours"].items():
        tasks.setdefault(question.rpartition(" ")[0], []).append(score)
    found = {task: statistics.fmean(scores) for task, scores in tasks.items()}
    told = {task: next(score for name, score in theirs.items() if name.startswith(f"{task}:")) for task in tasks}
    assert found == pytest.approx(told, abs=1e-12)


@pytest.mark.parametrize("model", MODELS)
def test_a_stopped_benchmark_is_taken_up_where_it_was(seen: dict[str, Any], model: str) -> None:
    resumed = seen[model]["resumed"]
    assert resumed["first"] > 0 and resumed["second"] > 0
    assert resumed["first"] + resumed["second"] == seen[model]["requests"], "none is asked twice"
    for question, (answer, likely, _) in resumed["samples"].items():
        assert likely == same_log_probabilities(seen[model]["ours"][question][1])
        assert answer in best_of(seen[model]["ours"][question][1])


def test_there_is_one_beginning_of_text(seen: dict[str, Any]) -> None:
    found = seen["two beginnings"]
    assert found["adds"], "the tokenizer of this test adds one by itself"
    for tokens in found["plain"] + found["chat"]:
        assert tokens[0] == found["bos"] and tokens.count(found["bos"]) == 1


def test_texts_of_several_lengths_come_back_in_order(seen: dict[str, Any]) -> None:
    assert seen["two beginnings"]["texts"] == [["a 3 \n"], ["b 256 \n"], ["c 3 \n"]]


def test_the_117_tasks_are_lightevals_own(seen: dict[str, Any]) -> None:
    table = seen["table"]
    counts = {name: len(benchmark.tasks) for name, benchmark in ARABIC.items()}
    assert counts == {
        "alghafa": 9,
        "aratrust": 8,
        "arabic_mmlu": 40,
        "arabic_mmlu_ht": 57,
        "arabic_exams": 1,
        "madinah_qa": 2,
    }
    assert sum(counts.values()) == 117
    for name, benchmark in ARABIC.items():
        theirs = {task for task in table if task.partition(":")[0] == name} - {"arabic_mmlu:All"}
        assert set(benchmark.tasks) == theirs
        for task in benchmark.tasks:
            assert table[task] == [benchmark.hub, task.partition(":")[2] or "default", benchmark.split]
