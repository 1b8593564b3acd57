"""What a merged model has besides its weights: configuration, tokenizer, report, record and card; and its check."""

import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NotRequired, TypedDict

from hala_hpc.models import card, folder, location
from hala_hpc.models.check import NEEDED, check_model, report
from hala_hpc.models.folder import REPORT
from hala_hpc.models.safetensors_file import Tensor, Unreadable, not_finite, tensors_of
from hala_hpc.run.manifest import Shard
from hala_hpc.run.verify import ShardReport
from hala_hpc.tasks.merge.inputs import BASE, MergeItem, with_rows
from hala_hpc.tasks.merge.merging import LERP_ABOVE

PACKAGES: Final = ("mergekit", "torch", "transformers", "tokenizers")
TOKENIZER: Final = (
    *NEEDED[1:], "special_tokens_map.json", "added_tokens.json", "tokenizer.model", "vocab.json", "vocab.txt",
    "merges.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
GENERATION: Final = "generation_config.json"


class MergedTensor(TypedDict):
    """A tensor in the report: mergekit's parameters, filters and gradients applied, and cosines to the base's."""

    name: str
    shape: list[int]
    parameters: dict[str, Any]
    cosine: dict[str, float | None]
    note: NotRequired[str]


def template_of(model: Path) -> Any:
    """The chat template of a model folder, whichever file holds it; None where there is none."""
    for name in ("chat_template.jinja", "chat_template.json"):
        if (model / name).is_file():
            return (model / name).read_text("utf-8")
    return card.read_json(model / "tokenizer_config.json").get("chat_template")


def copy_files(base: Path, donor: Path, dtype: str, target: Path, rows: int | None = None) -> None:
    """Write the base's configuration, with the type of the weights and, where given, the rows of the vocabulary
    replaced; copy tokenizer, template and generation settings of ``donor``.
    """
    config = location.config(base)
    config = config if rows is None else with_rows(config, rows)
    config.pop("_name_or_path", None)  # somebody's folder, as a rule
    for part in (config, *(part for part in config.values() if isinstance(part, dict))):
        for key in ("dtype", "torch_dtype"):
            if key in part or (part is config and key == "dtype" and "torch_dtype" not in part):
                part[key] = dtype
    folder.write_json(target / "config.json", config, indent=2)
    folder.copy_beside(donor, target, (*TOKENIZER, GENERATION))


def report_of(
    item: MergeItem,
    tensors: Mapping[str, Tensor],
    parameters: Mapping[str, Mapping[str, Any]],
    cosines: Mapping[str, Mapping[str, float | None]],
) -> dict[str, Any]:
    """The report of a merge.

    Parameters
    ----------
    item : the plan's entry for it.
    parameters : by tensor, mergekit's parameters for it, filters and gradients applied.
    cosines : by model, by tensor, the cosine to the base's.
    """
    lines = []
    for name, of_tensor in parameters.items():
        cosine = {label: by_tensor.get(name) for label, by_tensor in cosines.items()}
        shape = list(tensors[name].shape)
        line = MergedTensor(name=name, shape=shape, parameters=dict(of_tensor), cosine=cosine)
        if item["method"] == "slerp" and any(abs(value or 0.0) > LERP_ABOVE for value in cosine.values()):
            line["note"] = "lerp"
        lines.append(line)
    return {
        "kind": "merge",
        "name": item["name"],
        "method": item["method"],
        "cell": item["cell"],
        "config": item["config"],
        "files_from": item["files_from"],
        "seed": item["seed"],
        "vocabulary": item.get("vocabulary"),
        "models": {
            label: card.without_folders({key: model[key] for key in ("name", "revision", "digest")})
            for label, model in item["models"].items()
        },
        "summary": _summary(lines, item["method"]),
        "tensors": lines,
    }


def finish(run: Path, target: Path, report: Mapping[str, Any], check_stop: Callable[[], None] = lambda: None) -> None:
    """Write report, record and card into a folder that holds everything else by now. ``check_stop`` may raise."""
    folder.write_json(target / REPORT, report)
    record = card.provenance(run, PACKAGES) | {
        "merge": {key: value for key, value in report.items() if key not in ("kind", "tensors")},
        "parameters": sum(math.prod(line["shape"]) for line in report["tensors"]),
    }
    folder.finish(target, record, render, check_stop=check_stop)


def render(record: Mapping[str, Any]) -> str:
    """The card of a merged model."""
    merge, base = record["merge"], record["base_model"]
    others = [model["name"] for label, model in merge["models"].items() if label != BASE]
    on_hub = [name for name in [base, *others] if "/" in name and not (name == base and record["base_is_local"])]
    said = f"`{base}` merged with {' and '.join(f'`{name}`' for name in others) or 'nothing else'}: {merge['method']}."
    cell = [(key, str(value)) for key, value in merge["cell"].items() if value is not None]
    facts = [("parameters", f"{record['parameters']:,}"), *cell, *_summary_cells(merge["summary"])]
    columns = ("model", "name", "revision", "digest of its files")
    models = (
        (label, model["name"], str(model["revision"] or ""), model["digest"])
        for label, model in merge["models"].items()
    )
    body = ["", "## Models", "", *card.table(columns, models), ""]
    body += [f"Configuration of the base; tokenizer, chat template and generation settings of {merge['files_from']}."]
    if vocabulary := merge.get("vocabulary"):
        shared, own = vocabulary["shared"], vocabulary["rows"] - vocabulary["shared"]
        body += [f"Of the vocabulary {shared:,} rows are merged; {own:,} more are those of {merge['files_from']}."]
    body += ["", "## Merge", "", "As mergekit takes it, with labels in the place of models:", ""]
    body += ["```yaml", card.yaml_of(merge["config"]), "```"]
    front = {"base_model_relation": "merge", "tags": ["mergekit", "merge"]}
    return card.page(record, said, facts, body, f"{record['run']}-{merge['name']}", on_hub, **front)


def faults(
    model: Path, donor: Path, tensors: Mapping[str, Tensor], check_stop: Callable[[], None] = lambda: None
) -> Iterator[str]:
    """What is wrong with a merged model: tensors missing, more than there should be, of another shape, or not finite;
    a generation config or a chat template that was lost. ``check_stop`` may raise.
    """
    stored: dict[str, Tensor] = {}
    for file in location.weights(model):
        check_stop()
        of_file = tensors_of(file)
        yield from (f"{tensor.name} is stored twice" for tensor in of_file if tensor.name in stored)
        stored |= {tensor.name: tensor for tensor in of_file}
        yield from (f"{name} is not finite" for name in not_finite(file, of_file))
    yield from (f"{name} is missing" for name in tensors.keys() - stored.keys())
    yield from (f"{name} should not be stored" for name in stored.keys() - tensors.keys())
    for name in tensors.keys() & stored.keys():
        if stored[name].shape != tensors[name].shape:
            yield f"{name} is of shape {stored[name].shape}, not {tensors[name].shape}"
    if (donor / GENERATION).is_file() and not (model / GENERATION).is_file():
        yield f"{GENERATION} was lost"
    if template_of(donor) != template_of(model):
        yield "the chat template was lost"


def check_merge(shard: Shard, path: Path) -> ShardReport:
    """Check a published merge against its own record and report (``run.verify``'s checker)."""
    problems = [*check_model(shard, path).problems]
    try:
        listed = {line["name"]: line["shape"] for line in json.loads((path / REPORT).read_text("utf-8"))["tensors"]}
        stored = {tensor.name: list(tensor.shape) for file in location.weights(path) for tensor in tensors_of(file)}
        problems += [] if listed == stored else [f"{REPORT} lists other tensors than are stored"]
    except (OSError, ValueError, KeyError, Unreadable) as error:
        problems.append(f"{REPORT} cannot be read: {type(error).__name__}: {error}")
    return report(problems)


def _summary(lines: list[MergedTensor], method: str) -> dict[str, float]:
    """The tensors counted, and how alike the models were."""
    cosines = [cosine for line in lines for cosine in line["cosine"].values() if cosine is not None]
    summary: dict[str, float] = {"tensors": len(lines)}
    if cosines:
        summary |= {"least_cosine": min(cosines), "median_cosine": statistics.median(cosines)}
    if method == "slerp":
        linear = sum("note" in line for line in lines)
        summary |= {"slerp": len(lines) - linear, "lerp": linear}
    return summary


def _summary_cells(summary: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    yield "tensors", card.number(summary["tensors"])
    if "least_cosine" in summary:
        yield "cosine of tensors, least and median", f"{summary['least_cosine']:.6f}, {summary['median_cosine']:.6f}"
    if "lerp" in summary:
        yield (
            "merged by slerp, by lerp",
            f"{summary['slerp']:,}, {summary['lerp']:,} (so alike, cosine above {LERP_ABOVE}, that the two are one)",
        )
