"""What a merged model has besides its weights: configuration, tokenizer, report, record and card; and its check."""

import json
import math
import shutil
import statistics
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from hala_hpc.models import card
from hala_hpc.models.check import NEEDED, RECORD, check_model
from hala_hpc.models.location import weights
from hala_hpc.models.safetensors_file import Tensor, Unreadable, not_finite, tensors_of
from hala_hpc.run.digests import digest_of
from hala_hpc.run.manifest import Shard
from hala_hpc.run.verify import ShardReport
from hala_hpc.tasks.merge.inputs import with_rows
from hala_hpc.tasks.merge.merging import LERP_ABOVE

REPORT: Final = "report.json"
"""In the model folder: models, parameters, and for each tensor its cosines."""
PACKAGES: Final = ("mergekit", "torch", "transformers", "tokenizers")
TOKENIZER: Final = (
    *NEEDED[1:], "special_tokens_map.json", "added_tokens.json", "tokenizer.model", "vocab.json", "vocab.txt",
    "merges.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
TEMPLATES: Final = "additional_chat_templates"
GENERATION: Final = "generation_config.json"


def template_of(folder: Path) -> Any:
    """The chat template of a model folder, whichever file holds it; None where there is none."""
    for name in ("chat_template.jinja", "chat_template.json"):
        if (folder / name).is_file():
            return (folder / name).read_text("utf-8")
    return card.read_json(folder / "tokenizer_config.json").get("chat_template")


def copy_files(base: Path, donor: Path, dtype: str, folder: Path, rows: int | None = None) -> None:
    """Configuration of the base, but for the type of its weights and, where given, the number of its vocabulary's rows;
    tokenizer, template and generation of ``donor``.
    """
    config = json.loads((base / "config.json").read_text("utf-8"))
    config = config if rows is None else with_rows(config, rows)
    config.pop("_name_or_path", None)  # somebody's folder, as a rule
    for part in (config, *(part for part in config.values() if isinstance(part, dict))):
        for key in ("dtype", "torch_dtype"):
            if key in part or (part is config and key == "dtype" and "torch_dtype" not in part):
                part[key] = dtype
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")
    for name in (*TOKENIZER, GENERATION):
        if (donor / name).is_file():
            shutil.copyfile(donor / name, folder / name)
    if (donor / TEMPLATES).is_dir():
        shutil.copytree(donor / TEMPLATES, folder / TEMPLATES, copy_function=shutil.copyfile)


def report_of(
    asked: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    parameters: Mapping[str, Mapping[str, Any]],
    cosines: Mapping[str, Mapping[str, float | None]],
) -> dict[str, Any]:
    """The report of a merge.

    Parameters
    ----------
    asked : the plan's entry for it.
    parameters : by tensor, what mergekit found its parameters to be, filters and gradients applied.
    cosines : by model, by tensor, the cosine to the base's.
    """
    lines = []
    for name, found in parameters.items():
        line: dict[str, Any] = {"name": name, "shape": list(tensors[name].shape), "parameters": dict(found)}
        line["cosine"] = {label: alike.get(name) for label, alike in cosines.items()}
        if asked["method"] == "slerp" and any(abs(one or 0.0) > LERP_ABOVE for one in line["cosine"].values()):
            line["note"] = "lerp"
        lines.append(line)
    return {
        "kind": "merge",
        **{key: asked[key] for key in ("name", "method", "cell", "config", "files_from", "seed")},
        "vocabulary": asked.get("vocabulary"),
        "models": {
            label: {key: card.without_folders(model[key]) for key in ("name", "revision", "digest")}
            for label, model in asked["models"].items()
        },
        "summary": _summary(lines, asked["method"]),
        "tensors": lines,
    }


def finish(run: Path, folder: Path, report: dict[str, Any], check_stop: Callable[[], None] = lambda: None) -> None:
    """Write report, record and card into a folder that holds everything else by now. ``check_stop`` may raise."""
    (folder / REPORT).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")
    listed = {}
    for path in sorted(each for each in folder.iterdir() if each.is_file()):
        check_stop()
        listed[path.name] = {"bytes": path.stat().st_size, "blake2b": digest_of(path)}
    record = {
        **card.provenance(run, PACKAGES),
        "merge": {key: value for key, value in report.items() if key not in ("kind", "tensors")},
        "parameters": sum(math.prod(line["shape"]) for line in report["tensors"]),
        "files": listed,
    }
    (folder / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", "utf-8")
    (folder / "README.md").write_text(render(record), "utf-8")


def render(record: dict[str, Any]) -> str:
    """The card of a merged model."""
    merge, base = record["merge"], record["base_model"]
    local = {"base": record["base_is_local"]}
    others = [model["name"] for label, model in merge["models"].items() if label != "base"]
    on_hub = [name for name in [base, *others] if "/" in name and not (name == base and local["base"])]
    said = f"`{base}` merged with {' and '.join(f'`{name}`' for name in others) or 'nothing else'}: {merge['method']}."
    title = f"{record['run']}-{merge['name']}"
    lines = card.heading(title, on_hub, said, base_model_relation="merge", tags=["mergekit", "merge"])
    told = [("parameters", f"{record['parameters']:,}"), *_cell(merge["cell"]), *_alike(merge["summary"])]
    lines += card.table(("", ""), [*told, *card.made_by(record)])
    columns = ("model", "name", "revision", "digest of its files")
    models = ((label, one["name"], str(one["revision"] or ""), one["digest"]) for label, one in merge["models"].items())
    lines += ["", "## Models", "", *card.table(columns, models), ""]
    lines += [f"Configuration of the base; tokenizer, chat template and generation settings of {merge['files_from']}."]
    if vocabulary := merge.get("vocabulary"):
        shared, own = vocabulary["shared"], vocabulary["rows"] - vocabulary["shared"]
        lines += [f"Of the vocabulary {shared:,} rows are merged; {own:,} more are those of {merge['files_from']}."]
    lines += ["", "## Merge", "", "As mergekit takes it, with labels in the place of models:", ""]
    lines += ["```yaml", card.yaml_of(merge["config"]), "```"]
    return "\n".join([*lines, *card.ending(record)])


def faults(
    folder: Path, donor: Path, tensors: Mapping[str, Tensor], check_stop: Callable[[], None] = lambda: None
) -> Iterator[str]:
    """What is wrong with a merged model: tensors missing, more than there should be, of another shape, or not finite;
    a generation config or a chat template that was lost. ``check_stop`` may raise.
    """
    stored: dict[str, Tensor] = {}
    for file in weights(folder):
        check_stop()
        found = tensors_of(file)
        yield from (f"{tensor.name} is stored twice" for tensor in found if tensor.name in stored)
        stored |= {tensor.name: tensor for tensor in found}
        yield from (f"{name} is not finite" for name in not_finite(file, found))
    yield from (f"{name} is missing" for name in tensors.keys() - stored.keys())
    yield from (f"{name} should not be stored" for name in stored.keys() - tensors.keys())
    for name in tensors.keys() & stored.keys():
        if stored[name].shape != tensors[name].shape:
            yield f"{name} is of shape {stored[name].shape}, not {tensors[name].shape}"
    if (donor / GENERATION).is_file() and not (folder / GENERATION).is_file():
        yield f"{GENERATION} was lost"
    if template_of(donor) != template_of(folder):
        yield "the chat template was lost"


def check_merge(shard: Shard, path: Path) -> ShardReport:
    """A published merge against its own record and report (``run.verify``'s checker)."""
    found = check_model(shard, path)
    problems = [*found.problems]
    try:
        listed = {line["name"]: line["shape"] for line in json.loads((path / REPORT).read_text("utf-8"))["tensors"]}
        stored = {tensor.name: list(tensor.shape) for file in weights(path) for tensor in tensors_of(file)}
        problems += [] if listed == stored else [f"{REPORT} tells of other tensors than are stored"]
    except (OSError, ValueError, KeyError, Unreadable) as error:
        problems.append(f"{REPORT} cannot be read: {type(error).__name__}: {error}")
    return ShardReport(done=0 if problems else 1, problems=tuple(problems))


def _summary(lines: list[dict[str, Any]], method: str) -> dict[str, Any]:
    alike = [one for line in lines for one in line["cosine"].values() if one is not None]
    summary: dict[str, Any] = {"tensors": len(lines)}
    if alike:
        summary |= {"least_cosine": min(alike), "median_cosine": statistics.median(alike)}
    if method == "slerp":
        linear = sum("note" in line for line in lines)
        summary |= {"slerp": len(lines) - linear, "lerp": linear}
    return summary


def _cell(cell: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in cell.items():
        if value is not None:
            yield key, str(value)


def _alike(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "tensors", card.number(summary["tensors"])
    if "least_cosine" in summary:
        yield "cosine of tensors, least and median", f"{summary['least_cosine']:.6f}, {summary['median_cosine']:.6f}"
    if "lerp" in summary:
        yield (
            "merged by slerp, by lerp",
            f"{summary['slerp']:,}, {summary['lerp']:,} (so alike, cosine above {LERP_ABOVE}, that the two are one)",
        )
