"""What a training will take, worked out when it is planned: its data, its steps, each GPU's memory, GPU-hours."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import ceil
from pathlib import Path
from typing import Any, Final, NotRequired, TypedDict

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Recipe
from hala_hpc.data.chat import templates
from hala_hpc.tasks.train import task as train
from hala_hpc.tasks.train.estimate import architecture, memory
from hala_hpc.tasks.train.estimate.architecture import Architecture
from hala_hpc.tasks.train.estimate.memory import Memory
from hala_hpc.tasks.train.options import KERNEL, Options, global_batch, is_convolutional, steps_of
from hala_hpc.tasks.train.prepare import expected

GPU: Final = "H100"
GPU_BYTES: Final = 80 * 1024**3
"""The memory of a GPU where ``site.slurm.gpu_memory_gb`` is not set: an A100 or H100 of 80 GB."""
HARDWARE: Final = ((1, 8), (2, 8), (4, 8))
"""Nodes and GPUs on each, beside what the site has."""
MFU: Final = 0.4
"""Model FLOPs utilization assumed for GPU-hours (ours, not measured): well-fed GPUs reach 0.3 to 0.5."""
RECOMPUTED: Final = 0.75
"""With activation checkpointing the forward pass is done twice, so three quarters of the work count."""
PARTS: Final = ("parameters", "gradients", "optimizer", "activations", "working")
SUM: Final = (*PARTS, "total")


class HardwareEstimate(TypedDict):
    """What one choice of hardware takes: the parts of ``Memory`` and whether it ``fits``, or why it is ``refused``."""

    hardware: str
    gpus: int
    hours: float
    refused: NotRequired[str]
    fits: NotRequired[bool]
    total: NotRequired[int]
    parameters: NotRequired[int]
    gradients: NotRequired[int]
    optimizer: NotRequired[int]
    activations: NotRequired[int]
    working: NotRequired[int]


class TrainingEstimate(TypedDict):
    """What a training will take; from ``weights`` on as far as the form of its model is known."""

    model: dict[str, str | None]
    datasets: Sequence[Mapping[str, Any]]
    packing: str
    sequence_length: int
    batch: dict[str, int]
    estimated_tokens_trained: int
    estimated_steps: int
    epochs: float | None
    memory: list[HardwareEstimate]
    memory_unknown: NotRequired[str]
    weights: NotRequired[int]
    gpu_bytes: NotRequired[int]
    disk: NotRequired[dict[str, int]]
    gpu_hours: NotRequired[float]
    assumed: NotRequired[dict[str, str | float]]


def summary(recipe: Recipe, planned: Path) -> TrainingEstimate:
    """Plain data for the table and for ``--json``. ``planned`` is the run, perhaps under another name."""
    options: Options = recipe.task
    config = templates.model_config(recipe.model)
    datasets = _datasets(recipe, planned)
    used = sum(dataset["used"] for dataset in datasets)
    share = options.epochs * (max(0.0, 1 - options.evaluation.rows / used) if used else 1.0)  # of rows not held out
    tokens = options.tokens or round(sum(dataset["tokens"] * dataset["weight"] for dataset in datasets) * share)
    batch, length = global_batch(options), options.sequence_length
    packing = _packing(recipe, config)
    if packing != "no" or options.tokens:
        sequences = tokens / length
    else:
        sequences = sum(_sequences(dataset, length) * dataset["weight"] for dataset in datasets) * share
    estimate: TrainingEstimate = {
        "model": {"name": recipe.model.name, "family": config.get("model_type")},
        "datasets": datasets,
        "packing": packing,
        "sequence_length": length,
        "batch": {"sequences": batch, "tokens": batch * length},
        "estimated_tokens_trained": tokens,
        "estimated_steps": max(1, steps_of(ceil(sequences), batch)),
        "epochs": None if options.tokens else options.epochs,
        "memory": [],
    }
    try:
        model = architecture.read(config)
    except HalaError as error:
        estimate["memory_unknown"] = str(error)
    else:
        _add_cost(estimate, recipe, model, config.get("attn_implementation"))
    return estimate


def hardware(recipe: Recipe) -> list[tuple[str, int, int]]:
    """Label, nodes and ranks on each: the site's own first."""
    own = (recipe.site.slurm.nodes_per_worker, train.ranks_per_node(recipe.site))
    others = [(f"{nodes}x{gpus}", nodes, gpus) for nodes, gpus in HARDWARE if (nodes, gpus) != own]
    return [(f"{own[0]}x{own[1]} (site)", *own), *others]


