"""What a training will take, worked out when it is planned: its data and steps, each GPU's memory, GPU-hours."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any, Final, NotRequired, TypedDict

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Recipe
from hala_hpc.data import templates
from hala_hpc.tasks.train import task as train
from hala_hpc.tasks.train.estimate import architecture
from hala_hpc.tasks.train.estimate.architecture import Architecture
from hala_hpc.tasks.train.options import KERNEL, Options, can_pack, global_batch, layout, steps_of
from hala_hpc.tasks.train.prepare import expected


@dataclass(frozen=True)
class Execution:
    """How the layers run.

    ``attention`` is eager, sdpa or another of transformers' names, for kernels that need no mask. Matrix products are
    of numbers of ``width`` bytes, and so is all else, but for ``autocast``: then weights and the residual stream are
    float32. ``fused``: liger's kernels replace norms and MLP; they keep a norm's input, and gate and up of an MLP.
    """

    attention: str
    autocast: bool
    width: int
    fused: bool

    @property
    def stream(self) -> int:
        """Bytes of one number of the residual stream."""
        return 4 if self.autocast else self.width


def _common(model: Architecture, execution: Execution) -> float:
    """Norms and MLP, which every layer has."""
    norms, reads = model.family.norms, 3 if model.attentions else 1
    # A single norm is read by attention and MLP side by side.
    readers = [5] if norms == 1 else [reads, 2, *[0] * (norms - 2)]
    kept = sum(_norm(model, execution, number) for number in readers)
    return kept + (3 if execution.fused else 4) * execution.width * model.intermediate


def _norm(model: Architecture, execution: Execution, readers: int) -> float:
    """One norm, and its output as far as matrix products read it; autocast makes a copy for each of ``readers``."""
    # Without fusion: the input in float32, and what is multiplied by the weight.
    kept = execution.stream if execution.fused else max(4 + execution.stream, model.family.norm_bytes)
    return model.hidden * (kept + (2 * readers if execution.autocast else execution.width * (readers > 0)))


def _attention(model: Architecture, execution: Execution, length: int) -> float:
    width = execution.width
    if execution.attention == "eager":
        kept = width * 4 * model.queries + (4 + width + width * model.softcap) * model.heads * length
    elif execution.attention == "sdpa":  # with a mask, which becomes numbers in each layer, keys are repeated per head
        kept = width * (4 * model.queries + length) + 4 * model.heads
    else:
        kept = width * (2 * model.queries + 2 * model.keys) + 4 * model.heads
    return kept + (4 + width) * (model.queries + model.keys) * model.family.head_norms


USABLE = 0.9
"""Share of a GPU that tensors may take (ours): the rest is CUDA's context, NCCL's buffers and fragments."""
TILE_TOKENS, TILE_WORDS = 4096, 32768
"""TRL's fused head never has all logits: it goes through them in tiles of so many tokens and words."""
DEEPSPEED: Final = {
    "stage3_max_live_parameters": 1_000_000_000,  # ZeRO-3 gathers the weights it is about to use, so many at once
    "reduce_bucket_size": 500_000_000,  # gradients that ZeRO-2 collects before it sends them
    "sub_group_size": 1_000_000_000,  # ZeRO-3 updates so many weights at once
}
"""What DeepSpeed takes where its file does not say."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU. ``working``: buffers of DeepSpeed, gathered weights, the head's tiles, at the worst moment."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    working: int

    @property
    def total(self) -> int:
        """The most that is held at once."""
        return self.parameters + self.gradients + self.optimizer + self.activations + self.working

    def fits(self, gpu_bytes: float) -> bool:
        """Whether a GPU of so many bytes has room for it."""
        return self.total <= USABLE * gpu_bytes


def estimate(model: Architecture, options: Options, world: int, attention: str | None = None) -> Memory:
    """Memory per GPU.

    Parameters
    ----------
    world : number of GPUs. Raises HalaError where the global batch does not divide by it.
    attention : transformers' implementation where the recipe names none; else eager with soft-capping, and sdpa.
    """
    stage = options.deepspeed.stage
    spread = layout(options, world)
    tokens = spread.per_device * options.sequence_length
    is_mixed = options.precision == "bfloat16"
    execution = Execution(
        attention=options.attention or attention or ("eager" if model.softcap else "sdpa"),
        autocast=is_mixed and not stage,
        width=2 if is_mixed else 4,
        fused="liger" in options.kernels and model.family.is_fusible,
    )
    kept = _activations(model, execution, options, tokens)
    zero = (options.deepspeed.settings() or {}).get("zero_optimization", {})
    held = _states(model.weights, stage, execution.width, world)
    backward, step = _working(model, execution, stage, zero, world, tokens)
    return Memory(*held, activations=kept, working=max(backward, step - kept))


def _states(total: int, stage: int, width: int, world: int) -> tuple[int, int, int]:
    """Parameters, gradients and optimizer: ZeRO spreads the last two over all GPUs, and stage 3 the first as well.

    Without DeepSpeed weights are float32, so that there is no master copy beside Adam's two moments.
    """
    if not stage:
        return 4 * total, 4 * total, 8 * total
    share = -(-total // world)
    return width * (total if stage == 2 else share), width * share, 12 * share  # a float32 copy, even of float32


def _activations(model: Architecture, execution: Execution, options: Options, tokens: int) -> int:
    """What the forward pass keeps; with activation checkpointing the layers' inputs, and the largest layer anew."""
    length = options.sequence_length
    attention = _attention(model, execution, length) if model.attentions else 0.0
    # Three gates, their product, the convolution's result and the product with the last gate.
    convolution = 6 * execution.width * model.hidden if model.convolutions else 0.0
    both = _common(model, execution)
    if options.activation_checkpointing:
        kept = (model.layers + 1) * execution.stream * model.hidden + max(attention, convolution) + both
    else:
        kept = model.attentions * attention + model.convolutions * convolution + model.layers * both
        kept += length if execution.attention in ("eager", "sdpa") else 0  # a mask of truth values, for all layers
        kept += _norm(model, execution, 0) + execution.stream * model.hidden  # the last norm and the embedding
    # Under autocast the forward pass makes a bfloat16 copy of each matrix, and keeps it.
    return (2 * (model.weights - model.tables) if execution.autocast else 0) + round(tokens * kept)


