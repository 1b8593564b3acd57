"""A trained model becomes a folder that others load: consolidated, in bfloat16, and loaded once more before it counts.

Rank 0 calls ``save`` with the gathered weights; every rank takes the ``fingerprint`` of the model in training;
``check`` loads the folder and compares, in a process of its own, because in the training's DeepSpeed may cut every
model that is loaded into pieces. A checkpoint has no model in training to compare with.
"""

import contextlib
import copy
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypedDict

import numpy as np

from hala_hpc.config.errors import HalaError, plural
from hala_hpc.config.imports import heavy_imports
from hala_hpc.models.folder import finish_model, unsound, write_index
from hala_hpc.models.safetensors_file import tensors_of
from hala_hpc.run import files
from hala_hpc.tasks.train import card

SHARD_BYTES: Final = 5 * 10**9
"""The most that one file of weights holds (a tensor larger than this has a file of its own)."""
PROMPT: Final = (
    "The capital of Jordan is Amman, and 12 times 12 is 144.\n"
    "عاصمة الأردن هي عمّان، وحاصل ضرب ١٢ في ١٢ هو ١٤٤.\n"
    "Jordaniako hiriburua Amman da.\ndef square(x): return x ** 2\n"
)
"""The text of the fingerprint: the project's languages, digits and code, for many rows of the vocabulary."""
STOP_SECONDS: Final = 5.0
"""How often a caller may ask to stop while the model loads."""
PROMPT_TOKENS: Final = 96
NOISE_FACTOR: Final = 3.0
NOISE_FLOOR: Final = 0.005
"""Mean nats per token by which the loaded model may differ: so many times what computing it in bfloat16 instead of
float32 changes, and never less than the floor (both ours). The noise is the model's own, 0.001 to 0.3 on tiny random
ones, where one lost tensor costs ten times as much."""


class Examined(TypedDict):
    """A loaded model: the ``faults`` found in loading it, and its fingerprint by the type it is computed in."""

    faults: list[str]
    float32: list[float]
    bfloat16: list[float]


def prompt_ids(tokenizer: Any) -> list[int]:
    """The tokens of the fixed prompt, with BOS where the tokenizer has one."""
    ids: list[int] = tokenizer(PROMPT, add_special_tokens=False)["input_ids"][:PROMPT_TOKENS]
    return ids if tokenizer.bos_token_id is None else [tokenizer.bos_token_id, *ids]


def fingerprint(model: Any, tokenizer: Any) -> list[float]:
    """Log-probability (nats) of each token of a fixed prompt after the first. Every rank must call it (ZeRO-3)."""
    import torch

    tokens = torch.tensor([prompt_ids(tokenizer)], device=next(model.parameters()).device)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits
    finally:
        model.train(was_training)
    log_probabilities = logits[0, :-1].float().log_softmax(-1)
    of_prompt: list[float] = log_probabilities.gather(1, tokens[0, 1:, None])[:, 0].tolist()
    return of_prompt


def save(model: Any, state: dict[str, Any], tokenizer: Any, folder: Path, provenance: Mapping[str, Any]) -> None:
    """Write ``folder``, whole or not at all; an existing one is replaced.

    Parameters
    ----------
    model : has the configuration and says which weights are tied; its own weights are not used.
    state : all weights by the model's names, of any type and on any device. It is emptied on the way, to save memory.
    provenance : what made the model (``card.provenance``).

    Raises
    ------
    HalaError : weights are missing, or do not fit the configuration or the tokenizer.
    """
    weights = _publishable(model, state)
    _refuse_misfits(model, weights, tokenizer)
    files.remove_tree(folder)
    with files.whole_directory(folder) as target:
        _write_config(model, target)
        _write_weights(weights, target)
        tokenizer.save_pretrained(target)
        parameters = sum(tensor.numel() for tensor in weights.values())
        finish_model(target, {**provenance, "parameters": parameters}, card.render)


def check(folder: Path, expected: list[float] | None, check_stop: Callable[[], None] = lambda: None) -> float:
    """Load the folder anew and compare it with ``expected``, the fingerprint of the model in training (None: unknown).

    The mean difference that is allowed goes by the model's own rounding noise. Returns the mean difference, in nats.
    Raises HalaError that names each fault: files that are not whole, weights that are not finite or that the model does
    not know, tied weights stored twice, and a fingerprint too far off or not finite.
    """
    faults = unsound(folder)
    difference = math.nan
    if not faults:
        loaded = _reloaded(folder, check_stop)
        exact = loaded["float32"]
        expected = exact if expected is None else expected
        tolerance = max(NOISE_FLOOR, NOISE_FACTOR * _mean_difference(exact, loaded["bfloat16"]))
        faults = list(loaded["faults"])
        difference = _mean_difference(expected, exact)
        if not difference <= tolerance:  # also where it is not a number
            faults.append(_far_off(expected, exact, difference, tolerance))
    if faults:
        raise HalaError(f"{folder}: the exported model is not the trained one: {'; '.join(faults[:8])}")
    return difference


