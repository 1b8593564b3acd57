"""One merge by mergekit's own plan, executor and writer, and what a merged model has besides its weights.

mergekit's ``run_merge`` is not used: it does not report the parameters that filters and gradients give each tensor, has
no way to merge a vocabulary that is longer in one model, and cannot be stopped half-way. The merge itself runs in the
work environment only.
"""

import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NotRequired, TypedDict

from hala_hpc.config.errors import HalaError, plural
from hala_hpc.config.imports import heavy_imports
from hala_hpc.models import card, location
from hala_hpc.models.folder import NEEDED, REPORT, check_model, copy_beside, finish_model, item_report, write_json
from hala_hpc.models.safetensors_file import Tensor, free_at_once, not_finite, open_tensors
from hala_hpc.run.files import read_json
from hala_hpc.run.manifest import Shard
from hala_hpc.run.verify import ShardReport
from hala_hpc.tasks.merge.inputs import BASE, FLOATS, Input, MergeItem, Vocabulary, rows_beyond, with_rows

LEAST_BYTES: Final = 250_000_000
"""The least size of a weights file, about. It is held in memory until it is written, and a second time then."""
FREED_BYTES: Final = 1 << 22
"""The size of the pieces that slerp works in (see ``free_at_once``)."""
TELL_SECONDS: Final = 5.0


@dataclass(frozen=True)
class MergeJob:
    """One merge: ``config`` is mergekit's, with labels in the place of models; ``models`` says where those are.

    ``donor`` gives the rows after those that are merged, where there is a ``vocabulary`` (``shared_vocabulary``).
    """

    config: Mapping[str, Any]
    models: Mapping[str, Input]
    tensors: Mapping[str, Tensor]
    dtype: str
    device: str = "cpu"
    seed: int = 0
    donor: Input | None = None
    vocabulary: Vocabulary | None = None


def merge(
    job: MergeJob,
    folder: Path,
    check_stop: Callable[[], None] = lambda: None,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Mapping[str, Any]]:
    """Write the merged weights and their index to ``folder``: the names are the base's, each tied weight is there once.

    Returns, by tensor, the parameters that mergekit used for it.

    Raises
    ------
    HalaError : mergekit refuses the models or the parameters, or does not know one of the tensors.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin cost tenfold where cores are shared
    with heavy_imports():
        import torch
        from mergekit.common import dtype_from_name
        from mergekit.io import TensorWriter

    free_at_once(FREED_BYTES)
    torch.manual_seed(job.seed)
    tied = _tied_to(job)
    wanted = {name: tensor for name, tensor in job.tensors.items() if tied.get(name) not in job.tensors}
    try:
        steps = _planned(job, wanted)
    except (RuntimeError, ValueError, TypeError) as error:
        raise HalaError(f"mergekit: {' '.join(str(error).split())[:500]}") from error
    parameters: dict[str, Mapping[str, Any]] = {
        name: dict(step.tensor_task.parameters.items()) for name, step in steps.items()
    }
    kept = {name: step.dtype for name, step in steps.items() if step.dtype}  # types that mergekit insists on
    last = time.monotonic()
    largest = max(file.stat().st_size for file in job.models[BASE].files())
    # As a context it would write an index after an error too.
    writer = TensorWriter(str(folder), max(LEAST_BYTES, largest // 2))
    for number, (name, tensor) in enumerate(_results(job, steps), 1):
        rest = rows_beyond(job.donor, name, job.vocabulary)
        if rest is not None:
            tensor = torch.cat([tensor.to("cpu", torch.float32), rest.to(torch.float32)])
        is_float = wanted[name].dtype in FLOATS
        writer.save_tensor(name, tensor.to("cpu", dtype_from_name(kept.get(name, job.dtype)) if is_float else None))
        del tensor
        check_stop()
        if time.monotonic() >= last + TELL_SECONDS:
            last = time.monotonic()
            tell(f"{number} of {len(steps)} tensors")
    writer.finalize()
    return parameters


def _tied_to(job: MergeJob) -> dict[str, str]:
    """Weights of the base's architecture that are tied to others, with those others."""
    with heavy_imports():
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

    make: Any = AutoModelForCausalLM.from_config
    config = AutoConfig.from_pretrained(job.models[BASE].folder)
    try:
        with torch.device("meta"):
            model = make(config)
    except (ValueError, KeyError, ImportError) as error:
        raise HalaError(f"transformers cannot make a model of {config.model_type}: {error}") from error
    return dict(getattr(model, "all_tied_weights_keys", None) or {})


