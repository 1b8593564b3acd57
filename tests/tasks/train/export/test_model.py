"""Exported models are whole, load in transformers and in vLLM, and agree with the model in training."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hala_hpc.models import folder as model_folder
from hala_hpc.run import manifest
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.manifest import Facts, Shard
from hala_hpc.tasks.train import metrics, paths
from tests.conftest import SMALL_VLLM, TinyModel
from tests.work import work_python

__all__ = ["work_python"]

pytestmark = [pytest.mark.train, pytest.mark.timeout(900)]
HERE = Path(__file__).parent
RECIPE: dict[str, Any] = {
    "name": "tiny-sft",
    "model": {"name": "/home/somebody/models/base", "revision": None, "tokenizer": None},
    "task": {
        "kind": "train",
        "datasets": {"alpaca": {"kind": "chat", "weight": 0.5, "path": ["/home/somebody/a.json"]}},
    },
    "run": {"root": "/home/somebody/runs"},
    "site": {"name": "here", "slurm": {"account": "secret"}},
}


def finished(path: Path) -> Path:
    """A run directory when its training has just ended, as far as the card looks at it."""
    run = RunDirectory(path, "")
    run.create_folders(1)
    sources = [{"path": "a", "rows": 1200, "bytes": 1, "original": "/home/somebody/a.json", "dataset": "alpaca"}]
    facts = Facts("", 1, 1200, 1, 1, sources, made_by={"recipe_digest": "abc", "git_commit": "def"}, unit="models")
    manifest.write(run.manifest, [Shard(0, "train", "m", 0, 0, 1, 1, 1, "")], facts)
    run.recipe.write_text(json.dumps(RECIPE))
    part = {"rows": 1200, "tokens": 98765, "dropped_rows": 3, "kind": "chat", "weight": 0.5}
    report = {"steps": 20, "padding_share": 0.0123, "truncated_rows": 0, "datasets": {"alpaca": part}}
    (path / paths.INDEX).mkdir(parents=True)
    (path / paths.INDEX / "report.json").write_text(json.dumps(report))
    for launch, steps in (("a", range(1, 13)), ("b", range(11, 21))):
        writer = metrics.Writer(path, launch, [], "tiny-sft")
        for step in steps:
            rates = {"tokens_per_second": 400.0, "tokens_per_second_per_gpu": 100.0, "time": 360.0 * step}
            writer.write(step=step, loss=3.0 - step / 10, seconds=360.0, tokens=1000, useful_tokens=600, **rates)
        writer.close()
    return path


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def architecture(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def folder(
    architecture: str, work_python: Path, tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Where export_script worked: whole/, pieces/, seen.json."""
    folder = tmp_path_factory.mktemp(architecture)
    run = finished(folder / "tiny-sft")
    model = tiny_model(architecture)
    command = [work_python, "-P", HERE / "export_script.py", model, folder / "out", run, folder / "seen.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def seen(folder: Path) -> Any:
    return json.loads((folder / "seen.json").read_text())


def test_a_good_export_passes_its_own_check(seen: Any, architecture: str) -> None:
    good = seen["good"]
    assert 0 < good["difference"] < 0.2  # rounding to bfloat16, of a random model with large logits
    assert good["difference of pieces"] == pytest.approx(good["difference"])
    assert set(good["tensors"].values()) == {"BF16"}
    is_tied = architecture == "gemma2"
    assert ("lm_head.weight" in good["tensors"]) != is_tied
    assert good["config"]["dtype"] == "bfloat16" and good["config"]["use_cache"] is True
    assert good["config"].get("attn_implementation") == ("eager" if is_tied else None)
    assert good["generation"]["eos_token_id"] == [2, 4] and good["template"] and not good["training"]


def test_large_models_come_in_several_files_with_an_index(seen: Any, folder: Path) -> None:
    names = seen["good"]["pieces"]
    assert names[-1] == "model.safetensors.index.json" and len(names) >= 3
    assert model_folder.unsound(folder / "out" / "pieces") == []


def test_weights_may_be_read_by_whoever_may_read_the_rest(folder: Path) -> None:
    whole = folder / "out" / "whole"
    assert (whole / "model.safetensors").stat().st_mode == (whole / "config.json").stat().st_mode


def test_a_wrong_model_is_refused_with_what_is_wrong(seen: Any) -> None:
    bad = seen["bad"]
    assert "log-probabilities differ" in bad["lost"]
    assert "model.layers.0.input_layernorm.weight is not finite" in bad["NaN"]
    assert "1 weight not gathered: model.layers.0.input_layernorm.weight" in bad["missing"]
    assert bad["left behind"] == ""
    assert "the tokenizer has" in bad["tokens"]


def test_the_card_tells_what_made_the_model_and_nobody_s_folders(folder: Path) -> None:
    whole = folder / "out" / "whole"
    card, record = (whole / "README.md").read_text(), json.loads((whole / model_folder.RECORD).read_text())
    assert "# tiny-sft" in card and "somebody" not in card and "secret" not in card
    assert "| alpaca | chat | 0.5 | 1,200 | 3 | 98,765 | `a.json` (1,200) |" in card
    assert "| final loss | 1 |" in card and "| tokens | 20,000 |" in card
    assert "| hours | 2.2 |" in card and "| gpu hours | 8.8 |" in card  # 22 steps were taken, two of them again
    assert "padding share | 0.0123" in card and "- torch 2" in card
    assert record["training"]["launches"] == 2 and record["recipe_digest"] == "abc"
    assert "somebody" not in json.dumps(record)


@pytest.mark.vllm
def test_vllm_agrees_with_the_model_in_training(seen: Any, folder: Path, serve_python: Path) -> None:
    small = SMALL_VLLM | {"VLLM_LOGGING_LEVEL": "WARNING"}
    command = [serve_python, "-P", HERE / "vllm_fingerprint_script.py", folder / "out" / "pieces", folder / "vllm.json"]
    done = subprocess.run(command, env=os.environ | small, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found = json.loads((folder / "vllm.json").read_text())
    apart = [abs(one - other) for one, other in zip(seen["expected"], found, strict=True)]
    ours = seen["good"]["difference"]
    assert sum(apart) / len(apart) == pytest.approx(ours, rel=0.02)  # the same rounding, seen by another engine
