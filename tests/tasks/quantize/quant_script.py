"""In the work environment: tiny models; then runs on them, what ``oneshot`` makes of them, and the library's tables."""

import importlib.util
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
IGNORE = ["lm_head", "re:.*embed_tokens$", r"re:.*conv\.conv$"]


def build(folder: Path, wanted: list[list[str]]) -> None:
    spec = importlib.util.spec_from_file_location("tiny_model", ROOT / "jobs" / "demo" / "tiny_model.py")
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    for architecture, files, *_ in wanted:
        tiny.build(folder / architecture, architecture, files=int(files), dtype="bfloat16", layers=4)


def oneshot(folder: Path, wanted: list[list[str]]) -> None:
    """As LLM Compressor's own examples have it, nothing of this project between."""
    import llmcompressor
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM

    for architecture, _, *schemes in wanted:
        for scheme in schemes:
            model = AutoModelForCausalLM.from_pretrained(folder / architecture, dtype="auto")
            modifier = QuantizationModifier(targets="Linear", scheme=scheme, ignore=IGNORE)
            llmcompressor.oneshot(model=model, recipe=modifier)
            model.save_pretrained(folder / f"oneshot-{architecture}-{scheme}", save_compressed=True)


def tables(path: Path) -> None:
    from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES
    from llmcompressor.entrypoints.model_free.microscale import DEFAULT_FUSED_MAPPINGS

    found = {"schemes": {name: described(scheme) for name, scheme in PRESET_SCHEMES.items()}}
    found["fused"] = [[name, partners] for name, partners in DEFAULT_FUSED_MAPPINGS.items()]
    path.write_text(json.dumps(found))


def described(scheme: dict) -> dict:
    inputs = scheme.get("input_activations")
    found = {"calibrated": (inputs is not None and inputs.dynamic is False) or has_fixed_global_scale(inputs)}
    if (weights := scheme.get("weights")) is not None:
        block = weights.block_structure
        found |= {"number": str(getattr(weights.type, "value", weights.type)), "bits": weights.num_bits}
        found["strategy"] = str(getattr(weights.strategy, "value", weights.strategy))
        found |= {"group": (block[0] if block else weights.group_size) or 0, "symmetric": weights.symmetric}
        found["exponents"] = str(weights.scale_dtype) == "torch.uint8"
    return found


def has_fixed_global_scale(inputs: object) -> bool:
    return inputs is not None and inputs.dynamic not in (True, False)


def work(runs: list[Path]) -> None:
    from hala_hpc.worker.job import work_until

    for run in runs:
        print(run.name, work_until(run, lambda: False).value, flush=True)


if __name__ == "__main__":
    mode, place, chosen, *paths = sys.argv[1:]
    if mode == "build":
        build(Path(place), json.loads(chosen))
    else:
        work([Path(path) for path in paths])
        oneshot(Path(place), json.loads(chosen))
        tables(Path(place) / "tables.json")
