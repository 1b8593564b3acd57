"""A model beside its quantized self, through real vLLM; models that cannot be compared are refused."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hala_hpc.config.compose import compose
from hala_hpc.config.errors import HalaError
from hala_hpc.data.cut import Cut, PlanWatch
from hala_hpc.run.layout import RunDirectory
from hala_hpc.tasks.compare import measure
from hala_hpc.tasks.compare.measure import TEXTS, tokens_of
from hala_hpc.worker import registry
from tests.conftest import ROOT, SMALL_VLLM, Hala
from tests.data.tokenizer_kinds import byte_level
from tests.numbers import same_log_probabilities
from tests.publish.runs import merged
from tests.tasks.quantize.test_quantized import source as tensors
from tests.tasks.quantize.test_quantized import store
from tests.work import work_python as work_python

ENGINE = """
engine:
  kind: vllm
  dtype: float32
  max_model_len: 1024
  max_num_seqs: 16
  enforce_eager: true
  arguments: {distributed_executor_backend: uni}
"""


@pytest.fixture(scope="module")
def compared(work_python: Path, serve_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison of llama with its FP8 self, whose first file has nothing to quantize."""
    folder = tmp_path_factory.mktemp("compared")
    hala, model = Hala(folder), folder / "llama"
    build = [work_python, ROOT / "jobs" / "demo" / "tiny_model.py", model, "--files", "3", "--dtype", "bfloat16"]
    subprocess.run([*map(str, build)], check=True, capture_output=True)
    (folder / "q.yaml").write_text(f"name: q\ntask: {{kind: quantize}}\nmodel: {{name: {model}}}\n")
    hala("plan", "q.yaml", "--create")
    (folder / "texts.json").write_text(json.dumps(tokens_of(model, TEXTS, 512)))
    script = Path(__file__).with_name("compare_script.py")
    words = [folder / "runs" / "q", model, folder / "texts.json", folder / "expected.json"]
    subprocess.run([work_python, script, *words], check=True, capture_output=True)
    (folder / "c.yaml").write_text(
        f"name: c\ntask: {{kind: compare, models: {{bf16: {{name: {model}}}, fp8: {{name: runs/q}}}},"
        f" throughput: {{prompts: 8, prompt_tokens: 16, output_tokens: 16}}}}\n{ENGINE}"
    )
    (folder / "c.yaml").write_text((folder / "c.yaml").read_text().replace("runs/q", str(folder / "runs" / "q")))
    hala("plan", "c.yaml", "--create")
    env = os.environ | SMALL_VLLM
    done = subprocess.run(
        [serve_python, "-m", "hala_hpc.worker", folder / "runs" / "c"], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


@pytest.mark.train
@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_a_quantized_model_beside_its_source(compared: Path) -> None:
    run = RunDirectory(compared / "runs" / "c", "")
    expected = json.loads((compared / "expected.json").read_text())
    places = [measure.read_logprobs(run.shard_output(shard) / measure.TOKENS) for shard in (0, 1)]
    for name, wanted in expected.items():
        found = [place.log_probability for place in places[0] if place.text == name]
        assert found == same_log_probabilities(wanted), "the base's are transformers' own"
    report = json.loads((run.final / "report.json").read_text())
    fp8 = report["models"]["fp8"]
    mine = np.array([[place.log_probability for place in each] for each in places])
    change = mine[1] - mine[0]
    assert fp8["against_base"]["difference"] == pytest.approx(change.mean(), rel=1e-9)
    assert fp8["against_base"]["absolute_difference"] == pytest.approx(np.abs(change).mean(), rel=1e-9)
    assert 0.001 < np.abs(change).mean() < 2, "quantized, and the same model"
    assert 0.2 < fp8["against_base"]["same_first"] < 1 and fp8["against_base"]["divergence"] > 0
    sizes = [sum(path.stat().st_size for path in folder.glob("*.safetensors")) for folder in models(compared)]
    assert fp8["size_ratio"] == sizes[1] / sizes[0]
    for model in report["models"].values():
        assert model["throughput"]["output_tokens"] == 8 * 16
        speed = model["throughput"]["output_tokens_per_second"]
        assert speed == pytest.approx(128 / model["throughput"]["seconds"], rel=0.01)
    assert "`fp8`" in (run.final / "report.md").read_text()


def models(folder: Path) -> list[Path]:
    return [folder / "llama", folder / "runs" / "q" / "final"]


@pytest.mark.train
@pytest.mark.vllm
def test_it_is_proven_and_what_became_of_it_later_is_seen(compared: Path) -> None:
    hala = Hala(compared)
    hala("verify", "c")
    result = RunDirectory(compared / "runs" / "c", "").shard_output(1) / measure.RESULT
    told = json.loads(result.read_text())
    result.write_text(json.dumps(told | {"weights": "of something else"}))
    assert f"{measure.RESULT} has " in hala("verify", "c", code=1).stderr
    result.write_text(json.dumps(told))


def model(folder: Path, tokenizer: Any) -> Path:
    """Everything that a plan looks at; the weights fit nothing."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    store(folder / "model.safetensors", tensors(2, 8))
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def planned(folder: Path, *words: str) -> Cut:
    (folder / "c.yaml").write_text("name: c\ntask: {kind: compare}\n")
    recipe = compose(folder / "c.yaml", None, words, registry.options_of)
    (folder / "run").mkdir(exist_ok=True)
    return registry.create(recipe).plan(folder / "run", PlanWatch())


def test_a_plan_has_an_item_a_model(tmp_path: Path) -> None:
    tokenizer = byte_level(()).tokenizer
    one = model(tmp_path / "one", tokenizer)
    two = shutil.copytree(one, tmp_path / "two")
    named = (f"task.models.a.name={one}", f"task.models.b.name={two}")
    cut = planned(tmp_path, *named)
    asked = json.loads((tmp_path / "run" / "input" / "texts.json").read_text())
    assert asked.keys() == TEXTS.keys()
    assert asked["python"] == tokenizer(TEXTS["python"], add_special_tokens=False)["input_ids"][:512]
    assert [item["name"] for item in cut.facts.items] == ["a", "b"]
    assert cut.shards[0].tokens == sum(len(ids) - 1 for ids in asked.values())
    assert cut.shards[0].digest == cut.shards[1].digest, "of the same weights and texts"
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": f"Row {n} of some."}) + "\n" for n in range(9)))
    planned(tmp_path, *named, f"data.path={tmp_path / 'rows.jsonl'}", "task.texts=3")
    assert len(json.loads((tmp_path / "run" / "input" / "texts.json").read_text())) == 3

    def refused(*words: str) -> str:
        with pytest.raises(HalaError) as told:
            planned(tmp_path, *words)
        return str(told.value)

    assert "task.models is missing" in refused()
    assert "two or more" in refused(named[0])
    assert "task.base one of them" in refused(*named, "task.base=c")
    assert "does not return log-probabilities" in refused(*named, "engine.kind=echo")
    assert "do not fit a context of 256" in refused(*named, "engine.max_model_len=256")
    assert "task.throughput.prompts is too small" in refused(*named, "task.throughput.prompts=0")
    assert "cannot be a label" in refused(named[0], f"task.models.ب/.name={two}")
    several = merged(tmp_path / "merge", [{"name": "Org/base"}], ("x", "y"))
    assert "two models are called 'a-y'" in refused(f"task.models.a.name={several}", f"task.models.a-y.name={two}")
    tokenizer.add_tokens(["Dear Mr"])
    tokenizer.backend_tokenizer.save(str(two / "tokenizer.json"))
    assert "a and b make different tokens of the same text (english-letter)" in refused(*named)
    (two / "tokenizer.json").unlink()
    assert "no tokenizer.json" in refused(*named)
