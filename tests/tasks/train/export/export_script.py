"""Runs in the work environment: exports a tiny model well and badly, writes what it saw. See test_export."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.integrations import HfDeepSpeedConfig

from hala_hpc.config.errors import HalaError
from hala_hpc.models.safetensors_file import tensors_of
from hala_hpc.tasks.train import card
from hala_hpc.tasks.train.export import model

PROJECTION = "model.layers.1.self_attn.q_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"


def refusal(work: Callable[[], object]) -> str:
    try:
        work()
    except HalaError as error:
        return str(error)
    return ""


class Exporting:
    def __init__(self, source: Path, folder: Path, run: Path) -> None:
        self.folder, self.run = folder, run
        self.tokenizer = AutoTokenizer.from_pretrained(source)
        self.model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        self.model.config.use_cache = False  # as activation checkpointing leaves it
        self.expected = model.fingerprint(self.model, self.tokenizer)

    def save(self, name: str, **changed: Any) -> Path:
        state = {name: tensor.clone() for name, tensor in self.model.state_dict().items()} | changed
        target = self.folder / name
        model.save(self.model, state, self.tokenizer, target, card.provenance(self.run))
        assert not state, "the state was to be emptied"
        return target

    def harmed(self, name: str, tensor: Any) -> str:
        target = self.save("harmed", **{name: tensor})
        return refusal(lambda: model.check(target, self.expected))


def good(it: Exporting) -> dict[str, Any]:
    target = it.save("whole")
    seen: dict[str, Any] = {"difference": model.check(target, it.expected)}
    seen["tensors"] = {tensor.name: tensor.dtype for tensor in tensors_of(target / "model.safetensors")}
    seen["config"] = json.loads((target / "config.json").read_text())
    seen["generation"] = json.loads((target / "generation_config.json").read_text())
    seen["template"] = AutoTokenizer.from_pretrained(target).chat_template == it.tokenizer.chat_template
    seen["training"] = it.model.training
    model.SHARD_BYTES = 500_000  # type: ignore[misc]
    # As under ZeRO-3: whatever is loaded in this process would be cut into pieces; the check must not be.
    kept = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1})
    pieces = it.save("pieces")
    seen["pieces"] = sorted(path.name for path in pieces.glob("model*"))
    seen["difference of pieces"] = model.check(pieces, it.expected)
    del kept
    return seen


def bad(it: Exporting) -> dict[str, str]:
    weights = it.model.state_dict()
    seen = {
        "lost": it.harmed(PROJECTION, torch.zeros_like(weights[PROJECTION])),
        "NaN": it.harmed(NORM, weights[NORM] * float("nan")),
    }
    gathered = {name: tensor for name, tensor in weights.items() if name != NORM}
    target = it.folder / "missing"
    seen["missing"] = refusal(lambda: model.save(it.model, gathered, it.tokenizer, target, card.provenance(it.run)))
    seen["left behind"] = ", ".join(path.name for path in it.folder.iterdir() if "missing" in path.name)
    it.tokenizer.add_tokens([f"<new {number}>" for number in range(300)])
    seen["tokens"] = refusal(lambda: it.save("tokens"))
    return seen


def main() -> None:
    source, folder, run, out = map(Path, sys.argv[1:])
    it = Exporting(source, folder, run)
    out.write_text(json.dumps({"good": good(it), "bad": bad(it), "expected": it.expected}))


if __name__ == "__main__":
    main()