def _planned(job: MergeJob, wanted: Mapping[str, Tensor]) -> Mapping[str, Any]:
    """The steps of mergekit's plan that save each tensor, by the name that the base stores it under."""
    with heavy_imports():
        from mergekit.architecture import get_architecture_info
        from mergekit.config import MergeConfiguration
        from mergekit.io.tasks import LoaderCache, SaveTensor
        from mergekit.options import MergeOptions
        from mergekit.plan import MergePlanner

    options = MergeOptions(device=job.device, quiet=True)
    config = MergeConfiguration.model_validate(_with_folders(job))
    cache = LoaderCache()
    cache.loaders.clear()  # they outlive a merge, and with them the files of the last one
    cache.setup(options=options)
    architecture = get_architecture_info(config, options)
    base = str(job.models[BASE].folder)
    out = next(model for model in config.referenced_models() if model.model.path == base)
    steps = {}
    planner = MergePlanner(config, architecture, options, out_model_config=out.config())
    for step in planner.plan_to_disk("nowhere"):  # the step that would make its files is not run
        if not isinstance(step, SaveTensor):
            continue
        weight = step.tensor_task.output_weight
        names = (weight.name, *(weight.aliases or ()))
        if stored := next((name for name in names if name in wanted), None):
            steps[stored] = step
    if unknown := wanted.keys() - steps.keys():
        raise HalaError(
            f"mergekit does not know {plural(len(unknown), 'tensor')} of this architecture, e.g. "
            f"{min(unknown)}, and would leave them out"
        )
    return {name: steps[name] for name in wanted}


def _with_folders(job: MergeJob) -> Mapping[str, Any]:
    """The configuration for mergekit; models as mappings, because ``+`` and ``@`` have a meaning in a text."""

    def reference(label: str) -> Mapping[str, Any]:
        return {"model": {"path": str(job.models[label].folder)}}

    config = dict(job.config)
    config["models"] = [dict(part, model=reference(part["model"])) for part in config["models"]]
    if config.get("base_model"):
        config["base_model"] = reference(config["base_model"])
    return config


def _results(job: MergeJob, steps: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The merged tensors as mergekit makes them, in its order."""
    from mergekit.graph import Executor

    names = {id(step.tensor_task): name for name, step in steps.items()}
    for task, tensor in Executor([step.tensor_task for step in steps.values()], math_device=job.device).run(quiet=True):
        if tensor is None:
            raise HalaError(f"{names[id(task)]}: mergekit's {job.config['merge_method']} has no result for it")
        yield names[id(task)], tensor


PIECE: Final = 1 << 22
"""Numbers looked at in one go."""
LERP_ABOVE: Final = 0.9995
"""mergekit's slerp interpolates linearly where the cosine's absolute value is larger (its ``dot_threshold``)."""


def cosines(
    base: Input, other: Input, names: Iterable[str], check_stop: Callable[[], None] = lambda: None
) -> dict[str, float | None]:
    """The cosine between the tensors of two models, by name, each tensor taken as one long vector, in float64.

    None where one of the two is all zeros, and for tensors that do not hold real numbers. ``check_stop`` may raise.
    """
    by_name: dict[str, float | None] = dict.fromkeys(names)
    with open_tensors(*base.files()) as stored, open_tensors(*other.files()) as of_other:
        for name in (name for name in by_name if base.tensors[name].dtype in FLOATS):
            check_stop()
            pair = [file.get_tensor(name) for file in (stored[name], of_other[name])]
            if shape := base.tensors[name].shape:  # fewer rows than are stored count where the vocabulary was cut
                pair = [tensor[: shape[0]] for tensor in pair]
            by_name[name] = _cosine(*pair)
    return by_name


def _cosine(base: Any, other: Any) -> float | None:
    dot = square = other_square = 0.0
    for a, b in zip(base.reshape(-1).split(PIECE), other.reshape(-1).split(PIECE), strict=True):
        a, b = a.double(), b.double()
        dot += float(a @ b)
        square += float(a @ a)
        other_square += float(b @ b)
    if not square or not other_square:
        return None
    cosine = dot / math.sqrt(square) / math.sqrt(other_square)
    return max(-1.0, min(1.0, cosine)) if math.isfinite(cosine) else None


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
    return read_json(model / "tokenizer_config.json").get("chat_template")


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
    write_json(target / "config.json", config, indent=2)
    copy_beside(donor, target, (*TOKENIZER, GENERATION))


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
    write_json(target / REPORT, report)
    record = card.provenance(run, PACKAGES) | {
        "merge": {key: value for key, value in report.items() if key not in ("kind", "tensors")},
        "parameters": sum(math.prod(line["shape"]) for line in report["tensors"]),
    }
    finish_model(target, record, render, check_stop=check_stop)


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
    for of_file in location.weights(model).values():
        check_stop()
        yield from (f"{tensor.name} is stored twice" for tensor in of_file if tensor.name in stored)
        stored |= {tensor.name: tensor for tensor in of_file}
        yield from (f"{name} is not finite" for name in not_finite(of_file))
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
        files = location.weights(path)
        stored = {tensor.name: list(tensor.shape) for of_file in files.values() for tensor in of_file}
        problems += [] if listed == stored else [f"{REPORT} lists other tensors than are stored"]
    except (OSError, ValueError, KeyError, HalaError) as error:
        problems.append(f"{REPORT} cannot be read: {type(error).__name__}: {error}")
    return item_report(problems)


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
