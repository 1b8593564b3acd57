"""Merges by mergekit as a run: planned, worked on by real workers, killed, and held against numpy's slerp."""

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from hala_hpc.config.compose import compose, thaw
from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Model, Recipe
from hala_hpc.models import location
from hala_hpc.pipeline.planning import plan_run
from hala_hpc.run import manifest
from hala_hpc.run.manifest import Shard
from hala_hpc.tasks.merge import inputs
from hala_hpc.tasks.merge import inputs as merge_inputs
from hala_hpc.tasks.merge.merging import check_merge
from hala_hpc.tasks.merge.task import MergedModel, Merging, Options
from hala_hpc.worker import registry
from hala_hpc.worker.items import Item
from tests.conftest import ARCHITECTURES, Hala, TinyModel
from tests.tasks.merge.merge_pairs import Numbers, bfloat16, configure, cosine, off, pair, store, weights_of
from tests.tasks.merge.test_parts import model, tensors
from tests.test_flips import assert_no_flip_passes
from tests.work import work_python

__all__ = ["work_python"]

SCRIPT = Path(__file__).with_name("merge_script.py")
WEIGHTS = [0.0, 0.25, 0.5, 0.75, 1.0]


def write(folder: Path, name: str, where: Path, **task: Any) -> Path:
    """The recipe of a merge of base/ and tuned/ in ``where``."""
    options = {"kind": "merge", "models": {"tuned": {"name": str(where / "tuned")}}} | task
    recipe = {"name": name, "task": options, "model": {"name": str(where / "base")}, "run": {"lease_seconds": 5}}
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(recipe))
    return path


def plan(folder: Path, name: str, where: Path, **task: Any) -> Path:
    """A planned merge, as `hala plan --create` makes it."""
    recipe = compose(write(folder, name, where, **task), None, [], registry.options_of)
    return plan_run(recipe, registry.create(recipe), folder / "runs" / name).path


def published(run: Path) -> list[Path]:
    return sorted((run / "shards" / "000").iterdir())


def assert_slerp(merged: Path, t: float, base: dict[str, Numbers], tuned: dict[str, Numbers]) -> None:
    found = weights_of(merged)
    assert found.keys() == base.keys()
    for name, numbers in found.items():
        assert off(numbers, t, base[name], tuned[name]) <= 1.0, (name, t)
        if t in (0.0, 1.0):
            assert np.array_equal(numbers, (tuned if t else base)[name]), (name, t)


