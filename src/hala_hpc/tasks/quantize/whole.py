"""Quantize a model in one go, for schemes and methods that have to see it run: LLM Compressor's ``oneshot``.

It runs in a process of its own, which can be stopped at any time and takes its memory with it.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

LOG: Final = "log.txt"
POLL_SECONDS: Final = 0.5
GRACE_SECONDS: Final = 10.0
TOLD_LINES: Final = 4


def quantize_model(asked: dict[str, Any], target: Path, kept: Path, check_stop: Callable[[], None]) -> dict[str, Any]:
    """Make the folder ``target`` with the quantized weights; returns what belongs into the model's ``config.json``.

    Parameters
    ----------
    asked : source (a model's folder), dtype (torch's name), scheme, ignore, rounding, and calibration: a file with
        lists of token ids in JSON, or None.
    kept : where the log goes.

    Raises RuntimeError with its last words where it fails, and whatever ``check_stop`` raises.
    """
    command = [sys.executable, "-m", __name__, json.dumps(asked), str(target)]
    with (kept / LOG).open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                check_stop()
                time.sleep(POLL_SECONDS)
        finally:
            _end(process)
    if process.returncode != 0:
        last = (kept / LOG).read_text("utf-8", "replace").strip().splitlines()[-TOLD_LINES:]
        raise RuntimeError(f"LLM Compressor ended with {process.returncode}: {' / '.join(last)}")
    found: dict[str, Any] = json.loads((target / "config.json").read_text("utf-8"))["quantization_config"]
    return found


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _end_with(parent: int) -> None:
    """End this process once the worker is gone, also when it was killed: nobody else would."""
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os._exit(1)


def run(asked: dict[str, Any], target: Path) -> None:
    """The whole of it, in the process that does it."""
    import torch
    from llmcompressor import oneshot
    from llmcompressor.modeling.fuse import update_offload_parameter
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(asked["source"], dtype=getattr(torch, asked["dtype"]))
    # LLM Compressor 0.14 turns Gemma's norms (1 + w) into plain ones and back, which rounds w away near 0.
    vectors = {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.ndim < 2}
    modifier = GPTQModifier if asked["rounding"] == "gptq" else QuantizationModifier
    given: dict[str, Any] = {}
    if asked["calibration"] is not None:
        given = _calibration(json.loads(Path(asked["calibration"]).read_text("utf-8")))
        given["tokenizer"] = AutoTokenizer.from_pretrained(asked["source"])
    oneshot(model=model, recipe=modifier(targets="Linear", scheme=asked["scheme"], ignore=asked["ignore"]), **given)
    for name, weight in vectors.items():
        module, _, last = name.rpartition(".")
        update_offload_parameter(model.get_submodule(module), last, weight)
    model.save_pretrained(target, save_compressed=True)


def _calibration(samples: list[list[int]]) -> dict[str, Any]:
    from datasets import Dataset

    rows = {"input_ids": samples, "attention_mask": [[1] * len(ids) for ids in samples]}
    return {
        "dataset": Dataset.from_dict(rows),
        "num_calibration_samples": len(samples),
        "max_seq_length": max(map(len, samples)),
        "shuffle_calibration_samples": False,
    }


if __name__ == "__main__":
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    run(json.loads(sys.argv[1]), Path(sys.argv[2]))
