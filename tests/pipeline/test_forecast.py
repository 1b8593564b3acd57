"""The shipped pipelines, planned from end to end with ten rows a source: what each stage will come to."""

import json
from pathlib import Path
from typing import Any

import pytest

from hala_hpc.config import pipeline as files
from hala_hpc.pipeline import forecast, stages
from hala_hpc.pipeline.forecast import Forecast
from hala_hpc.pipeline.survey import survey
from tests.conftest import ROOT
from tests.tasks.train.estimate.real_models import REAL

ROWS = 10
COLUMNS: dict[str, dict[str, Any]] = {
    "translate-openorca": {"question": "What is it?", "response": "It is a book."},
    "judge-opus100": {"translation": {"en": "A book.", "ar": "كتاب."}},
    "translate-corpus": {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]},
    "translate-scp": {"problem": "What is 2 + 2?", "solution": "It is 4."},
    "translate-realign": {"instruction": "Say it.", "output": "It."},
    "translate-lamini": {"instruction": "Say it.", "response": "It."},
    "translate-tulu": {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]},
    "translate-synthetic-instruct": {"prompt": "Say it.", "chosen": "It."},
    "translate-openorca-light": {"question": "What is it?", "response": "It is a book."},
    "translate-mmlu": {"question": "What is it?", "reference": "ما هو؟"},
}


@pytest.fixture
def local(tmp_path: Path) -> dict[str, Path]:
    """A file of ten rows for each set that a recipe has from the hub, and the form of each model that is trained."""
    paths = {}
    for name, row in COLUMNS.items():
        paths[name] = tmp_path / f"{name}.jsonl"
        rows = [{**row, "id": number} for number in range(ROWS)]
        paths[name].write_text("".join(json.dumps(line) + "\n" for line in rows))
    for name, config in REAL.items():
        folder = tmp_path / "models" / name.replace("/", "--")
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
        paths[name] = folder
    return paths


def forecasts(file: Path, *words: str) -> dict[str, Forecast]:
    whole = stages.compose(files.read(file), "local", words)
    return forecast.forecasts(survey(whole), {})


def data(stage: str, path: Path) -> list[str]:
    return [f"stages.{stage}.data.{key}" for key in ("hub=null", "split=null", "hub_config=null", f"path={path}")]


def test_hala(local: dict[str, Path], tmp_path: Path) -> None:
    words = [f"run.root={tmp_path}/runs"]
    for name in set(COLUMNS) - {"translate-mmlu"}:
        words += data(name, local[name])
    for name in ("bf16", "fp8", "before", "after"):
        words += [f"stages.translate-mmlu-{name}.data.path={local['translate-mmlu']}"]
    bases = {"350m": "LFM2-350M", "700m": "LFM2-700M", "1.2b": "LFM2-1.2B"}
    for size, model in (bases | {"9b": "Fanar-1-9B-Instruct"}).items():
        hub = f"QCRI/{model}" if size == "9b" else f"LiquidAI/{model}"
        words += [f"stages.sft-{size}.model.name={local[hub]}"]
    words += [f"stages.translator-1.2b.model.name={local['LiquidAI/LFM2-1.2B']}"]
    so_far = forecasts(ROOT / "jobs" / "hala" / "hala.yaml", *words)
    assert {name: so_far[name].rows for name in COLUMNS if name in so_far} == dict.fromkeys(
        set(COLUMNS) - {"translate-mmlu"}, ROWS
    )
    assert so_far["mix-translator"].rows == 3 * ROWS, "questions and answers of Open-Orca, and the pairs of OPUS-100"
    assert so_far["mix-instructions"].rows == 7 * ROWS
    trainings = {name: part for name, part in so_far.items() if name.startswith(("sft-", "translator-"))}
    assert len(trainings) == 5
    assert all(part.steps and part.gpu_hours and part.tokens for part in trainings.values())
    assert trainings["sft-9b"].rows == 7 * ROWS


def test_latxa(local: dict[str, Path], tmp_path: Path) -> None:
    llama = local["meta-llama/Llama-3.1-8B"]
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"text": "Euskaraz idatzitako testua."}\n' * ROWS)
    words = [f"run.root={tmp_path}/runs", f"stages.generate-instructions.task.rows={ROWS}"]
    words += [f"stages.pretrain.model.name={llama}"]
    for stage, key in (("pretrain", "task"), ("grid", "grid.axes.corpus.1.task")):
        words += [f"stages.{stage}.{key}.datasets.corpus.{word}" for word in ("hub=null", f"path={corpus}")]
    so_far = forecasts(ROOT / "jobs" / "latxa" / "latxa.yaml", *words)
    for name in ("generate-instructions", "judge-generated", "mix-generated", "translate-instructions"):
        assert so_far[name].rows == ROWS, name
    assert so_far["grid"].steps
