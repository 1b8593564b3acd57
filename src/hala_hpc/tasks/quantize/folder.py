"""A quantized model as a folder: what one shard leaves, and the whole model that is put together from them."""

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypedDict, cast

from hala_hpc.config.errors import HalaError
from hala_hpc.models import card, location
from hala_hpc.models.folder import RECORD, REPORT, copy_beside, finish_model, require_files, write_index, write_json
from hala_hpc.models.safetensors_file import Unreadable, tensors_of
from hala_hpc.run import digests
from hala_hpc.run.digests import FileFacts
from hala_hpc.run.files import link_or_copy, read_json
from hala_hpc.tasks.quantize.files import TensorError

PACKAGES: Final = ("llmcompressor", "compressed-tensors", "torch", "transformers", "tokenizers")
BESIDE: Final = ("*.json", "*.jinja", "*.txt", "*.model", "*.py", "LICENSE*", "LICENCE*", "NOTICE*")
"""Files of the source that belong to the quantized model as well."""


class PartReport(TypedDict):
    """``report.json`` of a shard: its weights files, how they were quantized, and every tensor of the source."""

    files: dict[str, FileFacts]
    quantization_config: Mapping[str, Any]
    source_bytes: int
    scheme: str
    ignore: list[str]
    method: str
    rounding: str
    seconds: float
    llmcompressor: str
    tensors: list[TensorError]


def read_report(part: Path) -> PartReport:
    """A shard's report. Raises HalaError where it cannot be read."""
    report = read_json(part / REPORT)
    if not all(isinstance(report.get(key), dict) for key in ("files", "quantization_config")):
        raise HalaError(f"{part / REPORT} cannot be read")
    return cast(PartReport, report)


def faults(part: Path, expected: Collection[str]) -> list[str]:
    """What is wrong with a shard: files that changed since they were written, or tensors other than ``expected``."""
    try:
        files = read_report(part)["files"]
        if changed := [fault for name, facts in files.items() if (fault := digests.changed(part / name, facts))]:
            return changed
        stored = {tensor.name for name in files for tensor in tensors_of(part / name)}
    except (HalaError, Unreadable) as error:
        return [str(error)]
    missing = [f"{name} is missing" for name in sorted(set(expected) - stored)]
    return missing + [f"{name} is not in the plan" for name in sorted(stored - set(expected))]


def assemble(run: Path, target: Path, source: Path, parts: Sequence[Path]) -> None:
    """Fill ``target``, a folder in the making, with the whole model: linked weights, index, configuration, card.

    Raises HalaError where the shards do not make a model.
    """
    require_files("model.name", source)
    reports = [read_report(part) for part in parts]
    quantization = reports[0]["quantization_config"]
    if any(report["quantization_config"] != quantization for report in reports):
        raise HalaError(
            f"{run}: its files were quantized in different ways", "by different versions of LLM Compressor?"
        )
    for part, report in zip(parts, reports, strict=True):
        for name in report["files"]:
            link_or_copy(part / name, target / name)
    write_index(target)
    copy_beside(source, target, BESIDE, without=(RECORD, REPORT, "config.json"))
    config = location.config(source) | {"quantization_config": quantization}
    write_json(target / "config.json", config, indent=2)
    provenance = card.provenance(run, PACKAGES)
    whole = whole_report(provenance["base_model"], reports)
    write_json(target / REPORT, whole)
    record = provenance | {
        "quantization": {key: value for key, value in whole.items() if key != "tensors"},
        "parameters": sum(math.prod(tensor["shape"]) for report in reports for tensor in report["tensors"]),
    }
    known = {name: facts for report in reports for name, facts in report["files"].items()}
    listed = finish_model(target, record, render, known)
    digests.write(target, {name: facts["blake2b"] for name, facts in listed.items()})


def whole_report(source: str, reports: Sequence[PartReport]) -> dict[str, Any]:
    """``report.json`` of the model: sizes and every tensor, of the parts' reports together."""
    tensors = sorted((tensor for report in reports for tensor in report["tensors"]), key=lambda tensor: tensor["name"])
    errors = [tensor["error"] for tensor in tensors if "error" in tensor]
    before = sum(report["source_bytes"] for report in reports)
    after = sum(facts["bytes"] for report in reports for facts in report["files"].values())
    first = reports[0]
    return {
        "kind": "quantize",
        "scheme": first["scheme"],
        "ignore": first["ignore"],
        "method": first["method"],
        "rounding": first["rounding"],
        "source": {"name": source, "bytes": before},
        "bytes": after,
        "ratio": round(after / before, 6) if before else None,
        "files": len(reports),
        "quantized": len(errors),
        "kept": len(tensors) - len(errors),
        "mean_error": sum(errors) / len(errors) if errors else None,
        "largest_error": max(errors, default=None),
        "seconds": round(sum(report["seconds"] for report in reports), 3),
        "tensors": tensors,
    }


def render(record: Mapping[str, Any]) -> str:
    """The card of a quantized model."""
    report = record["quantization"]
    said = f"`{record['base_model']}`, its weights quantized by LLM Compressor: {report['scheme']}."
    facts = [
        ("parameters", card.number(record["parameters"])),
        ("bytes of weights", f"{report['bytes']:,}, of the source {report['source']['bytes']:,}"),
        ("scheme", report["scheme"]),
        ("method", f"{report['method']}, rounded {'by GPTQ' if report['rounding'] == 'gptq' else 'to the nearest'}"),
        ("weights quantized, kept", f"{report['quantized']:,}, {report['kept']:,}"),
        ("relative error of a weight, mean and largest", f"{report['mean_error']:.4g}, {report['largest_error']:.4g}"),
    ]
    body = ["", "Modules that were left as they are, besides norms:", ""]
    body += [f"- `{pattern}`" for pattern in report["ignore"]]
    body += ["", "Each tensor was read back and held against the source's; see `report.json`."]
    tags = ["llmcompressor", "compressed-tensors"]
    return card.page(record, said, facts, body, base_model_relation="quantized", tags=tags)
