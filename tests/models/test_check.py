"""A model folder is found whole, or what is wrong with it is told."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hala_hpc.models import folder as model_folder
from hala_hpc.models import safetensors_file
from hala_hpc.run import digests
from hala_hpc.run.collect import collect_folders
from hala_hpc.run.digests import digest_of
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.manifest import Shard
from hala_hpc.tasks.train import paths
from hala_hpc.tasks.train.checkpoints import Checkpoints
from tests.conftest import Hala, TinyModel
from tests.tasks.merge.merge_pairs import store
from tests.tasks.train.rank import trainings
from tests.tasks.train.test_progress import training_run

SHARD = Shard(0, "train", "m", 0, 0, 1, 10, 10, "")
KINDS = {"BF16": "<u2", "F16": "<u2", "F32": "<u4", "I64": "<i8"}


def weights(path: Path, tensors: dict[str, tuple[str, list[int]]], gap: int = 0) -> None:
    """A safetensors file of one-dimensional tensors, by their bits."""
    header, data = {}, b""
    for name, (dtype, bits) in tensors.items():
        raw = np.array(bits, KINDS[dtype]).tobytes()
        header[name] = {
            "dtype": dtype,
            "shape": [len(bits)],
            "data_offsets": [len(data) + gap, len(data) + gap + len(raw)],
        }
        data += raw
    told = json.dumps(header | {"__metadata__": {"format": "pt"}}).encode()
    path.write_bytes(len(told).to_bytes(8, "little") + told + data)


def model(folder: Path) -> Path:
    """A folder as an export leaves it: two weights files with an index."""
    folder.mkdir(parents=True)
    weights(folder / "model-00001-of-00002.safetensors", {"a": ("BF16", [0x3F80, 0x0000, 0x7F7F])})
    weights(folder / "model-00002-of-00002.safetensors", {"b": ("F32", [0x3F800000]), "c": ("I64", [-1, 7])})
    one, two = sorted(path.name for path in folder.iterdir())
    index = {"weight_map": {"a": one, "b": two, "c": two}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in model_folder.NEEDED:
        (folder / name).write_text("{}")
    return record(folder)


def record(folder: Path) -> Path:
    """Write down what is there, as an export does."""
    listed = {
        path.name: {"bytes": path.stat().st_size, "blake2b": digest_of(path)}
        for path in sorted(folder.iterdir())
        if path.name != model_folder.RECORD
    }
    (folder / model_folder.RECORD).write_text(json.dumps({"files": listed}))
    return folder


def test_a_whole_folder_is_sound_whatever_its_card_says(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    (folder / "README.md").write_text("edited by a person")
    report = model_folder.check_model(SHARD, folder)
    assert (report.done, report.problems) == (1, ())


def flip(folder: Path) -> None:
    path = folder / "model-00001-of-00002.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def cut(folder: Path) -> None:
    path = folder / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (flip, "model-00001-of-00002.safetensors is not what was written"),
        (cut, "model-00002-of-00002.safetensors has"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json is not what was written"),
        (lambda folder: (folder / model_folder.RECORD).unlink(), "hala.json cannot be read"),
        (lambda folder: (folder / model_folder.RECORD).write_text('{"fil'), "hala.json cannot be read"),
    ],
)
def test_what_became_of_it_later_is_seen(tmp_path: Path, harm: Callable[[Path], object], told: str) -> None:
    folder = model(tmp_path / "m")
    harm(folder)
    report = model_folder.check_model(SHARD, folder)
    assert report.done == 0
    assert any(told in problem for problem in report.problems), report.problems


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [
        ("BF16", [0x3F80, 0x7FC0]),  # NaN
        ("BF16", [0xFF80]),  # minus infinity
        ("F16", [0x3C00, 0x7C01]),
        ("F32", [0x7F800000]),
    ],
)
def test_numbers_that_are_none_are_found(tmp_path: Path, dtype: str, bits: list[int]) -> None:
    folder = model(tmp_path / "m")
    weights(folder / "model-00001-of-00002.safetensors", {"a": (dtype, bits)})
    assert any("a is not finite" in fault for fault in model_folder.unsound(record(folder)))


def test_large_numbers_are_numbers(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    weights(folder / "model-00001-of-00002.safetensors", {"a": ("BF16", [0x7F7F, 0xFF7F, 0x0001])})
    assert model_folder.unsound(record(folder)) == []


def test_a_file_that_was_broken_when_it_was_written(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    first, second = folder / "model-00001-of-00002.safetensors", folder / "model-00002-of-00002.safetensors"
    weights(first, {"a": ("BF16", [1, 2])}, gap=2)
    assert any("do not hold its shape" in fault for fault in model_folder.unsound(record(folder)))
    first.write_bytes(b"\x00" * 4)
    assert any("no safetensors header" in fault for fault in model_folder.unsound(record(folder)))
    first.write_bytes((9).to_bytes(8, "little") + b"not json!")
    assert any("header is not JSON" in fault for fault in model_folder.unsound(record(folder)))
    shutil.copyfile(second, first)
    faults = model_folder.unsound(record(folder))
    assert any("b is stored twice" in fault for fault in faults)
    assert any("1 tensor of the index stored nowhere, e.g. a" in fault for fault in faults)


def test_a_finished_training_is_proven_and_collected(tmp_path: Path, hala: Hala) -> None:
    run = training_run(tmp_path / "r")
    published = model(RunDirectory(run, "").shard_output(0))
    big = published / "model-00002-of-00002.safetensors"
    collected = collect_folders(run, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        path.name for path in published.iterdir()
    )
    assert collected.files == 7 and model_folder.unsound(tmp_path / "out") == []
    assert collected.linked == 0 and (tmp_path / "out" / big.name).stat().st_ino != big.stat().st_ino
    hala("collect", run, "--to", "again")
    assert model_folder.unsound(tmp_path / "again") == []
    assert "exists" in hala("collect", run, "--to", "again", code=2).stderr


def test_large_files_are_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = training_run(tmp_path / "r")
    published = model(RunDirectory(run, "").shard_output(0))
    monkeypatch.setattr("hala_hpc.run.collect.LINKED", 50)
    collected = collect_folders(run, tmp_path / "out")
    assert collected.linked == sum(path.stat().st_size >= 50 for path in published.iterdir()) > 0
    assert (tmp_path / "out" / model_folder.RECORD).stat().st_ino == (published / model_folder.RECORD).stat().st_ino


def test_nothing_is_collected_before_it_is_trained(tmp_path: Path, hala: Hala) -> None:
    run = training_run(tmp_path / "r")
    assert "1 of 1 shard not finished" in hala("collect", run, "--to", "out", code=2).stderr
    assert "1 of 1 shard not finished" in hala("collect", run, "--to", "out", "--partial", code=2).stderr
    assert not (tmp_path / "out").exists()


def test_verify_proves_the_model_and_the_rows_it_was_made_from(
    tmp_path: Path, hala: Hala, tiny_model: TinyModel
) -> None:
    """A real plan and real tokens; the model is only put there."""
    rows = [{"instruction": f"Say {number}.", "input": "", "output": f"{number}"} for number in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    datasets = {"mine": {"path": str(tmp_path / "rows.jsonl"), "kind": "chat"}}
    run = trainings.plan(hala, tiny_model("llama"), datasets, sequence_length=64, batch={"sequences": 2})
    assert "1 of 1 shard not finished" in hala("verify", run, code=1).stderr
    model(RunDirectory(run, "").shard_output(0))
    said = hala("verify", run).stdout
    assert "mine: 30 rows: 30 done" in said and "proven: every file of the model" in said
    told = hala.json("verify", run)
    assert told["proven"] and told["datasets"]["mine"]["done"] == 30

    saved = Checkpoints(run / paths.CHECKPOINTS, keep=1)
    saved.path(5).mkdir(parents=True)
    saved.mark(5, 1, 0, 0.0)
    (saved.path(5) / digests.NAME).unlink()  # it speaks neither for nor against the model
    told = hala.json("verify", run)
    assert told["proven"] and "checkpoint-5 is damaged: .digests.json is missing" in told["checkpoints"][0]

    next((run / "prepare" / "mine" / "shards").rglob("*.arrow")).unlink()
    assert "NOT proven" in hala("verify", run, code=1).stdout
    shutil.rmtree(run / "prepare")  # tokens may go once the model stands; then nothing is said of them
    assert "mine" not in hala("verify", run).stdout


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_one_read_gives_the_digest_and_finds_what_is_no_number(
    tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safetensors_file, "CHUNK", 16)
    draw = np.random.default_rng(0)
    stored = {"a": draw.normal(size=(7, 3)), "none": np.zeros((0, 2)), "b": draw.normal(size=(5,))}
    store(tmp_path, stored, files=1, dtype=dtype)
    path = tmp_path / "model.safetensors"
    assert safetensors_file.digest_of_finite(path) == digest_of(path)
    store(tmp_path, stored | {"b": np.array([1.0, np.nan, 2.0, 3.0, 4.0])}, files=1, dtype=dtype)
    with pytest.raises(safetensors_file.Unreadable, match=r"NaN or infinity in 1 tensor, e\.g\. b"):
        safetensors_file.digest_of_finite(path)
