"""Real trainings of a tiny gemma2: packing that leaks nothing, resumes that change nothing."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hala_hpc.models import location
from hala_hpc.tasks.train import paths
from tests.conftest import Hala, TinyModel
from tests.numbers import same_losses
from tests.tasks.train.rank import trainings
from tests.test_flips import assert_no_flip_passes
from tests.work import work_python

pytestmark = [pytest.mark.train, pytest.mark.timeout(600)]
__all__ = ["work_python"]


@pytest.fixture(scope="module")
def chat(data: Path) -> dict[str, Any]:
    return {"path": str(data / "instructions/alpaca_52k"), "kind": "chat", "limit": 24}


@pytest.fixture(scope="module")
def text(data: Path) -> dict[str, Any]:
    return {"path": str(data / "raw_text/c4_demo.jsonl"), "kind": "text", "limit": 6}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where trainings share their prepared data: the first one does it."""
    return str(tmp_path_factory.mktemp("tokens"))


def test_packed_losses_are_those_of_the_documents_alone(
    hala: Hala, work_python: Path, tiny_model: TinyModel, chat: dict[str, Any], text: dict[str, Any], tokens: str
) -> None:
    """Three steps over the same documents, all in one batch: chat and text, packed together or one by one."""
    datasets, losses = {"chat": chat, "text": text}, {}
    common = {"prepared": tokens, "sequence_length": 512, "epochs": 3, "optimizer": {"learning_rate": 1e-4}}
    for name, packing in (("packed", True), ("alone", False)):
        batch = {"sequences": 1, "per_device": 4}
        run = trainings.plan(hala, tiny_model("gemma2"), datasets, name, packing=packing, batch=batch, **common)
        losses[name] = (trainings.one_step_an_epoch(run, 3), trainings.train_whole(work_python, run, 1))
    exported = trainings.export(hala, work_python, run)
    (model,) = location.locate(str(exported)).values()
    assert same_model(model, run / paths.EXPORTED), "from a checkpoint without DeepSpeed"
    assert losses["packed"][0] < 0.6 * losses["alone"][0], "documents did share sequences"
    assert len(losses["packed"][1]) == 3
    assert losses["packed"][1] == same_losses(losses["alone"][1])
    assert_no_flip_passes(exported, model)


def test_a_resume_on_any_number_of_ranks_changes_nothing(
    hala: Hala, work_python: Path, tiny_model: TinyModel, chat: dict[str, Any], tokens: str
) -> None:
    """With ZeRO-2; ``tests/slurm/test_training.py`` has ZeRO-3."""
    run = trainings.plan(
        hala,
        tiny_model("gemma2"),
        {"chat": chat},
        prepared=tokens,
        epochs=4,
        batch={"sequences": 4, "per_device": 2},
        deepspeed={"stage": 2},
        save={"steps": 3, "keep": 9},
        optimizer={"learning_rate": 1e-4},
    )
    whole = trainings.train_whole(work_python, run, 2)
    assert len(whole) >= 6
    for world in (2, 1):
        again = hala.folder / f"on-{world}"
        shutil.copytree(run, again)
        for path in (again / paths.CHECKPOINTS).iterdir():
            if path.name != "checkpoint-3":
                shutil.rmtree(path)
        shutil.rmtree(again / paths.EXPORTED)
        (again / paths.CHECKPOINTS / "checkpoint-4").mkdir()  # a kill left it half-written
        resumed = trainings.train_whole(work_python, again, world, f"on-{world}")
        assert len(resumed) == len(whole) - 3
        assert resumed == (pytest.approx(whole[3:]) if world == 2 else same_losses(whole[3:]))
        assert (again / paths.CHECKPOINTS / "incomplete").exists() is False, "dropped with the next complete one"
    first, second = (trained_weights(hala.folder / name) for name in ("runs/tiny", "on-2"))
    assert first == second, "the same bytes in the exported model"

    exported = trainings.export(hala, work_python, run, steps=[3, len(whole)])
    third, last = location.locate(str(exported)).values()
    assert same_model(last, run / paths.EXPORTED)
    told = json.loads((third / "hala.json").read_text())
    assert (told["checkpoint"], told["training"]["steps"], told["training"]["final_loss"]) == (3, 3, whole[2])
    assert "after step 3" in (third / "README.md").read_text()
    source = run / paths.CHECKPOINTS / "checkpoint-3"
    subprocess.run([work_python, "-c", AS_DEEPSPEED_SAYS, source, third], check=True)


AS_DEEPSPEED_SAYS = """
import sys
from pathlib import Path
import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from safetensors.torch import load_file
checkpoint, model = map(Path, sys.argv[1:])
found = load_file(model / "model.safetensors")
(tag,) = (path.name for path in checkpoint.glob("global_step*"))
expected = get_fp32_state_dict_from_zero_checkpoint(checkpoint, tag)
assert found and found.keys() <= expected.keys()
assert all(torch.equal(tensor, expected[name].bfloat16()) for name, tensor in found.items())
"""
"""Its own conversion, of the weights alone."""


APART = ("hala.json", "README.md", ".digests.json")


def same_model(one: Path, other: Path) -> bool:
    """Whether two model folders are the same but for the record, the card, and what publishing lists."""
    files = [
        {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in APART} for folder in (one, other)
    ]
    return files[0] == files[1]


def test_a_loss_that_leaps_stops_the_training_for_good(
    hala: Hala, work_python: Path, tiny_model: TinyModel, chat: dict[str, Any], tokens: str
) -> None:
    run = trainings.plan(
        hala,
        tiny_model("gemma2"),
        {"chat": chat},
        prepared=tokens,
        epochs=40,
        batch={"sequences": 4, "per_device": 4},
        watch={"loss_leap": 1.001},
        optimizer={"learning_rate": 1e-6},  # the batches differ more than the loss falls
    )
    codes = trainings.wait(trainings.start(work_python, run, 1, "leap"))
    assert codes == [86], (run / "logs" / "leap.0.log").read_text()[-2000:]
    told = json.loads((run / paths.FAILURE).read_text())
    assert told["step"] > 20
    assert "the loss leapt" in told["reason"]
    assert all("alpaca_data-" in row for row in told["rows"])
    assert not (run / paths.EXPORTED).exists()


def trained_weights(run: Path) -> bytes:
    return (run / paths.EXPORTED / "model.safetensors").read_bytes()


def test_ranks_share_each_batch_without_overlap(
    hala: Hala, work_python: Path, tiny_model: TinyModel, chat: dict[str, Any], tokens: str
) -> None:
    """On 1, 2 and 4 ranks, packed or not: every step holds the same tokens to be learned, each once."""
    script = Path(__file__).with_name("batches_script.py")
    runs = [
        trainings.plan(
            hala,
            tiny_model("gemma2"),
            {"chat": chat},
            f"packing-{packing}",
            prepared=tokens,
            batch={"sequences": 8, "per_device": 2},
            packing=packing,
        )
        for packing in (True, False)
    ]
    said = subprocess.run([work_python, script, *runs], check=True, capture_output=True, text=True)
    lines = said.stdout.splitlines()[-len(runs) :]
    assert len(lines) == 2
    for line in lines:
        told = json.loads(line)
        assert told["1"] == told["2"] == told["4"]
        assert len(told["1"]) >= 2, "more than one step was looked at"
