"""What ``hala plan`` tells of a training: its data, its steps, each GPU's memory by part, GPU-hours."""

from collections.abc import Mapping
from dataclasses import asdict
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hala_hpc.cli import training_data
from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Recipe
from hala_hpc.config.words import plural

if TYPE_CHECKING:
    from hala_hpc.training.architecture import Architecture
    from hala_hpc.training.memory import Memory
    from hala_hpc.training.options import Options

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
    from hala_hpc.training import templates
    from hala_hpc.training.layout import global_batch, steps_of

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
    from hala_hpc.tasks import train

    own = (site.site.slurm.nodes_per_worker, train.ranks_per_node(site.site))
    others = [(f"{nodes}x{gpus}", nodes, gpus) for nodes, gpus in HARDWARE if (nodes, gpus) != own]
    return [(f"{own[0]}x{own[1]} (site)", *own), *others]


def on_hardware(
    model: "Architecture", options: "Options", nodes: int, gpus: int, attention: str | None = None
) -> "Memory | str":
    """Memory per GPU there, or why the recipe cannot run there."""
    from hala_hpc.training import memory

    try:
        return memory.estimate(model, options, nodes * gpus, attention=attention)
    except HalaError as error:
        return error.message


def gpu_hours(model: "Architecture", options: "Options", tokens: int) -> float:
    """Hours of one GPU: FLOPs per token (``training.flops``) times tokens, over peak times the assumed MFU."""
    from hala_hpc.training import flops, parameters

    attention = model.attentions or 1
    each = flops.flops_per_token(parameters.count(model).computing, attention, model.queries, options.sequence_length)
    share = MFU * (RECOMPUTED if options.activation_checkpointing else 1.0)
    return each * tokens / (flops.PEAK_BF16[GPU] * share) / 3600


def _cost(recipe: Recipe, config: Mapping[str, Any], tokens: int) -> dict[str, Any]:
    """Memory and hours, as far as the model's form is known."""
    from hala_hpc.training import architecture, parameters

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
    weights = parameters.count(model).total
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
    from hala_hpc.tasks import train

    asked = recipe.task.datasets
    read = training_data.read(zip(asked, train.prepare_runs(planned, recipe), strict=True))
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
    from hala_hpc.training import packable

    options: Options = recipe.task
    if options.packing is not None:
        return "yes" if options.packing else "no"
    if not packable.is_convolutional(dict(config)):
        return "yes"
    on_gpu = recipe.site.slurm.gpus_per_worker > 0
    return f"where {packable.KERNEL} is installed" if on_gpu and config.get("model_type") == "lfm2" else "no"


def show(found: Mapping[str, Any]) -> None:
    """The tables, on standard output."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(soft_wrap=True)
    wide = Console(width=max(console.width, 250))  # a terminal may break its lines, but no number is cut off
    wide.print(training_data.table(found["datasets"]))
    for line in training_data.loud(found["datasets"]):
        console.print(f"[bold red]{escape(line)}[/]")
    console.print()
    facts = Table(show_header=False, box=None, pad_edge=False)
    weights = f", {found['weights']:,} weights" if "weights" in found else ""
    facts.add_row("model", f"{escape(found['model']['name'])}  [dim]{found['model']['family']}{weights}[/]")
    batch = found["batch"]
    facts.add_row(
        "batch", f"{batch['sequences']:,} sequences of {found['sequence_length']:,} tokens: {batch['tokens']:,}"
    )
    facts.add_row("packing", found["packing"])
    epochs = "" if found["epochs"] is None else f", {found['epochs']:g} epochs"
    told = f"about {found['estimated_tokens_trained']:,} tokens, {plural(found['estimated_steps'], 'step')}{epochs}"
    facts.add_row("training", told)
    if disk := found.get("disk"):
        sizes = f"{_gigabytes(disk['checkpoints'])} of checkpoints, {_gigabytes(disk['model'])} of the model"
        facts.add_row("disk", f"about {sizes}")
    console.print(facts)
    if not found["memory"]:
        console.print(f"memory: {found['memory_unknown']}")
        return
    console.print(_memory(found))
    for row in found["memory"]:
        if "refused" in row:
            console.print(f"{row['hardware']}: {row['refused']}")
    own = found["memory"][0]
    if not own.get("fits", False):
        why = own.get("refused") or f"it needs {own['total'] / 1024**3:,.3g} GiB of each GPU's {_room(found):g}"
        console.print(f"[bold red]This training does not fit on what the site gives it ({own['hardware']}): {why}[/]")
    if not any(row.get("fits") for row in found["memory"]):
        console.print("[bold red]It fits on none of these. A larger deepspeed.stage, a smaller batch.per_device, …[/]")
    assumed = found["assumed"]
    share = f"{assumed['mfu']:.0%} MFU ({assumed['mfu_recomputing']:.0%} with activation checkpointing)"
    console.print(
        f"[dim]Estimated GiB of memory on each GPU; it fits where a tenth of {_room(found):g} GiB is left over.\n"
        f"About {_hours(found['gpu_hours'])} GPU-hours: assumes {share}\nof {GPU}s, at 6 N + 12 L H T FLOPs a token.[/]"
    )


def _memory(found: Mapping[str, Any]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("GPUs", "weights", "gradients", "optimizer", "activ.", "working", "total", "fits", "hours"):
        table.add_column(name, no_wrap=True, justify="left" if name in ("GPUs", "fits") else "right")
    for row in found["memory"]:
        if "refused" in row:
            table.add_row(row["hardware"], *["-"] * (len(PARTS) + 1), "[red]no[/]")
            continue
        numbers = [
            f"{row[part] / 1024**3:.1f}" if row["total"] > 1024**3 else f"{row[part] / 1024**3:.3f}" for part in SUM
        ]
        fits = "[green]yes[/]" if row["fits"] else "[red]no[/]"
        table.add_row(row["hardware"], *numbers, fits, _hours(row["hours"]))
    return table


def _hours(hours: float) -> str:
    return f"{hours:,.1f}" if hours >= 1 else f"{hours:.2g}" if hours >= 0.001 else "<0.001"


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"


def _room(found: Mapping[str, Any]) -> float:
    return float(found["gpu_bytes"] / 1024**3)
