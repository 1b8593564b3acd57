"""The model and the trainer's settings of one rank, from the recipe."""

import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from trl import SFTConfig

from hala_hpc.config.schema import Recipe
from hala_hpc.data.chat import templates
from hala_hpc.tasks.train.options import Layout, Options, attention_of, is_convolutional


def settings(options: Options, folder: Path, layout: Layout, steps: int) -> SFTConfig:
    """TRL's configuration. To be made before the model is loaded: it tells transformers of ZeRO-3."""
    on_gpu = torch.cuda.is_available()
    is_bf16 = options.precision == "bfloat16"
    optimizer = options.optimizer
    return SFTConfig(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=layout.per_device,
        gradient_accumulation_steps=layout.accumulation,
        optim="adamw_torch_fused",
        learning_rate=optimizer.learning_rate,
        adam_beta1=optimizer.betas[0],
        adam_beta2=optimizer.betas[1],
        adam_epsilon=optimizer.epsilon,
        weight_decay=optimizer.weight_decay,
        max_grad_norm=optimizer.max_grad_norm,
        neftune_noise_alpha=options.neftune,
        bf16=is_bf16,
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
        save_strategy="no",  # the keeper says when
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        ddp_find_unused_parameters=False,
    )


def load(recipe: Recipe, on_deepspeed: bool) -> Any:
    """The model to train. In bf16 where DeepSpeed keeps the float32 master, else in float32."""
    options: Options = recipe.task
    dtype = torch.bfloat16 if options.precision == "bfloat16" and on_deepspeed else torch.float32
    attention = attention_of(templates.model_config(recipe.model), options.attention)
    named = {"attn_implementation": attention} if attention else {}
    return AutoModelForCausalLM.from_pretrained(recipe.model.name, revision=recipe.model.revision, dtype=dtype, **named)


def form_of(model: Any, is_packed: bool) -> tuple[str, bool]:
    """How documents are told apart for this model, and whether its convolutions are told too."""
    if not is_packed:
        return "padded", False
    flat = "flash" in (model.config._attn_implementation or "")
    return "flat" if flat else "positions", is_convolutional(model.config.to_dict())


def start_distributed(stage: int) -> None:
    """Meet the other ranks. On the CPU DeepSpeed must be told of gloo before anything else asks."""
    import datetime

    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    waits = datetime.timedelta(hours=2)  # the first rank may write a large model alone
    if stage:
        if not on_gpu:
            os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed

        if not on_gpu:
            # It would compile an all-reduce of its own here, under a lock in the user's cache that a kill leaves
            # behind: every later training would wait for it for ever. gloo does as well.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo", timeout=waits, verbose=False)
    elif int(os.environ["WORLD_SIZE"]) > 1:
        torch.distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=waits)
