"""What a training will take, worked out when it is planned: its data, its steps, each GPU's memory, GPU-hours."""

from collections.abc import Mapping
from dataclasses import asdict
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Recipe

if TYPE_CHECKING:
    from hala_hpc.tasks.train.estimate.architecture import Architecture
    from hala_hpc.tasks.train.estimate.memory import Memory
    from hala_hpc.tasks.train.options import Options

GPU: Final = "H100"
GPU_BYTES: Final = 80 * 1024**3
"""Of the GPUs that the table assumes where ``site.slurm.gpu_memory_gb`` is not set: an A100 or H100 of 80 GB."""
HARDWARE: Final = ((1, 8), (2, 8), (4, 8))
"""Nodes and GPUs on each, beside what the site has."""
MFU: Final = 0.4
"""Model FLOPs utilization assumed for GPU-hours (ours, not measured): well-fed GPUs reach 0.3 to 0.5."""
RECOMPUTED: Final = 0.75
"""With activation checkpointing the forward pass is done twice, so three quarters of the work count."""
PARTS: Final = ("parameters", "gradients", "optimizer", "activations", "working")
SUM: Final = (*PARTS, "total")


def summary(recipe: Recipe, planned: Path) -> dict[str, Any]:
    """Plain data for the table and for ``--json``. ``planned`` is the run, perhaps under another name."""
    from hala_hpc.data.chat import templates
    from hala_hpc.tasks.train.options import global_batch, steps_of

    options: Options = recipe.task
    config = templates.model_config(recipe.model)
    datasets = _datasets(recipe, planned)
    share = options.epochs * _trained_share(options, datasets)
    tokens = options.tokens or round(sum(each["tokens"] * each["weight"] for each in datasets) * share)
    batch = global_batch(options)
    packing = _packing(recipe, config)
    if packing != "no" or options.tokens:
        sequences = tokens / options.sequence_length
    else:
        sequences = sum(_sequences(each, options.sequence_length) * each["weight"] for each in datasets) * share
    found = {
        "model": {"name": recipe.model.name, "family": config.get("model_type")},
        "datasets": datasets,
        "packing": packing,
        "sequence_length": options.sequence_length,
        "batch": {"sequences": batch, "tokens": batch * options.sequence_length},
        "estimated_tokens_trained": tokens,
        "estimated_steps": max(1, steps_of(ceil(sequences), batch)),
        "epochs": None if options.tokens else options.epochs,
    }
    return found | _cost(recipe, config, tokens)


def hardware(site: Recipe) -> list[tuple[str, int, int]]:
    """Label, nodes and ranks on each: the site's own first."""
    from hala_hpc.tasks.train import task as train

    own = (site.site.slurm.nodes_per_worker, train.ranks_per_node(site.site))
    others = [(f"{nodes}x{gpus}", nodes, gpus) for nodes, gpus in HARDWARE if (nodes, gpus) != own]
    return [(f"{own[0]}x{own[1]} (site)", *own), *others]


def on_hardware(
    model: "Architecture", options: "Options", nodes: int, gpus: int, attention: str | None = None
) -> "Memory | str":
    """Memory per GPU there, or why the recipe cannot run there."""
    from hala_hpc.tasks.train.estimate import memory

    try:
        return memory.estimate(model, options, nodes * gpus, attention=attention)
    except HalaError as error:
        return error.message


def gpu_hours(model: "Architecture", options: "Options", tokens: int) -> float:
    """Hours of one GPU: FLOPs per token (see ``flops``) times tokens, over peak times the assumed MFU."""
    from hala_hpc.tasks.train.estimate import architecture

    attention = model.attentions or 1
    each = architecture.flops_per_token(
        architecture.count(model).computing, attention, model.queries, options.sequence_length
    )
    share = MFU * (RECOMPUTED if options.activation_checkpointing else 1.0)
    return each * tokens / (architecture.PEAK_BF16[GPU] * share) / 3600


def _cost(recipe: Recipe, config: Mapping[str, Any], tokens: int) -> dict[str, Any]:
    """Memory and hours, as far as the model's form is known."""
    from hala_hpc.tasks.train.estimate import architecture

    options: Options = recipe.task
    try:
        model = architecture.read(config)
    except HalaError as error:
        return {"memory": [], "memory_unknown": str(error)}
    hours = gpu_hours(model, options, tokens)
    memory_gb = recipe.site.slurm.gpu_memory_gb
    room = GPU_BYTES if memory_gb is None else round(memory_gb * 1024**3)
    rows = []
    for label, nodes, gpus in hardware(recipe):
        found = on_hardware(model, options, nodes, gpus, config.get("attn_implementation"))
        row: dict[str, Any] = {"hardware": label, "gpus": nodes * gpus, "hours": hours / (nodes * gpus)}
        if isinstance(found, str):
            rows.append(row | {"refused": found})
        else:
            rows.append(row | asdict(found) | {"total": found.total, "fits": found.fits(room)})
    weights = architecture.count(model).total
    state = 12 if not options.deepspeed.stage else 14  # weights and Adam's moments; of ZeRO also the bfloat16 weights
    return {
        "weights": weights,
        "gpu_bytes": room,
        # One more than are kept is there while it is written.
        "disk": {"checkpoints": state * weights * (options.save.keep + 1), "model": 2 * weights},
        "memory": rows,
        "gpu_hours": hours,
        "assumed": {"gpu": f"{GPU} of {room / 1024**3:g} GB", "mfu": MFU, "mfu_recomputing": MFU * RECOMPUTED},
    }


def _datasets(recipe: Recipe, planned: Path) -> list[dict[str, Any]]:
    from hala_hpc.tasks.train import task as train
    from hala_hpc.tasks.train.prepare import expected

    asked = recipe.task.datasets
    read = expected.of_runs(zip(asked, train.prepare_runs(planned, recipe), strict=True))
    return [each | {"kind": asked[each["name"]].kind, "weight": asked[each["name"]].weight} for each in read]


def _trained_share(options: "Options", datasets: list[dict[str, Any]]) -> float:
    """Of the rows that are used, those that are not held out."""
    used = sum(each["used"] for each in datasets)
    return max(0.0, 1 - options.evaluation.rows / used) if used else 1.0


def _sequences(each: Mapping[str, Any], length: int) -> float:
    """Of a dataset that is not packed: its rows, or the pieces of its texts."""
    return float(max(each["used"], each["tokens"] / length)) if each["kind"] == "text" else float(each["used"])


def _packing(recipe: Recipe, config: Mapping[str, Any]) -> str:
    """Whether documents will share sequences: known only on the node where a kernel decides."""
    from hala_hpc.tasks.train.options import KERNEL, is_convolutional

    options: Options = recipe.task
    if options.packing is not None:
        return "yes" if options.packing else "no"
    if not is_convolutional(dict(config)):
        return "yes"
    on_gpu = recipe.site.slurm.gpus_per_worker > 0
    return f"where {KERNEL} is installed" if on_gpu and config.get("model_type") == "lfm2" else "no"
