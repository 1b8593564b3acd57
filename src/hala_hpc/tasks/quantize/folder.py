"""A quantized model as a folder: what one shard leaves, and the whole model that is put together from them."""

import json
import math
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Final

from hala_hpc.config.errors import HalaError
from hala_hpc.models import card
from hala_hpc.models.check import NEEDED, RECORD
from hala_hpc.models.location import INDEX
from hala_hpc.models.safetensors_file import tensors_of
from hala_hpc.run import digests
from hala_hpc.run.digests import digest_of
from hala_hpc.run.files import link_or_copy
from hala_hpc.tasks.quantize.errors import TensorReport
from hala_hpc.tasks.quantize.schemes import Scheme

REPORT: Final = "report.json"
"""In a shard's folder and in the model's: sizes, and what became of each tensor."""
PACKAGES: Final = ("llmcompressor", "compressed-tensors", "torch", "transformers", "tokenizers")
BESIDE: Final = ("*.json", "*.jinja", "*.txt", "*.model", "*.py", "LICENSE*", "LICENCE*", "NOTICE*")
"""Files of the source that belong to the quantized model as well."""
OWN: Final = (RECORD, REPORT, INDEX, "config.json")
TEMPLATES: Final = "additional_chat_templates"


def write_report(
    folder: Path, reports: Sequence[TensorReport], config: dict[str, Any], numbers: dict[str, Any]
) -> dict[str, Any]:
    """A shard's own report, beside its weights: what ``assemble`` will need, and what ``hala verify`` holds it to."""
    files = {path.name: _described(path) for path in sorted(folder.glob("*.safetensors"))}
    report = {
        "files": files,
        "quantization_config": config,
        **numbers,
        "tensors": [each.as_dict() for each in reports],
    }
    (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    return report


def read_report(folder: Path) -> dict[str, Any]:
    """A shard's report. Raises HalaError where it cannot be read."""
    report = card.read_json(folder / REPORT)
    if not all(isinstance(report.get(key), dict) for key in ("files", "quantization_config")):
        raise HalaError(f"{folder / REPORT} cannot be read")
    return report


def faults(folder: Path, expected: Collection[str]) -> list[str]:
    """What is wrong with a shard: files that are not what was written, tensors that are not ``expected`` or absent."""
    try:
        files = read_report(folder)["files"]
    except HalaError as error:
        return [error.message]
    found = [f"{name} is missing" for name in files if not (folder / name).is_file()]
    found = found or [f"{name} is not what was written" for name in files if _described(folder / name) != files[name]]
    if found:
        return found
    stored = {tensor.name for name in files for tensor in tensors_of(folder / name)}
    found = [f"{name} is missing" for name in sorted(set(expected) - stored)]
    return found + [f"{name} is nothing that the plan asks for" for name in sorted(stored - set(expected))]


def assemble(run: Path, made: Path, source: Path, scheme: Scheme, shards: Sequence[Path]) -> None:
    """Fill ``made``, a folder in the making, with the whole model: linked weights, index, configuration, card.

    Raises HalaError where the shards do not make a model.
    """
    reports = [read_report(shard) for shard in shards]
    if any(report["quantization_config"] != reports[0]["quantization_config"] for report in reports):
        raise HalaError(
            f"{run}: its files were quantized in different ways", "by different versions of LLM Compressor?"
        )
    weights = {name: shard / name for shard, report in zip(shards, reports, strict=True) for name in report["files"]}
    for name, path in weights.items():
        link_or_copy(path, made / name)
    _write_index(made, sorted(weights))
    _copy_beside(source, made)
    config = json.loads((source / "config.json").read_text("utf-8"))
    config["quantization_config"] = reports[0]["quantization_config"]
    (made / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")
    provenance = card.provenance(run, PACKAGES)
    report = whole_report(provenance["base_model"], scheme, reports)
    (made / REPORT).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")
    if wanting := [name for name in NEEDED if not (made / name).is_file()]:
        raise HalaError(f"{source}: no {wanting[0]}, which a model needs")
    listed = _listed(made, reports)
    record = {
        **provenance,
        "quantization": {key: value for key, value in report.items() if key != "tensors"},
        "parameters": sum(math.prod(line["shape"]) for line in report["tensors"]),
        "files": listed,
    }
    (made / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", "utf-8")
    (made / "README.md").write_text(render(record), "utf-8")
    digests.write(made, {name: facts["blake2b"] for name, facts in listed.items()})


def whole_report(source: str, scheme: Scheme, reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sizes, and every tensor, of the parts' reports together."""
    lines = sorted((line for report in reports for line in report["tensors"]), key=lambda line: str(line["name"]))
    errors = [line["error"] for line in lines if "error" in line]
    before = sum(report["source_bytes"] for report in reports)
    after = sum(facts["bytes"] for report in reports for facts in report["files"].values())
    return {
        "kind": "quantize",
        "scheme": scheme.name,
        "ignore": reports[0]["ignore"],
        "method": reports[0]["method"],
        "rounding": reports[0]["rounding"],
        "source": {"name": source, "bytes": before},
        "bytes": after,
        "ratio": round(after / before, 6) if before else None,
        "files": len(reports),
        "quantized": len(errors),
        "kept": len(lines) - len(errors),
        "mean_error": sum(errors) / len(errors) if errors else None,
        "largest_error": max(errors, default=None),
        "seconds": round(sum(report["seconds"] for report in reports), 3),
        "tensors": lines,
    }


def render(record: dict[str, Any]) -> str:
    """The card of a quantized model."""
    made, base = record["quantization"], record["base_model"]
    said = f"`{base}`, its weights quantized by LLM Compressor: {made['scheme']}."
    bases = [] if record["base_is_local"] else [base]
    tags = ["llmcompressor", "compressed-tensors"]
    lines = card.heading(record["run"], bases, said, base_model_relation="quantized", tags=tags)
    told = [
        ("parameters", card.number(record["parameters"])),
        ("bytes of weights", f"{made['bytes']:,}, of the source {made['source']['bytes']:,}"),
        ("scheme", made["scheme"]),
        ("method", f"{made['method']}, rounded {'by GPTQ' if made['rounding'] == 'gptq' else 'to the nearest'}"),
        ("weights quantized, kept", f"{made['quantized']:,}, {made['kept']:,}"),
        ("relative error of a weight, mean and largest", f"{made['mean_error']:.4g}, {made['largest_error']:.4g}"),
    ]
    lines += card.table(("", ""), [*told, *card.made_by(record)])
    lines += ["", "Modules that were left as they are, besides norms:", ""]
    lines += [f"- `{pattern}`" for pattern in made["ignore"]]
    lines += ["", "Each tensor was read back and held against the source's; see `report.json`."]
    return "\n".join([*lines, *card.ending(record)])


def _listed(made: Path, reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Size and digest of every file; those of weights are known."""
    known = {name: facts for report in reports for name, facts in report["files"].items()}
    return {path.name: known.get(path.name) or _described(path) for path in sorted(made.iterdir()) if path.is_file()}


def _described(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "blake2b": digest_of(path)}


def _write_index(made: Path, names: Sequence[str]) -> None:
    stored: dict[str, str] = {}
    size = 0
    for name in names:
        for tensor in tensors_of(made / name):
            if tensor.name in stored:
                raise HalaError(f"{tensor.name} is in {stored[tensor.name]} and in {name}")
            stored[tensor.name] = name
            size += tensor.end - tensor.begin
    if list(names) != ["model.safetensors"]:
        index = {"metadata": {"total_size": size}, "weight_map": stored}
        (made / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", "utf-8")


def _copy_beside(source: Path, made: Path) -> None:
    for path in sorted({path for pattern in BESIDE for path in source.glob(pattern)}):
        if path.is_file() and path.name not in OWN and not path.name.endswith(".index.json"):
            shutil.copyfile(path, made / path.name)
    if (source / TEMPLATES).is_dir():
        shutil.copytree(source / TEMPLATES, made / TEMPLATES, copy_function=shutil.copyfile)
