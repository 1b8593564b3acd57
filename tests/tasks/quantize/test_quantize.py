"""A model quantized file by file, killed and resumed, is what LLM Compressor makes of it at once; bad input is told."""

import json
import math
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hala_hpc.config.compose import compose
from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Recipe
from hala_hpc.data.cut import Cut, PlanWatch
from hala_hpc.models import folder as model_folder
from hala_hpc.models import location
from hala_hpc.models.safetensors_file import Tensor
from hala_hpc.pipeline import planning
from hala_hpc.run import manifest
from hala_hpc.tasks.quantize import schemes as quant_schemes
from hala_hpc.tasks.quantize import task as quantize
from hala_hpc.worker import registry
from tests.conftest import ROOT, Hala
from tests.tasks.quantize.oracle import quantized as oracle
from tests.tasks.quantize.oracle.numbers import Weights, numbers
from tests.test_flips import assert_no_flip_passes, flips, proven
from tests.work import work_python as work_python

FP8 = "FP8_DYNAMIC"
CHOSEN = [
    ["llama", "8", FP8, "W4A16_ASYM", "NVFP4A16"],
    ["gemma2", "3", FP8],
    ["cohere2", "3", FP8],
    ["lfm2", "3", FP8],
]
EQUAL = [(architecture, scheme) for architecture, _, *schemes in CHOSEN for scheme in schemes]
KILLED = f"llama-{FP8}"
CALIBRATED = {"fp8": ("scheme=FP8",), "gptq": ("scheme=W4A16", "rounding=gptq")}
"""Runs that load the model, all of gemma2: by name, their options."""


@dataclass(frozen=True)
class Quantized:
    """Everything that the work environment made for this module."""

    hala: Hala
    folder: Path
    finished_before: int

    def run(self, name: str) -> Path:
        return self.hala.folder / "runs" / name

    def final(self, name: str) -> Path:
        return self.run(name) / "final"