@pytest.fixture(scope="module")
def pairs(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each architecture with a pair of tiny models, base/ and tuned/."""
    folder = tmp_path_factory.mktemp("pairs")
    for name in ARCHITECTURES:
        pair(tiny_model(name), folder / name)
    return folder


def odd_pair(gemma: Path, folder: Path) -> Path:
    """A base in float32, whose tied head its trainer stored once more; a template of the tuned model's own."""
    shutil.copytree(gemma, folder)
    weights = weights_of(folder / "base")
    store(folder / "base", weights | {"lm_head.weight": weights["model.embed_tokens.weight"]}, dtype="F32")
    configure(folder / "base", dtype="float32", _name_or_path="/home/somebody/base")
    (folder / "tuned" / "chat_template.jinja").write_text("{{- bos_token -}}tuned's own")
    return folder


def padded_pair(llama: Path, folder: Path) -> None:
    """A tuned model with one more token, and rows of embeddings and head up to a multiple of eight."""
    shutil.copytree(llama, folder)
    tuned = weights_of(folder / "tuned")
    rows, width = tuned["model.embed_tokens.weight"].shape
    draw = np.random.default_rng(0)
    wide = {
        name: np.concatenate([numbers, draw.normal(size=(8, width))])
        for name, numbers in tuned.items()
        if "embed_tokens" in name or "lm_head" in name
    }
    store(folder / "tuned", tuned | wide, files=1)
    configure(folder / "tuned", vocab_size=rows + 8)
    tokenizer = Tokenizer.from_file(str(folder / "tuned" / "tokenizer.json"))
    assert tokenizer.get_vocab_size() <= rows
    tokenizer.add_special_tokens(["<|extra|>"])
    tokenizer.save(str(folder / "tuned" / "tokenizer.json"))


def strange_pair(gemma: Path, folder: Path) -> list[str]:
    """Two models with a tensor that the architecture does not have."""
    shutil.copytree(gemma, folder)
    for name in ("base", "tuned"):
        store(folder / name, weights_of(folder / name) | {"model.layers.0.mystery": np.ones(4)})
    return [str(folder / "base"), str(folder / "tuned")]


def plain_pairs(folder: Path) -> dict[str, list[str]]:
    """Two models for each type of weights of the first; the other is in bfloat16 and in three files."""
    zeros = {"zeros": np.zeros((3, 3)), "empty": np.zeros((0, 2))}
    for dtype in ("BF16", "F16", "F32"):
        for label, seed in (("one", 0), ("two", 1)):
            model(folder / dtype / label)
            kept = {"dtype": dtype} if label == "one" else {"files": 3}
            store(folder / dtype / label, tensors(seed) | zeros, **kept)
    return {path.name: [str(path / label) for label in ("one", "two")] for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def worked(pairs: Path, work_python: Path) -> Path:
    """Where merge_script worked: its runs, out/ with what it saw. One process, for its imports take long."""
    odd, half = odd_pair(pairs / "gemma2", pairs / "odd"), pairs / "half"
    runs = [plan(pairs, name, pairs / name, t=WEIGHTS) for name in ARCHITECTURES[1:]]
    padded_pair(pairs / "llama", pairs / "padded")
    padded = {"t": [0.3], "vocabulary": "shared"}
    runs += [plan(pairs, f"padded-{one}", pairs / "padded", files_from=one, **padded) for one in ("base", "tuned")]
    runs.append(plan(pairs, "odd", odd, files_from="tuned"))
    shutil.copytree(pairs / "llama" / "tuned", half)
    store(half, {name: numbers * 0.5 for name, numbers in weights_of(pairs / "llama" / "base").items()}, dtype="F32")
    (pairs / "out").mkdir()
    asked = {
        "runs": list(map(str, runs)),
        "methods": [str(pairs / "llama" / "base"), str(pairs / "llama" / "tuned"), str(half)],
        "strange": strange_pair(pairs / "gemma2", pairs / "strange"),
        "cosines": plain_pairs(pairs / "plain"),
        "cut": str(pairs / "plain" / "BF16" / "two"),
        "load": str(pairs / "runs" / "odd" / "shards" / "000" / "000000"),
        "out": str(pairs / "out"),
    }
    (pairs / "asked.json").write_text(json.dumps(asked))
    words = [work_python, "-P", SCRIPT, pairs / "asked.json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return pairs


@pytest.mark.train
@pytest.mark.parametrize("architecture", ARCHITECTURES[1:])
def test_merges_over_t_are_slerp_tensor_by_tensor(worked: Path, architecture: str) -> None:
    base, tuned = (weights_of(worked / architecture / label) for label in ("base", "tuned"))
    run = worked / "runs" / architecture
    found = location.locate(str(run))
    assert list(found) == ["t0.00", "t0.25", "t0.50", "t0.75", "t1.00"]
    for t, folder in zip(WEIGHTS, found.values(), strict=True):
        assert_slerp(folder, t, base, tuned)
        report = json.loads((folder / "report.json").read_text())
        assert report["cell"] == {"model": "tuned", "t": t}
        for line in report["tensors"]:
            alike = cosine(base[line["name"]], tuned[line["name"]])
            assert line["cosine"]["tuned"] == pytest.approx(alike, abs=1e-9)
            assert (line.get("note") == "lerp") == (abs(alike) > 0.9995)
            assert line["parameters"] == {"t": t}
        assert report["summary"]["lerp"] > 0 < report["summary"]["slerp"]
        assert check_merge(manifest.read(run / "manifest.parquet")[0], folder).problems == ()
    assert {path.name for path in published(run)[0].iterdir()} >= {"generation_config.json", "chat_template.jinja"}


def test_a_merge_whose_weights_cannot_be_read_is_a_finding_and_no_error(tmp_path: Path) -> None:
    """Of a run from before folders had lists of digests: else those are looked at first."""
    (tmp_path / "report.json").write_text('{"tensors": []}')
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    problems = check_merge(Shard(0, "merge", "m", 0, 0, 1, 0, 1, ""), tmp_path).problems
    assert any("no safetensors header" in problem for problem in problems)


@pytest.mark.train
@pytest.mark.parametrize("donor", ["base", "tuned"])
def test_of_vocabularies_that_begin_alike_the_shared_rows_are_merged(worked: Path, donor: str) -> None:
    base, tuned = (weights_of(worked / "padded" / label) for label in ("base", "tuned"))
    (folder,) = location.locate(str(worked / "runs" / f"padded-{donor}")).values()
    found = weights_of(folder)
    own = (base if donor == "base" else tuned)["model.embed_tokens.weight"]
    shared = Tokenizer.from_file(str(worked / "padded" / "base" / "tokenizer.json")).get_vocab_size()
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == len(own)
    for name, numbers in found.items():
        rows = shared if "embed_tokens" in name or "lm_head" in name else len(numbers)
        assert off(numbers[:rows], 0.3, base[name][:rows], tuned[name][:rows]) <= 1.0, name
        if rows == shared:
            assert np.array_equal(numbers[rows:], (base if donor == "base" else tuned)[name][rows:]), name
    own_rows = len(own) - shared
    assert f"{shared:,} rows are merged; {own_rows:,} more are those of {donor}" in (folder / "README.md").read_text()


@pytest.mark.train
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_cosines_are_those_of_the_long_vectors(worked: Path, dtype: str) -> None:
    found = json.loads((worked / "out" / "seen.json").read_text())["cosines"][dtype]
    one, two = (weights_of(worked / "plain" / dtype / label) for label in ("one", "two"))
    for name in tensors(0):
        assert found["apart"][name] == pytest.approx(cosine(one[name], two[name]), abs=1e-12)
        assert found["same"][name] == pytest.approx(1.0, abs=1e-12)
    assert found["apart"]["zeros"] is None and found["apart"]["empty"] is None


@pytest.mark.train
def test_a_model_cut_to_shared_rows_is_a_model_of_its_own(worked: Path) -> None:
    whole = merge_inputs.read("tuned", worked / "plain" / "BF16" / "two")
    cut = merge_inputs.read("tuned", worked / "out" / "cut")
    assert cut.config["vocab_size"] == 10 and cut.tensors.keys() == whole.tensors.keys()
    for name, tensor in cut.tensors.items():
        other = whole.tensors[name]
        assert tensor.shape == ((10, *other.shape[1:]) if inputs.has_rows(name) else other.shape)
        stored = tensor.path.read_bytes()[tensor.begin : tensor.end]
        assert stored == other.path.read_bytes()[other.begin :][: tensor.size]


@pytest.mark.train
def test_every_method_of_mergekit(worked: Path) -> None:
    base, tuned = (weights_of(worked / "llama" / label) for label in ("base", "tuned"))
    seen = json.loads((worked / "out" / "seen.json").read_text())
    assert seen["ours"] == seen["theirs"]
    assert len(seen["ours"]) == 20
    for name, merged in seen["tensors"].items():
        found = weights_of(worked / "out" / name)
        assert sorted(merged) == sorted(found) == sorted(base), name
        assert all(np.isfinite(numbers).all() for numbers in found.values()), name
    for name, numbers in weights_of(worked / "out" / "linear").items():
        mean = bfloat16((base[name] + tuned[name] + base[name] * 0.5) / 3)
        assert np.allclose(numbers, mean, rtol=2**-8, atol=1e-6), name
    for name, numbers in weights_of(worked / "out" / "task_arithmetic").items():
        expected = base[name] + 0.5 * (tuned[name] - base[name]) + 0.5 * (base[name] * 0.5 - base[name])
        assert np.allclose(numbers, expected, rtol=2**-8, atol=1e-6), name
    for same, numbers in (("passthrough", base), ("dare_linear", weights_of(worked / "out" / "again"))):  # drawn alike
        assert all(np.array_equal(found, numbers[name]) for name, found in weights_of(worked / "out" / same).items())


@pytest.mark.train
def test_a_tensor_that_mergekit_would_lose_is_told(worked: Path) -> None:
    seen = json.loads((worked / "out" / "seen.json").read_text())
    assert "mergekit does not know 1 tensor of this architecture, e.g. model.layers.0.mystery" in seen["strange"]


@pytest.mark.train
def test_the_merged_model_loads_and_tells_what_it_is(worked: Path, hala: Hala) -> None:
    run = worked / "runs" / "odd"
    (merged,) = location.locate(str(run)).values()
    assert json.loads((worked / "out" / "seen.json").read_text())["loaded"]["faults"] == []
    found, full, tuned = (weights_of(folder) for folder in (merged, worked / "odd" / "base", worked / "odd" / "tuned"))
    assert found.keys() == full.keys() - {"lm_head.weight"}  # it is tied, so that it is there once
    assert all(off(numbers, 0.5, full[name], tuned[name]) <= 1.0 for name, numbers in found.items())
    config = json.loads((merged / "config.json").read_text())
    assert config["dtype"] == "bfloat16" and "somebody" not in json.dumps(config)
    assert (merged / "chat_template.jinja").read_text() == "{{- bos_token -}}tuned's own"
    record, card = json.loads((merged / "hala.json").read_text()), (merged / "README.md").read_text()
    assert record["parameters"] == sum(numbers.size for numbers in found.values())
    assert record["merge"]["models"]["tuned"]["digest"] == location.digest(worked / "odd" / "tuned")
    assert "# odd-t0.50" in card and "chat template and generation settings of tuned" in card
    assert "| merged by slerp, by lerp |" in card and "- mergekit 0." in card
    assert str(worked) not in card + json.dumps(record) + (merged / "report.json").read_text()
    assert "proven" in hala("verify", run).stdout
    (merged / "report.json").write_text("{}")
    said = hala("verify", run, code=1)
    assert "NOT proven" in said.stdout and "report.json has 2 bytes" in said.stderr


@pytest.mark.train
def test_no_flip_in_a_merged_model_passes(worked: Path) -> None:
    run = worked / "runs" / "padded-base"
    assert_no_flip_passes(run, published(run)[0])


def worker(python: Path, run: Path) -> "subprocess.Popen[bytes]":
    with (run / "logs" / "worker.log").open("ab") as log:
        return subprocess.Popen([python, "-m", "hala_hpc.worker", run], stdout=log, stderr=log)


@pytest.mark.train
def test_a_killed_worker_costs_one_merge(pairs: Path, tmp_path: Path, work_python: Path) -> None:
    """Attention and MLP apart, with a gradient over the layers; a grid large enough to be killed in its middle."""
    filters = {"apart": [{"filter": "self_attn", "value": [0.2, 0.6]}, {"filter": "mlp", "value": 0.9}]}
    weights = [number / 20 for number in range(21)]
    run = plan(tmp_path, "m", pairs / "llama", t=weights, filters=filters)
    log = run / "logs" / "worker.log"
    first = worker(work_python, run)
    while not published(run):
        time.sleep(0.002)
        assert first.poll() is None, log.read_text()[-3000:]
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in published(run)}
    assert 0 < len(kept) < 42
    assert worker(work_python, run).wait() == 0, log.read_text()[-3000:]
    assert {path.name: path.stat().st_mtime_ns for path in published(run)}.items() >= kept.items()
    assert len(published(run)) == 42 and not list(run.glob("partial/*/*.tmp*"))
    base, tuned = (weights_of(pairs / "llama" / label) for label in ("base", "tuned"))
    for shard in (0, 7, 20):
        assert_slerp(published(run)[shard], weights[shard], base, tuned)
    for name, numbers in weights_of(published(run)[21 + 10]).items():
        layer = 0.2 if ".0." in name else 0.6
        t = layer if "self_attn" in name else 0.9 if "mlp" in name else 0.5
        assert off(numbers, t, base[name], tuned[name]) <= 1.0, name


def recipe(**options: Any) -> Recipe:
    options = {"models": {"a": MergedModel("/models/a")}} | options
    return Recipe(name="m", task=Options(**options), engine=None, model=Model("/models/base"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"method": "slurp"}, "did you mean 'slerp'"),
        ({"parameters": {"weigth": 1}}, "task.parameters: no parameter 'weigth'"),
        ({"method": "ties", "parameters": {"weigth": 1}}, "did you mean 'weight'"),
        ({"method": "ties"}, "task.parameters.weight: ties needs it"),
        ({"method": "ties", "t": [0.5], "parameters": {"weight": 1}}, "task.t: ties has no t"),
        ({"method": "karcher", "base_parameters": {"weight": 1}}, "task.base_parameters: no parameter 'weight'"),
        ({"parameters": {"t": 0.5}}, "t is not among the other parameters"),
        ({"base_as_model": True}, "the base of slerp is required"),
        ({"models": {"base": MergedModel("/x")}}, "'base' is what model.name is called"),
        ({"models": {"../a": MergedModel("/x")}}, "cannot be a label"),
        ({"models": {"a": MergedModel()}}, "task.models.a.name: no model"),
        ({"t": [0.5, 0.5]}, "two merges would be called"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_at_once(options: dict[str, Any], told: str) -> None:
    with pytest.raises(HalaError) as refused:
        registry.create(recipe(**options))
    assert told in str(refused.value)


def test_planning_needs_no_torch(tmp_path: Path) -> None:
    """Cells over two models; all models in one merge; a model that is given twice, quantized, or changed later."""
    for number, label in enumerate(("base", "tuned", "other")):
        model(tmp_path / label, number)
    two = {label: {"name": str(tmp_path / label)} for label in ("tuned", "other")}
    run = plan(tmp_path, "m", tmp_path, models=two, t=[0.25, 0.5])
    made = manifest.read(run / "manifest.parquet")
    items = made.facts.items
    assert [item["name"] for item in items] == ["tuned-t0.25", "tuned-t0.50", "other-t0.25", "other-t0.50"]
    assert items[2]["config"]["models"] == [{"model": "base"}, {"model": "other"}]
    assert items[2]["models"]["other"]["digest"] == location.digest(tmp_path / "other")
    assert made.facts.unit == "merges" and len(set(made.column("digest"))) == 4
    assert thaw(run / "recipe.yaml", registry.options_of).task.models["other"].name == str(tmp_path / "other")

    together = plan(tmp_path, "linear", tmp_path, method="linear", parameters={"weight": 0.5}, models=two)
    (item,) = manifest.read(together / "manifest.parquet").facts.items
    assert item["name"] == "linear" and list(item["models"]) == ["base", "tuned", "other"]
    assert "base_model" not in item["config"] and item["config"]["dtype"] == "float32"

    with pytest.raises(HalaError, match="is given twice"):
        plan(tmp_path, "twice", tmp_path, models=two | {"again": {"name": str(tmp_path / "tuned")}})
    configure(tmp_path / "other", quantization_config={"quant_method": "fp8"})
    with pytest.raises(HalaError, match=r"other: .*is quantized"):
        plan(tmp_path, "quantized", tmp_path, models=two)
    assert not (tmp_path / "runs" / "quantized").exists()

    place = run / "place"
    asked = Item(made[2], items[2], place, place, lambda: None, lambda _: None)
    with pytest.raises(HalaError, match="changed since the run was planned"):
        Merging(run).do(asked)
    assert not place.exists()
