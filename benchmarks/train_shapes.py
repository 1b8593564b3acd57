"""Where a GPU is at hand: tokens/s, MFU and memory of real shapes with random weights, over the settings that matter.

One GPU, packed Alpaca rows, through `hala submit`. The 9B has fewer layers, so that its optimizer fits into one GPU.
`--shrink` makes everything tiny, to see on a CPU that this works.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import HALA, ROOT, environment, quiet, title
from train import chats, given_up, steps_of, stop

LFM2 = {"model_type": "lfm2", "vocab_size": 65_536, "num_hidden_layers": 16, "num_key_value_heads": 8}
LFM2 |= {"full_attn_idxs": [2, 5, 8, 10, 12, 14], "conv_L_cache": 3, "norm_eps": 1e-5, "rope_theta": 1_000_000.0}
SHAPES: dict[str, dict[str, Any]] = {
    "lfm2-350m": LFM2 | {"hidden_size": 1024, "num_attention_heads": 16, "block_ff_dim": 6656},
    "lfm2-1.2b": LFM2 | {"hidden_size": 2048, "num_attention_heads": 32, "block_ff_dim": 12_288},
    "gemma2-9b-8-layers": {
        "model_type": "gemma2",
        "vocab_size": 128_256,
        "hidden_size": 3584,
        "intermediate_size": 14_336,
        "num_hidden_layers": 8,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "sliding_window": 4096,
    },
}
"""As the published models' config.json have them: LiquidAI's LFM2, QCRI's Fanar-1-9B."""
TINY = {
    "vocab_size": 2_100,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "block_ff_dim": 256,
}
TINY |= {"intermediate_size": 256, "head_dim": 32, "num_hidden_layers": 3, "full_attn_idxs": [2]}
WARM_STEPS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--per-device", nargs="+", type=int, default=[4, 8, 16])
    parser.add_argument("--attention", nargs="+", default=["null"], help="null: the model's own choice")
    parser.add_argument("--checkpointing", nargs="+", type=json.loads, default=[False, True])
    parser.add_argument("--kernels", nargs="+", type=json.loads, default=[[]], help="for example [] '[\"liger\"]'")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--site", default="local", help="whose work environment has torch for this GPU")
    parser.add_argument("--python", default=sys.executable, help="of that environment")
    parser.add_argument("--shrink", action="store_true")
    parser.add_argument("--build", nargs=2, metavar=("CONFIG", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.build:
        build(*arguments.build)
        return
    title("train_shapes")
    settings = list(
        itertools.product(arguments.per_device, arguments.attention, arguments.checkpointing, arguments.kernels)
    )
    for shape in arguments.shapes:
        with tempfile.TemporaryDirectory() as folder:
            measured(shape, settings, arguments, Path(folder))


def measured(shape: str, settings: list[tuple[Any, ...]], arguments: argparse.Namespace, folder: Path) -> None:
    """Every setting of one shape, and the best."""
    config = SHAPES[shape] | ({key: TINY[key] for key in TINY if key in SHAPES[shape]} if arguments.shrink else {})
    (folder / "config.json").write_text(json.dumps(config))
    quiet(arguments.python, __file__, "--build", folder / "config.json", folder / "model", env=environment())
    rows = 400 if arguments.shrink else 20_000
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats(rows)))
    found = {}
    for number, setting in enumerate(settings):
        result = one(f"run{number}", setting, arguments, folder)
        told = "does not fit or failed" if isinstance(result, str) else line_of(result)
        print(f"{shape}: {name_of(setting)}: {told}", flush=True)
        if isinstance(result, str):
            print(result[-600:], file=sys.stderr)
        else:
            found[name_of(setting)] = result
    if found:
        best = max(found, key=lambda name: found[name]["tokens_per_second"])
        print(f"{shape}: best: {best}: {line_of(found[best])}", flush=True)


def one(name: str, setting: tuple[Any, ...], arguments: argparse.Namespace, folder: Path) -> dict[str, float] | str:
    """Medians over the steps after the warm-up; what the log says where there are none."""
    per_device, attention, checkpointing, kernels = setting
    task = {
        "kind": "train",
        "datasets": {"alpaca": {"path": str(folder / "rows.jsonl"), "kind": "chat"}},
        "prepared": str(folder / "prepared"),
        "sequence_length": arguments.length,
        "too_long": "drop",
        "batch": {"sequences": per_device, "per_device": per_device},
        "tokens": arguments.steps * per_device * arguments.length,
        "attention": None if attention == "null" else attention,
        "activation_checkpointing": checkpointing,
        "kernels": kernels,
        "watch": {"preflight": False, "restarts": 0, "loss_leap": None},
        "save": {"minutes": 600},
    }
    gpus = 0 if arguments.shrink else 1
    recipe = {"name": name, "model": {"name": str(folder / "model")}, "task": task}
    recipe["site"] = {"slurm": {"gpus_per_worker": gpus, "cpus_per_worker": 8 if gpus else 2}}
    (folder / f"{name}.yaml").write_text(json.dumps(recipe))
    quiet(*HALA, "submit", folder / f"{name}.yaml", "--site", arguments.site, cwd=folder, env=environment())
    run = folder / "runs" / name
    reason = given_up(run, lambda: len(steps_of(run)) >= arguments.steps)
    stop(run)
    lines = steps_of(run)[WARM_STEPS:]
    keys = ("tokens_per_second", "mfu", "memory_gb", "seconds")
    return reason or {key: statistics.median(line[key] or 0.0 for line in lines) for key in keys}


def build(config: str, out: str) -> None:
    """In the work environment: random weights in bfloat16, and the demo's tokenizer, which any such model can have."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sys.path.insert(0, str(ROOT / "jobs" / "demo"))
    import tiny_model

    values = json.loads(Path(config).read_text())
    tokenizer = tiny_model._tokenizer([tiny_model.TEXT], 2000, 1 << 20)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    torch.manual_seed(0)
    shape = AutoConfig.for_model(values.pop("model_type"), **values, **ids)
    AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def name_of(setting: tuple[Any, ...]) -> str:
    per_device, attention, checkpointing, kernels = setting
    words = [f"per_device {per_device}", f"attention {attention}", *kernels]
    return ", ".join([*words, *(["checkpointing"] if checkpointing else [])])


def line_of(found: dict[str, float]) -> str:
    return (
        f"{found['tokens_per_second']:,.0f} tokens/s, MFU {found['mfu']:.1%}, {found['memory_gb']:.1f} GB, "
        f"{found['seconds']:.2f} s a step"
    )


if __name__ == "__main__":
    main()