def on_hardware(
    model: Architecture, options: Options, nodes: int, gpus: int, attention: str | None = None
) -> Memory | str:
    """Memory per GPU there, or why the recipe cannot run there."""
    try:
        return memory.estimate(model, options, nodes * gpus, attention=attention)
    except HalaError as error:
        return error.message


def gpu_hours(model: Architecture, options: Options, tokens: int) -> float:
    """Hours of one GPU: FLOPs per token times tokens, over peak times the assumed MFU."""
    weights, layers = architecture.count(model).computing, model.attentions or 1
    flops = architecture.flops_per_token(weights, layers, model.queries, options.sequence_length)
    share = MFU * (RECOMPUTED if options.activation_checkpointing else 1.0)
    return flops * tokens / (architecture.PEAK_BF16[GPU] * share) / 3600


def _add_cost(estimate: TrainingEstimate, recipe: Recipe, model: Architecture, attention: str | None) -> None:
    """Memory, disk and hours of a model whose form is known."""
    options: Options = recipe.task
    hours = gpu_hours(model, options, estimate["estimated_tokens_trained"])
    memory_gb = recipe.site.slurm.gpu_memory_gb
    room = GPU_BYTES if memory_gb is None else round(memory_gb * 1024**3)
    for label, nodes, gpus in hardware(recipe):
        needed = on_hardware(model, options, nodes, gpus, attention)
        row: HardwareEstimate = {"hardware": label, "gpus": nodes * gpus, "hours": hours / (nodes * gpus)}
        if isinstance(needed, str):
            row["refused"] = needed
        else:
            row = {**row, **asdict(needed), "total": needed.total, "fits": needed.fits(room)}  # type: ignore[typeddict-item]
        estimate["memory"].append(row)
    weights = architecture.count(model).total
    state = 12 if not options.deepspeed.stage else 14  # weights and Adam's moments; of ZeRO also the bfloat16 weights
    estimate["weights"] = weights
    estimate["gpu_bytes"] = room
    # One more checkpoint than are kept is there while it is written.
    estimate["disk"] = {"checkpoints": state * weights * (options.save.keep + 1), "model": 2 * weights}
    estimate["gpu_hours"] = hours
    estimate["assumed"] = {
        "gpu": f"{GPU} of {room / 1024**3:g} GB",
        "mfu": MFU,
        "mfu_recomputing": MFU * RECOMPUTED,
    }


def _datasets(recipe: Recipe, planned: Path) -> list[dict[str, Any]]:
    mixture = recipe.task.datasets
    read = expected.of_runs(zip(mixture, train.prepare_runs(planned, recipe), strict=True))
    return [{**rows, "kind": mixture[rows["name"]].kind, "weight": mixture[rows["name"]].weight} for rows in read]


def _sequences(dataset: Mapping[str, Any], length: int) -> float:
    """Sequences of a dataset that is not packed: its rows, or the pieces of its texts."""
    rows = float(dataset["used"])
    return max(rows, dataset["tokens"] / length) if dataset["kind"] == "text" else rows


def _packing(recipe: Recipe, config: Mapping[str, Any]) -> str:
    """Whether documents will share sequences: known only on the node where a kernel decides."""
    packing: bool | None = recipe.task.packing
    if packing is not None:
        return "yes" if packing else "no"
    if not is_convolutional(dict(config)):
        return "yes"
    on_gpu = recipe.site.slurm.gpus_per_worker > 0
    return f"where {KERNEL} is installed" if on_gpu and config.get("model_type") == "lfm2" else "no"
