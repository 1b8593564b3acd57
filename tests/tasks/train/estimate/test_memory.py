"""The estimate of a training's memory, held against what DeepSpeed and torch really hold on tiny models."""

import json
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.tasks.train.estimate import architecture, memory
from hala_hpc.tasks.train.estimate.memory import Memory
from hala_hpc.tasks.train.options import Batch, DeepSpeed, Options
from tests.conftest import ROOT
from tests.tasks.train.estimate.real_models import REAL
from tests.work import work_python as work_python

SCRIPT = Path(__file__).with_name("memory_script.py")
WIDE = {
    "vocab_size": 2000,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 384,
}
LLAMA = WIDE | {"model_type": "llama"}
GEMMA = WIDE | {"model_type": "gemma2", "head_dim": 32}
LFM = WIDE | {"model_type": "lfm2", "full_attn_idxs": [1, 3], "block_auto_adjust_ff_dim": False}
SEQUENCES, LENGTH, WORLD, NEAR = 2, 256, 2, 0.1
TILE_WORDS = 64  # of the fused head, as the script sets it: see there
CASES: list[tuple[dict[str, Any], int, str, bool]] = [
    (LLAMA, 0, "bfloat16", False),
    (LLAMA, 2, "bfloat16", False),
    (GEMMA, 2, "bfloat16", False),
    (GEMMA, 3, "bfloat16", True),
    (LFM, 2, "bfloat16", False),
    (WIDE | {"model_type": "cohere2"}, 3, "bfloat16", False),
    (WIDE | {"model_type": "qwen3", "head_dim": 32}, 0, "bfloat16", True),
    (LLAMA, 3, "float32", False),
]


def attention_of(config: dict[str, Any]) -> str:
    return "eager" if config["model_type"] == "gemma2" else "sdpa"


def asked(config: dict[str, Any], stage: int, precision: str, checkpointing: bool) -> dict[str, Any]:
    """A small bucket: it would hide all else in a tiny model."""
    return {
        "config": config,
        "stage": stage,
        "precision": precision,
        "checkpointing": checkpointing,
        "attention": attention_of(config),
        "sequences": SEQUENCES,
        "length": LENGTH,
        "file": str(ROOT / "hpc" / "deepspeed" / f"zero{stage}.json"),
        "zero": {"reduce_bucket_size": 16384},
    }


def estimated(folder: Path, config: dict[str, Any], stage: int, precision: str, checkpointing: bool) -> Memory:
    zero = {"stage": stage, "reduce_bucket_size": 16384, "overlap_comm": True}
    file = folder / "deepspeed.json"
    file.write_text(json.dumps({"zero_optimization": zero}))
    options = Options(
        sequence_length=LENGTH,
        batch=Batch(sequences=SEQUENCES * WORLD, per_device=SEQUENCES),
        precision=precision,  # type: ignore[arg-type]
        deepspeed=DeepSpeed(stage, str(file)),  # type: ignore[arg-type]
        attention=attention_of(config),
        activation_checkpointing=checkpointing,
    )
    return memory.estimate(architecture.read(config), options, WORLD)


@pytest.fixture(scope="module")
def measured(work_python: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, int]]:
    """All cases in one go, for the libraries take their time to load: on each of two ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("memory")
    common = {"WORLD_SIZE": str(WORLD), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu"}
    command = [work_python, "-P", "-W", "ignore", SCRIPT, json.dumps([asked(*case) for case in CASES])]
    ranks = []
    for rank in range(WORLD):
        env = os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        with (folder / f"{rank}.log").open("w") as log:
            ranks.append(subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT))
    codes = [rank.wait() for rank in ranks]
    said = (folder / "0.log").read_text()
    assert codes == [0] * WORLD, said[-3000:]
    return [json.loads(line[7:]) for line in said.splitlines() if line.startswith("RESULT ")]


@pytest.mark.train
@pytest.mark.timeout(900)
def test_parts_are_what_is_really_held(
    measured: list[dict[str, int]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each part, and with ``peak`` all that comes and goes in a forward and backward pass, buffers included."""
    monkeypatch.setattr(memory, "TILE_WORDS", TILE_WORDS)
    assert len(measured) == len(CASES)
    wrong = []
    for case, found in zip(CASES, measured, strict=True):
        guess = estimated(tmp_path, *case)
        parts = {name: getattr(guess, name) for name in ("parameters", "gradients", "optimizer", "activations")}
        standing = 0 if case[1] else guess.gradients  # DDP's buckets do not come and go
        parts["peak"] = guess.activations + guess.working - standing
        if case[3]:
            del parts["activations"]  # layers are computed anew in the backward pass, so the peak tells, not what stays
        label = f"{case[0]['model_type']} zero{case[1]} {case[2]}{' checkpointing' if case[3] else ''}"
        print(label, {name: f"{value / found[name] - 1:+.1%}" for name, value in parts.items()})
        wrong += [
            f"{label}: {name} {value} estimated, {found[name]} held"
            for name, value in parts.items()
            if abs(value / found[name] - 1) > NEAR
        ]
    assert not wrong, "\n".join(wrong)


def nine_billion() -> architecture.Architecture:
    return architecture.read(REAL["google/gemma-2-9b"])


def test_zero_stages_spread_what_the_paper_says() -> None:
    """ZeRO, table 1: with Adam 16 bytes a weight, of which stage 2 spreads 14 and stage 3 all over the GPUs."""
    model = nine_billion()
    total = model.weights
    batch = Batch(sequences=16)
    for stage, least in ((2, 2 * total + 14 * total / 16), (3, 16 * total / 16)):
        options = Options(sequence_length=512, batch=batch, deepspeed=DeepSpeed(stage=stage))  # type: ignore[arg-type]
        found = memory.estimate(model, options, 16)
        assert found.parameters + found.gradients + found.optimizer == pytest.approx(least, rel=1e-6)


def test_more_gpus_shorter_sequences_and_checkpointing_take_less() -> None:
    model = nine_billion()
    options = Options(
        sequence_length=4096, batch=Batch(sequences=64), deepspeed=DeepSpeed(stage=3), attention="flash_attention_2"
    )
    one, four = (memory.estimate(model, options, world).total for world in (8, 32))
    assert four < one
    options.activation_checkpointing = True
    assert (
        memory.estimate(model, options, 8).activations
        < 0.2 * memory.estimate(model, Options(**{**vars(options), "activation_checkpointing": False}), 8).activations
    )
    options.kernels = ["liger"]
    assert memory.estimate(model, options, 8).total < one


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(HalaError, match="do not divide by 7 GPUs"):
        memory.estimate(nine_billion(), Options(batch=Batch(sequences=64)), 7)


def test_what_fits_leaves_room_for_cuda() -> None:
    found = Memory(10, 10, 10, 10, 50)
    assert found.total == 90
    assert found.fits(100)
    assert not found.fits(99)
