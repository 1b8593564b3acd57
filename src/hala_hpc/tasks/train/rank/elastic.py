"""Resume a DeepSpeed checkpoint on another number of ranks, exactly.

What ``tasks.train.checkpoint.zero`` reads is set through DeepSpeed's own per-parameter interface; hyperparameters stay
those of the recipe.
"""

from typing import Any

import torch

from hala_hpc.config.errors import HalaError
from hala_hpc.tasks.train.checkpoint.zero import STATES, Checkpoint


def restore(engine: Any, old: Checkpoint) -> None:
    """Give a fresh engine of any number of ranks the weights, moments and counters of ``old``.

    The schedule, and with it the learning rate, is the trainer's. Raises HalaError where the two do not have the same
    parameters.
    """
    _begin_adam(engine.optimizer, old.adam_steps())
    params = {name: param for name, param in engine.module.named_parameters() if param.requires_grad}
    seen = set()
    for name, states in old.parameters():
        if name not in params:
            raise HalaError(f"the checkpoint holds '{name}', which the model does not have")
        _set(params[name], states)
        seen.add(name)
    if missing := params.keys() - seen:
        raise HalaError(f"the checkpoint lacks '{min(missing)}' and {len(missing) - 1} others")
    engine.global_steps = old.model["global_steps"]
    engine.global_samples = old.model["global_samples"]
    engine.micro_steps = engine.global_steps * engine.gradient_accumulation_steps()


def _begin_adam(optimizer: Any, steps: float) -> None:
    """Moments come to be at the first step only: make them now, each group's step a tensor of its own."""
    is_stage3 = hasattr(optimizer, "fp32_partitioned_groups_flat")
    flats = optimizer.fp32_partitioned_groups_flat if is_stage3 else optimizer.single_partition_of_fp32_groups
    for flat in flats:
        state = optimizer.optimizer.state[flat]
        state["step"] = torch.tensor(steps)
        state |= {key: torch.zeros_like(flat) for key in STATES[1:]}
    if not is_stage3:
        optimizer._lazy_init_hp_params_optimizer_state()  # has each parameter find its slice of them


def _set(param: Any, states: dict[str, torch.Tensor]) -> None:
    if hasattr(param, "ds_id"):  # ZeRO-3: each rank holds a slice, the last ones filled up with zeros
        numel = param.ds_tensor.numel()
        start = torch.distributed.get_rank() * numel
        for key, whole in states.items():
            mine = torch.zeros(numel, dtype=torch.float32)
            found = whole[start : start + numel]
            mine[: found.numel()] = found
            param._z3_optimizer.set_local_hp_param(mine, param, None if key == "fp32" else key)
            if key == "fp32":
                param.ds_tensor.data.copy_(mine)
        return
    for key, whole in states.items():
        shaped = whole.view(param.shape)
        if (
            getattr(param, "_hp_mapping", None) is not None
        ):  # of parameters whose slice another rank holds there is none
            param.set_full_hp_param(shaped.to(param.device), None if key == "fp32" else key)
        if key == "fp32":
            param.data.copy_(shaped)
