"""One rank of a training, from its start to its exit code, with the model and the trainer's settings."""

import contextlib
import copy
import json
import os
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import SFTConfig

from hala_hpc.config.compose import thaw
from hala_hpc.config.errors import HalaError, plural
from hala_hpc.config.imports import heavy_imports
from hala_hpc.config.schema import Model, Recipe
from hala_hpc.data import templates
from hala_hpc.run.files import remove_tree, write_durably
from hala_hpc.run.layout import RunDirectory
from hala_hpc.slurm.allocation import StopFlag
from hala_hpc.tasks.train import card, metrics, paths
from hala_hpc.tasks.train import task as train
from hala_hpc.tasks.train.checkpoints import Checkpoints, Saved
from hala_hpc.tasks.train.estimate.architecture import flops_per_token
from hala_hpc.tasks.train.export import model as export
from hala_hpc.tasks.train.launch.signs import DIVERGED, REFUSED, STOPPED, TRAINED, HeartbeatWriter, RankPlace
from hala_hpc.tasks.train.options import Layout, Options, attention_of, is_convolutional, layout
from hala_hpc.tasks.train.order import index
from hala_hpc.tasks.train.order.packing import Prepared
from hala_hpc.tasks.train.prepare import task as prepare
from hala_hpc.tasks.train.rank.batches import Batches, Collate, Loader
from hala_hpc.tasks.train.rank.together import Together
from hala_hpc.tasks.train.rank.trainer import Diverged, HalaTrainer, RankData, Saving
from hala_hpc.worker import registry, tracking
from hala_hpc.worker.task import say


def main(path: Path, here: RankPlace) -> int:
    """Train the run until its end, a stop or a failure. See ``launch.signs`` for the exit codes."""
    heartbeat = HeartbeatWriter(path, here.launch, here.rank)
    try:
        return _train(path, here, heartbeat)
    except HalaError as error:
        sys.stderr.write(f"hala: error: {error}\n")
        failure = {"reason": str(error), "time": time.time()}
        with contextlib.suppress(OSError):  # the storage may be why
            write_durably(path / paths.FAILURE, json.dumps(failure).encode())
        return REFUSED
    finally:
        heartbeat.close()


def _train(path: Path, here: RankPlace, heartbeat: HeartbeatWriter) -> int:
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")  # of DeepSpeed's calls
    recipe = thaw(path / "recipe.yaml", registry.options_of)
    options: Options = recipe.task
    _start_distributed(options.deepspeed.stage, here)
    order = index.load(path / paths.INDEX)
    # As it was when the data was prepared, with the template of then.
    kept_tokenizer = train.prepare_runs(path, recipe)[0] / prepare.TOKENIZER
    tokenizer = templates.load_tokenizer(Model(name=str(kept_tokenizer)))
    # Before the model: this is how transformers learns that its weights are to be spread (ZeRO-3).
    arguments = _settings(options, path / paths.CHECKPOINTS, layout(options, here.world), order.steps)
    model = _load(recipe, on_deepspeed=options.deepspeed.stage > 0)
    kept = copy.deepcopy((model.config, model.generation_config))
    saving = Saving(options.save, order.steps, here.end_time)
    checkpoints = Checkpoints(path / paths.CHECKPOINTS, options.save.keep)
    writer = _writer(path, recipe, here) if here.is_first else None
    saved = _resume_point(checkpoints, here)
    data = _data(path, recipe, order, here, model, tokenizer, saved.step if saved else 0)
    trainer = HalaTrainer(
        options,
        data,
        checkpoints,
        saving,
        Together(path, here, saving.rest),
        heartbeat,
        writer.write if writer else None,
        _flops(model, options.sequence_length),
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"input_ids": [[0]], "labels": [[0]]}),  # TRL wants to see one
        data_collator=list,
        processing_class=tokenizer,
    )
    try:
        trainer.train_from(saved)
    except Diverged as failure:
        if here.is_first:
            _write_failure(path, failure, data)
        return _end(saving.signals, writer, DIVERGED)
    if saving.stopped:
        return _end(saving.signals, writer, STOPPED)
    heartbeat.at(order.steps, "exporting")
    # The trainer makes them agree with the tokenizer, which knows one end of text: the end of a turn would be lost.
    model.config, model.generation_config = kept
    _export(path, trainer, tokenizer, here)
    return _end(saving.signals, writer, TRAINED)


def _writer(path: Path, recipe: Recipe, here: RankPlace) -> metrics.Writer:
    """The metrics of the first rank, and whoever else is to hear of them."""
    tracked = tracking.of_run(recipe.run.track, RunDirectory(path, ""), "", recipe.run.lease_seconds)
    return metrics.Writer(path, here.launch, recipe.task.report_to, recipe.name, tracked)


def _settings(options: Options, folder: Path, split: Layout, steps: int) -> SFTConfig:
    """TRL's configuration. To be made before the model is loaded: transformers learns of ZeRO-3 from it."""
    on_gpu = torch.cuda.is_available()
    optimizer = options.optimizer
    return SFTConfig(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=split.per_device,
        gradient_accumulation_steps=split.accumulation,
        optim="adamw_torch_fused",
        learning_rate=optimizer.learning_rate,
        adam_beta1=optimizer.betas[0],
        adam_beta2=optimizer.betas[1],
        adam_epsilon=optimizer.epsilon,
        weight_decay=optimizer.weight_decay,
        max_grad_norm=optimizer.max_grad_norm,
        neftune_noise_alpha=options.neftune,
        bf16=options.precision == "bfloat16",
        use_cpu=not on_gpu,
        ddp_backend=None if on_gpu else "gloo",
        deepspeed=options.deepspeed.settings(),
        gradient_checkpointing=options.activation_checkpointing,
        use_liger_kernel="liger" in options.kernels,
        seed=options.seed,
        data_seed=options.seed,
        ignore_data_skip=True,  # our loader starts at the right place
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",  # Saving says when
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        ddp_find_unused_parameters=False,
    )