@pytest.fixture(scope="module")
def quantized(work_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    """Two processes of the work environment besides the killed one: importing takes longer than tiny models."""
    folder = tmp_path_factory.mktemp("quantized")
    script, chosen = Path(__file__).with_name("quant_script.py"), json.dumps(CHOSEN)
    subprocess.run([work_python, script, "build", folder, chosen], check=True, capture_output=True)
    texts = ROOT / "jobs" / "demo" / "instructions.jsonl"
    calibration = [f"calibration.path={texts}", "calibration.samples=8", "calibration.length=64"]
    runs = [
        made(folder, f"{architecture}-{scheme}", folder / architecture, f"scheme={scheme}")
        for architecture, scheme in EQUAL
    ]
    runs += [made(folder, name, folder / "gemma2", *words, *calibration) for name, words in CALIBRATED.items()]
    changed = shutil.copytree(folder / "gemma2", folder / "changed")
    runs.append(made(folder, "changed", changed, "scheme=W8A8"))
    file = max(changed.glob("*.safetensors"))
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 0x40]))
    before = killed(work_python, folder / "runs" / KILLED)
    done = subprocess.run([work_python, script, "work", folder, chosen, *runs], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return Quantized(Hala(folder), folder, before)


def made(folder: Path, name: str, source: Path, *words: str) -> Path:
    """A planned run."""
    recipe = asked(folder, source, f"name={name}", "run.lease_seconds=2", *(f"task.{word}" for word in words))
    return planning.plan_run(recipe, registry.create(recipe), folder / "runs" / name).path


def killed(python: Path, run: Path) -> int:
    """A worker that dies after its first file; returns how many files were finished then."""
    worker = subprocess.Popen(
        [python, "-m", "hala_hpc.worker", run], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    shards = run / "shards" / "000"
    deadline = time.monotonic() + 200
    while not any(shards.iterdir()) and worker.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    return len(list(shards.iterdir()))


@pytest.mark.train
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("architecture", "scheme"), EQUAL)
def test_every_tensor_is_that_of_the_whole_model(quantized: Quantized, architecture: str, scheme: str) -> None:
    """Gemma's norms excepted: there ``oneshot`` computes (1 + w) - 1 in bfloat16, and here they are the source's."""
    ours = Weights(*location.weights(quantized.final(f"{architecture}-{scheme}")))
    theirs = Weights(*location.weights(quantized.folder / f"oneshot-{architecture}-{scheme}"))
    assert ours.found.keys() == theirs.found.keys()
    other = {name for name in ours.found if not ours.is_same(name, theirs)}
    if architecture == "gemma2":
        source = Weights(*location.weights(quantized.folder / architecture))
        assert other and all("norm" in name and ours.is_same(name, source) for name in other)
        for name in other:
            weight, rounded = (numbers(each.raw(name), "BF16") for each in (source, theirs))
            assert np.array_equal(bfloat16(bfloat16(1 + weight) - 1), rounded)
    else:
        assert not other


def bfloat16(values: Any) -> Any:
    """Rounded to the nearest, ties to even."""
    bits = values.astype("f4").view("u4").astype("u8")
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype("u4").view("f4").astype("f8")


@pytest.mark.train
@pytest.mark.parametrize("name", [*(f"{architecture}-{scheme}" for architecture, scheme in EQUAL), *CALIBRATED])
def test_every_number_is_the_nearest_that_its_scheme_has(quantized: Quantized, name: str) -> None:
    """By an oracle of numpy alone; GPTQ's numbers may be others, its errors are not larger than they say."""
    run = quantized.run(name)
    facts = manifest.read(run / "manifest.parquet").facts
    source = Path(manifest.read(run / "manifest.parquet")[0].source)
    told = json.loads((run / "final" / "report.json").read_text())
    names, ignore = list(Weights(*location.weights(source)).found), facts.items[0]["ignore"]
    what = (names, quant_schemes.find(told["scheme"]), ignore, told["rounding"] == "nearest")
    reports = oracle.compare(location.weights(source), location.weights(run / "final"), *what)
    assert oracle.faults(reports) == []
    errors = {line["name"]: line["error"] for line in told["tensors"] if "error" in line}
    assert errors == pytest.approx({each.name: each.error for each in reports if each.error is not None}, rel=0.02)


@pytest.mark.train
def test_it_was_killed_half_way(quantized: Quantized) -> None:
    shards = len(list((quantized.run(KILLED) / "shards" / "000").iterdir()))
    assert 0 < quantized.finished_before < shards
    ledgers = (quantized.run(KILLED) / "ledger").iterdir()
    lines = [json.loads(line) for path in ledgers for line in path.read_text().splitlines()]
    published = [line["shard"] for line in lines if line["event"] == "published"]
    assert len(set(published)) == len(published) >= shards - 1, "one may have been killed before it told"


@pytest.mark.train
def test_the_model_is_whole_and_proven(quantized: Quantized) -> None:
    final = quantized.final(f"gemma2-{FP8}")
    source = quantized.folder / "gemma2"
    assert model_folder.unsound(final) == []
    quantized.hala("verify", f"gemma2-{FP8}")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (final / name).read_bytes() == (source / name).read_bytes()
    config, before = (json.loads((folder / "config.json").read_text()) for folder in (final, source))
    made = config.pop("quantization_config")
    assert config == before
    assert (made["format"], made["quant_method"]) == ("float-quantized", "compressed-tensors")
    report = json.loads((final / "report.json").read_text())
    sizes = [sum(path.stat().st_size for path in location.weights(folder)) for folder in (final, source)]
    assert report["bytes"] == sizes[0] < sizes[1]
    assert report["quantized"] == 4 * 7 and 0.02 < report["mean_error"] < 0.03
    assert len(report["tensors"]) == len(Weights(*location.weights(source)).found)
    assert "quantized by LLM Compressor: FP8_DYNAMIC" in (final / "README.md").read_text()


@pytest.mark.train
@pytest.mark.parametrize("name", CALIBRATED)
def test_a_model_that_is_loaded_whole_is_proven_too(quantized: Quantized, name: str) -> None:
    quantized.hala("verify", name)
    final = quantized.final(name)
    assert model_folder.unsound(final) == []
    stored = Weights(*location.weights(final))
    scales = [part for part in stored.found if part.endswith("input_scale")]
    assert len(scales) == (28 if name == "fp8" else 0)
    source = Weights(*location.weights(quantized.folder / "gemma2"))
    norms = [part for part in source.found if "norm" in part]
    assert norms and all(stored.is_same(part, source) for part in norms)


@pytest.mark.train
def test_what_became_of_it_later_is_seen(quantized: Quantized, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "again"
    shutil.copytree(quantized.run(f"cohere2-{FP8}"), run)
    hala = Hala(tmp_path)
    hala("verify", "again")
    file = max((run / "shards" / "000" / "000001").glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    (run / "final" / "config.json").write_text("{}")
    told = hala("verify", "again", code=1).stderr
    assert f"{file.name} is not what was written" in told
    assert "final: config.json has 2 bytes" in told


@pytest.mark.train
def test_no_flip_in_the_model_or_a_part_of_it_passes(quantized: Quantized, tmp_path: Path) -> None:
    run = tmp_path / "again"
    shutil.copytree(quantized.run(f"cohere2-{FP8}"), run, copy_function=shutil.copyfile)
    assert_no_flip_passes(run, run / "final")
    for path in flips(run / "shards" / "000" / "000001", seed=2):
        assert [problem.split(":")[0] for problem in proven(run)] == ["shard 1"], path


@pytest.mark.train
def test_the_schemes_are_the_librarys(quantized: Quantized) -> None:
    """All but those whose weights stay, or are not looked at by this project (integers of few bits for activations)."""
    tables = json.loads((quantized.folder / "tables.json").read_text())
    for name, scheme in quant_schemes.SCHEMES.items():
        theirs = tables["schemes"][name]
        assert {key: getattr(scheme, key) for key in theirs} == theirs, name
    missing = tables["schemes"].keys() - quant_schemes.SCHEMES.keys()
    assert missing == {"UNQUANTIZED", "W2A4", "W2A8", "W3A4", "W3A8", "W4A4", "W4A8", "W5A8", "W6A8", "W7A8"}
    for name, (pattern, partners) in zip(("q_proj", "wq_a", "gate_proj", "w1"), tables["fused"], strict=True):
        assert name in pattern
        place = "model.layers.3.mlp" if name == "gate_proj" else "model.layers.3.self_attn"
        made = [each.format(prefix="model.layers.3", attn="self_attn", mlp="mlp") for each in partners]
        made = [each.replace("model.layers.3.w3", f"{place}.w3") for each in made]
        assert quant_schemes.partners(f"{place}.{name}.weight", quant_schemes.find("NVFP4A16")) == made


def model(folder: Path, shape: tuple[int, ...] = (2, 128), **config: Any) -> Path:
    """A folder with one weight of ones, as small as can be."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text("{}")
    size = 2 * math.prod(shape)
    header = {"model.up_proj.weight": {"dtype": "BF16", "shape": shape, "data_offsets": [0, size]}}
    told = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(told).to_bytes(8, "little") + told + b"\x80\x3f" * (size // 2))
    return folder


def asked(folder: Path, source: Path | str, *words: str) -> Recipe:
    (folder / "q.yaml").write_text("name: q\ntask: {kind: quantize}\n")
    named = [f"model.name={source}"] if source else []
    return compose(folder / "q.yaml", None, [*named, *words], registry.options_of)


def planned(tmp_path: Path, source: Path | str, *words: str) -> Cut:
    return registry.create(asked(tmp_path, source, *words)).plan(tmp_path, PlanWatch())


def test_what_cannot_be_is_told_at_once(tmp_path: Path) -> None:
    source = model(tmp_path / "m")

    def refused(*words: str, source: Path | str = source) -> str:
        with pytest.raises(HalaError) as told:
            planned(tmp_path, source, *words)
        return str(told.value)

    assert "nothing to quantize" in refused(source="")
    assert "no scheme 'FP9'" in refused("task.scheme=FP9")
    assert "FP8 needs texts" in refused("task.scheme=FP8")
    assert "has to see the model run" in refused("task.scheme=NVFP4", "task.method=files")
    assert "has to see the model run" in refused("task.rounding=gptq", "task.method=files")
    assert "needs no texts" in refused("task.calibration.path=x.jsonl")
    assert "leaves nothing to quantize" in refused('task.ignore=["re:.*"]')
    assert "cannot be cut into groups of 128" in refused("task.scheme=W4A16", source=model(tmp_path / "odd", (1, 96)))
    assert "is not a matrix" in refused(source=model(tmp_path / "flat", (96,)))
    again = model(tmp_path / "again", quantization_config={"format": "dense"})
    assert "is quantized already" in refused(source=again)
    weights = source / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-2] + b"\x80\x7f")  # an infinity in bfloat16
    assert f"{weights}: NaN or infinity in 1 tensor, e.g. model.up_proj.weight" in refused()
    weights.write_bytes(whole[:-5])
    assert f"{weights}: " in refused() and "download the model again" in refused()
    weights.unlink()
    assert "only models in safetensors files" in refused()
    weights.write_bytes(whole)
    (source / "tokenizer.json").rename(source / "tokenizer.model")
    assert "has no tokenizer.json (make it: AutoTokenizer" in refused()


def test_a_plan_has_an_item_a_file_and_knows_its_contents(tmp_path: Path) -> None:
    source = model(tmp_path / "m")
    cut = planned(tmp_path, source)
    assert (cut.facts.unit, cut.facts.rows, cut.facts.tokens) == ("files", 1, 512)
    assert cut.facts.items[0]["tensors"] == ["model.up_proj.weight"]
    assert "lm_head" in " ".join(cut.facts.items[0]["ignore"])
    data = bytearray((source / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (source / "model.safetensors").write_bytes(data)
    assert planned(tmp_path, source).shards[0].digest != cut.shards[0].digest


def test_weights_that_share_a_scale_go_into_one_file() -> None:
    """In NVFP4, q, k and v do, whichever files they are in."""
    files = {Path("a"): ["q_proj", "o_proj"], Path("b"): ["k_proj", "v_proj"], Path("c"): ["other"]}
    stored = [
        Tensor(f"model.layers.0.self_attn.{name}.weight", "BF16", (16, 16), 0, 512, path)
        for path, names in files.items()
        for name in names
    ]
    groups = quantize.by_file(stored, quant_schemes.find("NVFP4A16"))
    items = [item.entry for item in quantize.plan_items(groups, Path(), [], dict.fromkeys(files, ""))]
    short = [[name.split(".")[-2] for name in item["tensors"]] for item in items]
    assert short == [["q_proj", "o_proj", "k_proj", "v_proj"], ["other"]]
    assert [item["files"] for item in items] == [["a", "b"], ["c"]]
    assert len(quantize.by_file(stored, quant_schemes.find(FP8))) == 3


@pytest.mark.train
def test_a_source_that_changed_is_not_quantized(quantized: Quantized) -> None:
    """PlannedItem on one set of weights, done on another: what changed is not published, and so no model is."""
    run = quantized.run("changed")
    lines = [json.loads(line) for path in (run / "ledger").iterdir() for line in path.read_text().splitlines()]
    failed = [line for line in lines if line["event"] == "failed"]
    assert len(failed) == 1 and "changed since the run was planned" in failed[0]["error"]
    files = len(location.weights(quantized.folder / "changed"))
    assert len(list((run / "shards" / "000").iterdir())) == files - 1
    assert not (run / "final").exists()
