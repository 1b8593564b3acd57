"""The options of a training (the ``task:`` section of ``kind: train``), and which of them a model allows."""

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hala_hpc.config import places
from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import PATH, Data, TaskOptions
from hala_hpc.data.documents import Kind


@dataclass
class Dataset(Data):
    """One part of the mixture. ``chat`` rows go through the chat template; ``completion`` rows are prompt and answer.

    ``columns`` of a completion dataset: those of the prompt (joined by an empty line), and last that of the answer.
    """

    kind: Kind = "chat"
    weight: float = 1.0  # how often each row is seen per epoch: 0.5 every other row, 2 each twice
    leave_out: list[str] = field(default_factory=list)  # what the chat template may leave out: tools, system, …
    control_tokens: list[str] = field(default_factory=list)  # words that stay control tokens in data, too


@dataclass
class Batch:
    """The global batch: what one optimizer step sees, however many GPUs there are. Give one of the two."""

    sequences: int | None = None
    tokens: int | None = None  # in sequences of task.sequence_length
    per_device: int = 1  # at most so many sequences in one forward pass of one GPU


@dataclass
class Optimizer:
    """AdamW (DeepSpeed's or torch's own, as the stage has it)."""

    learning_rate: float = 1e-5  # observed (Latxa)
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])  # observed (Latxa)
    epsilon: float = 1e-8  # observed (Latxa)
    weight_decay: float = 0.1  # observed (Latxa); norms and biases are left out
    max_grad_norm: float = 1.0  # ours


@dataclass
class Schedule:
    """Learning rate over the steps: linear warm-up, then down to ``minimum`` of the peak."""

    kind: Literal["cosine", "linear", "constant"] = "cosine"  # observed (Latxa)
    warmup: float = 0.1  # share of all steps; observed (Latxa)
    minimum: float = 0.0  # share of the peak; Latxa a third


@dataclass
class DeepSpeed:
    """``stage`` 0 is plain data parallelism (DDP). ``file``: a configuration instead of hpc/deepspeed/zeroN.json."""

    stage: Literal[0, 2, 3] = 0
    file: str | None = field(default=None, metadata=PATH)

    def settings(self) -> dict[str, Any] | None:
        """DeepSpeed's own configuration; None for stage 0. Raises HalaError for a file of another stage."""
        if not self.stage:
            return None
        path = Path(self.file) if self.file else places.shipped(f"deepspeed/zero{self.stage}.json")
        try:
            settings: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise HalaError(f"task.deepspeed.file: {path}: {error}") from error
        if (stage := settings.get("zero_optimization", {}).get("stage")) != self.stage:
            raise HalaError(f"task.deepspeed.file: {path} is for stage {stage}, not {self.stage}")
        return settings


@dataclass
class Evaluation:
    """Rows held out of the training; their loss is measured every so many steps and at the end."""

    rows: int = 0  # of the whole mixture, drawn by the seed; 0: none
    steps: int = 500


@dataclass
class Save:
    """Checkpoints to resume from: by minutes and by steps, whichever comes first, on a stop signal and at the end."""

    minutes: float = 30.0  # ours: the most that a dead node costs
    steps: int | None = None
    keep: int = 2  # newest complete ones; ours: one may be found broken


@dataclass
class Watchdog:
    """When a training is taken for hung or diverging."""

    stall_factor: float = 10.0  # so many times the usual seconds without the end of a step
    stall_seconds: float = 120.0  # but never sooner than this
    start_seconds: float = 1800.0  # loading, compiling and the first step may take so long
    restarts: int = 5  # without a checkpoint made in between: then a person has to look
    loss_leap: float | None = 3.0  # stop when a loss is this many times the running mean; null: never
    preflight: bool = True
    slowest: float = 0.5  # a node whose all-reduce has less than this share of the median bandwidth is left out


@dataclass
class Options(TaskOptions):
    """The recipe's ``task:`` section for ``kind: train``."""

    kind: str = "train"
    datasets: dict[str, Dataset] = field(default_factory=dict)
    chat_template: str | None = field(default=None, metadata=PATH)  # a Jinja file instead of the tokenizer's own
    sequence_length: int = 4096
    too_long: Literal["refuse", "drop", "truncate"] = "refuse"  # chat and completion rows; texts are cut in pieces
    packing: bool | None = None  # null: where the model can keep documents apart
    batch: Batch = field(default_factory=Batch)
    epochs: float = 1.0
    tokens: int | None = None  # instead of epochs: so many tokens (padding included), over and over if need be
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    neftune: float | None = None  # noise on the embeddings (Latxa: 5)
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    attention: str | None = None  # transformers' attn_implementation; null: the model's own choice
    deepspeed: DeepSpeed = field(default_factory=DeepSpeed)
    activation_checkpointing: bool = False
    kernels: list[str] = field(default_factory=list)  # liger
    evaluation: Evaluation = field(default_factory=Evaluation)
    save: Save = field(default_factory=Save)
    watch: Watchdog = field(default_factory=Watchdog)
    report_to: list[str] = field(default_factory=lambda: ["tensorboard"])  # also wandb, trackio: offline
    loader_workers: int = 2  # processes per GPU that put batches together
    seed: int = 42
    prepared: str | None = field(default=None, metadata=PATH)  # tokenized datasets; null: in the run itself