def _load(recipe: Recipe, on_deepspeed: bool) -> Any:
    """The model to train. In bf16 where DeepSpeed keeps the float32 master, else in float32."""
    options: Options = recipe.task
    dtype = torch.bfloat16 if options.precision == "bfloat16" and on_deepspeed else torch.float32
    attention = attention_of(templates.model_config(recipe.model), options.attention)
    named = {"attn_implementation": attention} if attention else {}
    return AutoModelForCausalLM.from_pretrained(recipe.model.name, revision=recipe.model.revision, dtype=dtype, **named)


def _form_of(model: Any, is_packed: bool) -> tuple[str, bool]:
    """The form of batches that keeps documents apart in this model, and whether its convolutions need it too."""
    if not is_packed:
        return "padded", False
    flat = "flash" in (model.config._attn_implementation or "")
    return "flat" if flat else "positions", is_convolutional(model.config.to_dict())


def _start_distributed(stage: int, here: RankPlace) -> None:
    """Meet the other ranks. On the CPU DeepSpeed must know of gloo before it is used."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(here.local_rank)
    timeout = timedelta(hours=2)  # the first rank may write a large model alone
    if stage:
        if not on_gpu:
            os.environ["DS_ACCELERATOR"] = "cpu"
        with heavy_imports():
            import deepspeed

        if not on_gpu:
            # It would compile an all-reduce of its own here, under a lock in the user's cache that a kill leaves
            # behind: every later training would wait for it for ever. gloo does as well.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo", timeout=timeout, verbose=False)
    elif here.world > 1:
        torch.distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=timeout)


def _data(
    path: Path, recipe: Recipe, order: index.Index, here: RankPlace, model: Any, tokenizer: Any, done: int
) -> RankData:
    split = layout(recipe.task, here.world)
    prepared = Prepared(train.prepare_runs(path, recipe))
    form, conv = _form_of(model, order.report["packed"])
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    collate = Collate(prepared, pad, form, conv)
    batches = Batches(order, split, here.rank, collate)
    loader = Loader(batches, done * split.accumulation, recipe.task.loader_workers, torch.cuda.is_available())
    return RankData(prepared, order, loader, collate, here)


def _resume_point(checkpoints: Checkpoints, here: RankPlace) -> Saved | None:
    """The newest checkpoint that is whole; the same on all ranks, for the first one looks.

    Raises HalaError where there are some and none of them is whole.
    """
    first_ranks: list[Saved | HalaError | None] = [None]
    if here.is_first:
        for aside in checkpoints.set_aside():
            say(f"incomplete checkpoint set aside: {aside}")
        try:
            first_ranks = [checkpoints.newest_whole(say)]
        except HalaError as error:
            first_ranks = [error]
    if dist.is_initialized():
        dist.broadcast_object_list(first_ranks, src=0)
    (saved,) = first_ranks
    if isinstance(saved, HalaError):
        raise saved
    if saved is not None and here.is_first:
        say(f"resuming after step {saved.step}, saved by {plural(saved.world, 'rank')}")
    return saved


def _flops(model: Any, sequence_length: int) -> float:
    """Per token, for the MFU: of any model, also one that ZeRO-3 has cut into pieces."""
    config = model.config.get_text_config()
    sizes = {name: getattr(weight, "ds_numel", weight.numel()) for name, weight in model.named_parameters()}
    inputs = model.get_input_embeddings().weight
    is_tied = model.get_output_embeddings().weight is inputs
    looked_up = 0 if is_tied else getattr(inputs, "ds_numel", inputs.numel())
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    layers = sum(kind != "conv" for kind in getattr(config, "layer_types", None) or [""] * config.num_hidden_layers)
    return flops_per_token(sum(sizes.values()) - looked_up, layers, width, sequence_length)


def _write_failure(path: Path, failure: Diverged, data: RankData) -> None:
    """Which step, and which rows were in its batch."""
    sequences = data.index.step(failure.step - 1)
    rows = [data.prepared.describe(piece) for sequence in sequences for piece in sequence]
    record = {"step": failure.step, "reason": failure.reason, "sequences": sequences, "rows": rows, "time": time.time()}
    write_durably(path / paths.FAILURE, json.dumps(record, default=int).encode())
    say(f"stopped for good at step {failure.step}: {failure.reason}; see {path / paths.FAILURE}")


def _export(path: Path, trainer: HalaTrainer, tokenizer: Any, here: RankPlace) -> None:
    """The finished model as a folder that anybody can load; checked before it gets its name."""
    final = path / paths.EXPORTED
    trainer.model_wrapped.eval()
    expected = export.fingerprint(trainer.model_wrapped, tokenizer)
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if here.is_first and not final.exists():
        building = final.with_suffix(".building")
        remove_tree(building)
        export.save(trainer.accelerator.unwrap_model(trainer.model), state, tokenizer, building, card.provenance(path))
        export.check(building, expected)
        building.rename(final)
    if dist.is_initialized():
        dist.barrier()


def _end(signals: StopFlag, writer: Any, code: int) -> int:
    """Leave together: a rank that is gone first would make the others fail."""
    signals.ignore()
    if writer is not None:
        writer.close()
    sys.stdout.flush()
    if dist.is_initialized():
        with contextlib.suppress(RuntimeError):
            dist.barrier()
            dist.destroy_process_group()
    return code