def examine(folder: Path) -> Examined:
    """Load a model folder as anybody would."""
    with heavy_imports():
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    faults = [
        f"{what.replace('_', ' ')}: {', '.join(sorted(map(str, names))[:4])}" for what, names in info.items() if names
    ]
    stored = {tensor.name for path in folder.glob("*.safetensors") for tensor in tensors_of(path)}
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    faults += [
        f"{name} is tied to {source}, yet both are stored" for name, source in tied.items() if {name, source} <= stored
    ]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    exact = fingerprint(model, tokenizer)
    return {"faults": faults, "float32": exact, "bfloat16": fingerprint(model.to(torch.bfloat16), tokenizer)}


def _publishable(model: Any, state: dict[str, Any]) -> Mapping[str, Any]:
    """Weights as they are published: tied ones once, in bfloat16, by the names of the model's own checkpoint format."""
    import torch
    from transformers.core_model_loading import revert_weight_conversion

    tied = getattr(model, "all_tied_weights_keys", None) or {}
    for name, source in tied.items():
        if name in state:
            state.setdefault(source, state.pop(name))
    if missing := {name for name, _ in model.named_parameters()} - state.keys() - tied.keys():
        raise HalaError(f"export: {plural(len(missing), 'weight')} not gathered: {', '.join(sorted(missing)[:4])}")
    weights = {}
    for name in list(state):
        tensor = state.pop(name)
        weights[name] = tensor.to("cpu", torch.bfloat16 if tensor.is_floating_point() else tensor.dtype).contiguous()
    reverted: Mapping[str, Any] = revert_weight_conversion(model, weights)
    return reverted


def _refuse_misfits(model: Any, weights: Mapping[str, Any], tokenizer: Any) -> None:
    vocabulary = getattr(model.config.get_text_config(), "vocab_size", None)
    rows = next((len(tensor) for name, tensor in weights.items() if name.endswith("embed_tokens.weight")), vocabulary)
    if rows != vocabulary:
        raise HalaError(f"export: {rows} embeddings, but config.vocab_size is {vocabulary}")
    if vocabulary is not None and len(tokenizer) > vocabulary:
        raise HalaError(f"export: the tokenizer has {len(tokenizer)} tokens, the model {vocabulary}")


def _write_weights(weights: Mapping[str, Any], folder: Path) -> None:
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    split = split_torch_state_dict_into_shards(dict(weights), max_shard_size=SHARD_BYTES)
    for name, tensors in split.filename_to_tensors.items():
        save_file({tensor: weights[tensor] for tensor in tensors}, folder / name, metadata={"format": "pt"})
        (folder / name).chmod((folder / "config.json").stat().st_mode)  # safetensors lets nobody else read
    write_index(folder)


def _write_config(model: Any, folder: Path) -> None:
    """The model's own configuration, without what training changed in it."""
    config = copy.deepcopy(model.config)
    config.dtype = "bfloat16"
    config.architectures = [type(model).__name__]
    if getattr(config, "use_cache", None) is False:  # activation checkpointing turns it off
        config.use_cache = True
    config.save_pretrained(folder)
    path = folder / "config.json"
    written = json.loads(path.read_text("utf-8"))
    if getattr(config, "attn_logit_softcapping", None):  # transformers' faster attentions skip it, in silence
        written["attn_implementation"] = "eager"
        path.write_text(json.dumps(written, indent=2) + "\n", "utf-8")
    generation = getattr(model, "generation_config", None)
    if generation is not None:  # its save_pretrained refuses combinations that published models do have
        (folder / "generation_config.json").write_text(generation.to_json_string(), "utf-8")


def _reloaded(folder: Path, check_stop: Callable[[], None]) -> Examined:
    """``examine`` in a fresh process, on the CPU and without the variables of ranks."""
    shed = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "SLURM_", "PMI", "ACCELERATE_", "HALA_LAUNCH")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(shed)}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", __name__, str(folder)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    output, errors = process.communicate(timeout=STOP_SECONDS)
                    break
                check_stop()
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        last = "\n".join(errors.strip().splitlines()[-3:])
        raise HalaError(f"{folder}: the exported model does not load: {last}")
    examined: Examined = json.loads(output.splitlines()[-1])
    return examined


def _mean_difference(expected: Sequence[float], loaded: Sequence[float]) -> float:
    """NaN where the two are not of the same tokens."""
    return float(np.abs(np.subtract(expected, loaded)).mean()) if len(expected) == len(loaded) else math.nan


def _far_off(expected: Sequence[float], loaded: Sequence[float], difference: float, tolerance: float) -> str:
    if len(expected) != len(loaded):
        return f"the tokenizer makes {len(loaded) + 1} tokens of the prompt, in training {len(expected) + 1}"
    worst = int(np.abs(np.subtract(expected, loaded)).argmax())
    return (
        f"log-probabilities differ by {difference:.4f} nats a token (at most {tolerance:.4f}), "
        f"most at token {worst + 1}: {expected[worst]:.4f} in training, {loaded[worst]:.4f} loaded"
    )


if __name__ == "__main__":
    sys.stdout.write(json.dumps(examine(Path(sys.argv[1]))) + "\n")