@dataclass
class PrepareOptions(TaskOptions):
    """The recipe's ``task:`` section for ``kind: prepare``: rows of one dataset become tokens, once."""

    kind: str = "prepare"
    rows: Kind = "chat"
    chat_template: str | None = field(default=None, metadata=PATH)
    sequence_length: int = 4096
    too_long: Literal["refuse", "drop", "truncate"] = "refuse"
    leave_out: list[str] = field(default_factory=list)  # of marks.NAMES
    control_tokens: list[str] = field(default_factory=list)


CAPPED = "attn_logit_softcapping"
"""Key of the config of models (Gemma 2) whose attention scores are capped, which ``sdpa`` leaves out in silence."""


def attention_of(config: Mapping[str, Any], attention: str | None) -> str | None:
    """Transformers' ``attn_implementation``; None leaves it to the model. Raises HalaError for one that is wrong."""
    if not config.get(CAPPED):
        return attention
    if attention == "sdpa":
        raise HalaError(
            f"task.attention: sdpa leaves out what {config.get('model_type')} does to its scores (soft-capping)",
            "eager, flash_attention_2 or flex_attention",
        )
    return attention or "eager"


CONVOLUTIONAL = ("lfm2", "mamba", "mamba2", "falcon_mamba", "jamba", "bamba", "zamba2", "granitemoehybrid", "falcon_h1")
"""Model types whose layers mix neighbouring tokens outside attention: only a kernel keeps documents apart there."""
KERNEL = "causal_conv1d"
"""The package whose convolution takes ``seq_idx``; for LFM2 (transformers 5.17) it is enough."""


def is_convolutional(config: Mapping[str, Any]) -> bool:
    """By the ``config.json`` of a model."""
    return config.get("model_type") in CONVOLUTIONAL or "conv" in (config.get("layer_types") or ())


def can_pack(config: Mapping[str, Any], on_gpu: bool, has_kernel: bool | None = None) -> bool:
    """Whether documents may share a sequence: attention tells them apart by their positions, convolutions do not.

    ``has_kernel`` is whether ``KERNEL`` is there where the training runs; null looks here.
    """
    if not is_convolutional(config):
        return True
    if has_kernel is None:
        has_kernel = importlib.util.find_spec(KERNEL) is not None
    return config.get("model_type") == "lfm2" and on_gpu and has_kernel


@dataclass(frozen=True)
class Layout:
    """``per_device`` sequences go through one GPU at once, ``accumulation`` times a step, on ``world`` GPUs."""

    world: int
    per_device: int
    accumulation: int


def global_batch(options: Options) -> int:
    """Sequences that one optimizer step sees. Raises HalaError unless exactly one of the two measures is given."""
    sequences, tokens, length = options.batch.sequences, options.batch.tokens, options.sequence_length
    if sequences is not None and tokens is None:
        if sequences < 1:
            raise HalaError(f"task.batch.sequences: {sequences} must be at least 1")
        return sequences
    if tokens is None or sequences is not None:
        raise HalaError("task.batch: give either sequences or tokens", "for example task.batch.sequences=256")
    if tokens < 1 or tokens % length:
        raise HalaError(
            f"task.batch.tokens: {tokens} is not a multiple of task.sequence_length, {length}",
            f"for example {max(1, round(tokens / length)) * length}",
        )
    return tokens // length


def steps_of(sequences: int, batch: int) -> int:
    """Optimizer steps of so many sequences; the last may be shorter than the others."""
    return -(-sequences // batch)


def layout(options: Options, world: int) -> Layout:
    """Spread the global batch over ``world`` GPUs, with as many sequences at once as ``per_device`` allows.

    Raises HalaError where the batch does not divide by the number of GPUs.
    """
    sequences, most = global_batch(options), options.batch.per_device
    if most < 1:
        raise HalaError(f"task.batch.per_device: {most} must be at least 1")
    if sequences % world:
        below, above = sequences // world * world, (sequences // world + 1) * world
        raise HalaError(
            f"task.batch: {sequences} sequences do not divide by {world} GPUs",
            f"task.batch.sequences={above}" + (f" or {below}" if below else "") + ", or other nodes or GPUs",
        )
    share = sequences // world
    per_device = max(count for count in range(1, min(most, share) + 1) if share % count == 0)
    return Layout(world, per_device, share // per_device)