def _working(
    model: Architecture, execution: Execution, stage: int, zero: Mapping[str, Any], world: int, tokens: int
) -> tuple[int, int]:
    """Bytes beside states and activations: in the backward pass, and in the optimizer's step."""
    weights, width = model.weights, execution.width
    tile = min(tokens, TILE_TOKENS) * TILE_WORDS * width
    # The head adds up its gradient in float32, then makes one of the weight's own type of it.
    head = tile + 4 * tokens * model.hidden + (4 + (0 if execution.stream == 4 else width)) * model.embedding
    if not stage:
        return head + (4 * weights if world > 1 else 0), 0  # DDP's buckets are a second copy of the gradients
    share = -(-weights // world)
    given = {key: int(zero[key]) for key in DEEPSPEED if zero.get(key, "auto") != "auto"}
    # Transformers fills in ZeRO-3's bucket from the model's width.
    sizes = DEEPSPEED | ({"reduce_bucket_size": model.hidden**2} if stage == 3 else {}) | given
    bucket = sizes["reduce_bucket_size"]
    if stage == 2:
        buckets = 2 if zero.get("overlap_comm", False) else 1
        return head + buckets * bucket * width, (4 + width) * share
    gathered, updated = min(weights, sizes["stage3_max_live_parameters"]), min(share, sizes["sub_group_size"])
    return head + width * (gathered + bucket), (4 + width) * updated


GPU: Final = "H100"
GPU_BYTES: Final = 80 * 1024**3
"""The memory of a GPU where ``site.slurm.gpu_memory_gb`` is not set: an A100 or H100 of 80 GB."""
HARDWARE: Final = ((1, 8), (2, 8), (4, 8))
"""Nodes and GPUs on each, beside what the site has."""
MFU: Final = 0.4
"""Model FLOPs utilization assumed for GPU-hours (ours, not measured): well-fed GPUs reach 0.3 to 0.5."""
RECOMPUTED: Final = 0.75
"""With activation checkpointing the forward pass is done twice, so three quarters of the work count."""
SUM: Final = ("parameters", "gradients", "optimizer", "activations", "working", "total")


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
    shared = packing(recipe, config)
    tokens, steps = extent(options, datasets, shared != "no")
    batch, length = global_batch(options), options.sequence_length
    estimate: TrainingEstimate = {
        "model": {"name": recipe.model.name, "family": config.get("model_type")},
        "datasets": datasets,
        "packing": shared,
        "sequence_length": length,
        "batch": {"sequences": batch, "tokens": batch * length},
        "estimated_tokens_trained": tokens,
        "estimated_steps": steps,
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


def extent(options: Options, datasets: Sequence[Mapping[str, Any]], is_packed: bool) -> tuple[int, int]:
    """Tokens that a training sees, and its steps. ``datasets``: ``used`` rows, ``tokens``, ``kind`` and ``weight``."""
    used = sum(dataset["used"] for dataset in datasets)
    share = options.epochs * (max(0.0, 1 - options.evaluation.rows / used) if used else 1.0)  # of rows not held out
    tokens = options.tokens or round(sum(dataset["tokens"] * dataset["weight"] for dataset in datasets) * share)
    batch, length = global_batch(options), options.sequence_length
    if is_packed or options.tokens:
        sequences = tokens / length
    else:
        sequences = sum(_sequences(dataset, length) * dataset["weight"] for dataset in datasets) * share
    return tokens, max(1, steps_of(ceil(sequences), batch))


def hardware(recipe: Recipe) -> list[tuple[str, int]]:
    """Label and number of GPUs: the site's own first."""
    own = (recipe.site.slurm.nodes_per_worker, train.ranks_per_node(recipe.site))
    others = [(f"{nodes}x{gpus}", nodes * gpus) for nodes, gpus in HARDWARE if (nodes, gpus) != own]
    return [(f"{own[0]}x{own[1]} (site)", own[0] * own[1]), *others]


def gpu_hours(model: Architecture, options: Options, tokens: int) -> float:
    """Hours of one GPU: FLOPs per token times tokens, over peak times the assumed MFU."""
    layers, length = model.attentions or 1, options.sequence_length
    flops = architecture.flops_per_token(model.computing, layers, model.queries, length)
    share = MFU * (RECOMPUTED if options.activation_checkpointing else 1.0)
    return flops * tokens / (architecture.PEAK_BF16[GPU] * share) / 3600


def _add_cost(taken: TrainingEstimate, recipe: Recipe, model: Architecture, attention: str | None) -> None:
    """Memory, disk and hours of a model whose form is known."""
    options: Options = recipe.task
    hours = gpu_hours(model, options, taken["estimated_tokens_trained"])
    memory_gb = recipe.site.slurm.gpu_memory_gb
    room = GPU_BYTES if memory_gb is None else round(memory_gb * 1024**3)
    for label, gpus in hardware(recipe):
        row: HardwareEstimate = {"hardware": label, "gpus": gpus, "hours": hours / gpus}
        try:
            needed = estimate(model, options, gpus, attention)
            row = {**row, **asdict(needed), "total": needed.total, "fits": needed.fits(room)}  # type: ignore[typeddict-item]
        except HalaError as error:
            row["refused"] = error.message
        taken["memory"].append(row)
    weights = model.weights
    state = 12 if not options.deepspeed.stage else 14  # weights and Adam's moments; of ZeRO also the bfloat16 weights
    taken["weights"] = weights
    taken["gpu_bytes"] = room
    # One more checkpoint than are kept is there while it is written.
    taken["disk"] = {"checkpoints": state * weights * (options.save.keep + 1), "model": 2 * weights}
    taken["gpu_hours"] = hours
    taken["assumed"] = {
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


def packing(recipe: Recipe, config: Mapping[str, Any]) -> str:
    """Whether documents will share sequences: known only on the node where a kernel decides."""
    wanted: bool | None = recipe.task.packing
    if wanted is not None:
        return "yes" if wanted else "no"
    on_gpu = recipe.site.slurm.gpus_per_worker > 0
    if can_pack(config, on_gpu, has_kernel=False):
        return "yes"
    return f"where {KERNEL} is installed" if can_pack(config, on_gpu, has_kernel=True) else "no"
