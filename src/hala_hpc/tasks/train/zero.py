"""What a DeepSpeed checkpoint holds, parameter by parameter, whatever number of ranks wrote it; and the model in it.

``restore`` resumes one on another number of ranks, exactly: through DeepSpeed's own per-parameter interface, with the
hyperparameters of the recipe.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hala_hpc.config.errors import HalaError
from hala_hpc.config.imports import heavy_imports
from hala_hpc.config.schema import Model
from hala_hpc.tasks.train.checkpoints import Saved

STATES: Final = ("fp32", "exp_avg", "exp_avg_sq")
"""The master weight of a parameter and Adam's two moments, all float32."""


States = dict[str, Any]
"""By STATES, a whole parameter as a flat float32 tensor."""


@dataclass(frozen=True)
class Checkpoint:
    """The optimizer file of each rank, and the first rank's model file."""

    ranks: list[Mapping[str, Any]]
    model: Mapping[str, Any]

    def parameters(self, states: Sequence[str] = STATES) -> Iterator[tuple[str, States]]:
        """Name and whole flat states of each trained parameter; a memory-mapped read of one at a time."""
        read = _stage3 if "fp32_flat_groups" in self.ranks[0] else _stage2
        yield from read(self, states)

    def adam_steps(self) -> float:
        """Steps that Adam has done."""
        base = self.ranks[0].get("base_optimizer_state") or self.ranks[0]["optimizer_state_dict"]
        return float(next(iter(base["state"].values()))["step"])


def read(folder: Path) -> Checkpoint:
    """Open the ``global_stepN`` folder of a checkpoint. Raises HalaError where it is not what this code knows."""
    files = sorted(folder.glob("*zero_pp_rank_*_mp_rank_00_optim_states.pt"), key=_rank)
    models = sorted(folder.glob("*model_states.pt"), key=lambda path: ("zero_pp_rank" in path.name, path.name))
    if not files or not models:
        raise HalaError(f"{folder} is not a ZeRO checkpoint", "take another, or resume on as many ranks as wrote it")
    ranks = [_load(path)["optimizer_state_dict"] for path in files]
    return Checkpoint(ranks, _load(models[0]))


def _stage3(checkpoint: Checkpoint, states: Sequence[str]) -> Iterator[tuple[str, States]]:
    import torch

    for group, shapes in enumerate(checkpoint.model["param_shapes"]):
        flat = [
            {"fp32": rank["fp32_flat_groups"][group]} | rank["optimizer_state_dict"]["state"][group]
            for rank in checkpoint.ranks
        ]
        offset = 0
        for name, shape in shapes.items():
            numel = shape.numel()
            share = -(-numel // len(checkpoint.ranks))
            pieces = {key: [rank[key][offset : offset + share] for rank in flat] for key in states}
            yield name, {key: torch.cat(pieces[key])[:numel] for key in states}
            offset += share


def _stage2(checkpoint: Checkpoint, states: Sequence[str]) -> Iterator[tuple[str, States]]:
    import torch

    for group in range(len(checkpoint.ranks[0]["single_partition_of_fp32_groups"])):
        parts: dict[str, dict[str, list[Any]]] = {}
        for rank in checkpoint.ranks:
            flat = rank["base_optimizer_state"]["state"][group]
            flat = {"fp32": rank["single_partition_of_fp32_groups"][group]} | flat
            for name, place in rank["param_slice_mappings"][group].items():
                pieces = parts.setdefault(name, {key: [] for key in states})
                for key in states:
                    pieces[key].append(flat[key][place.start : place.start + place.numel])
        for name, pieces in parts.items():
            yield name, {key: torch.cat(pieces[key]) for key in states}


def _rank(path: Path) -> int:
    return int(path.name.split("zero_pp_rank_")[1].split("_")[0])


def _load(path: Path) -> Mapping[str, Any]:
    # Not weights_only: the files hold DeepSpeed's own classes. checkpoints.complete() has seen that they are ours.
    import torch

    loaded: Mapping[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=False)
    return loaded


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
    import torch

    is_stage3 = hasattr(optimizer, "fp32_partitioned_groups_flat")
    flats = optimizer.fp32_partitioned_groups_flat if is_stage3 else optimizer.single_partition_of_fp32_groups
    for flat in flats:
        state = optimizer.optimizer.state[flat]
        state["step"] = torch.tensor(steps)
        state |= {key: torch.zeros_like(flat) for key in STATES[1:]}
    if not is_stage3:
        optimizer._lazy_init_hp_params_optimizer_state()  # has each parameter find its slice of them


def _set(param: Any, states: States) -> None:
    import torch

    if hasattr(param, "ds_id"):  # ZeRO-3: each rank holds a slice, the last ones filled up with zeros
        numel = param.ds_tensor.numel()
        start = torch.distributed.get_rank() * numel
        for key, whole in states.items():
            mine = torch.zeros(numel, dtype=torch.float32)
            part = whole[start : start + numel]
            mine[: part.numel()] = part
            param._z3_optimizer.set_local_hp_param(mine, param, None if key == "fp32" else key)
            if key == "fp32":
                param.ds_tensor.data.copy_(mine)
        return
    for key, whole in states.items():
        shaped = whole.view(param.shape)
        if getattr(param, "_hp_mapping", None) is not None:  # else another rank holds the parameter's slice
            param.set_full_hp_param(shaped.to(param.device), None if key == "fp32" else key)
        if key == "fp32":
            param.data.copy_(shaped)


def consolidated(saved: Saved, base: Model, check_stop: Callable[[], None]) -> tuple[Any, States]:
    """A model whose own weights are of no meaning, and all weights by name in bfloat16 (2 bytes each in memory).

    Parameters
    ----------
    base : what the training began from; it gives configuration and generation config.
    check_stop : called before each weight; may raise.

    Raises
    ------
    HalaError : the checkpoint holds other weights than the model has.
    """
    with heavy_imports():
        import torch
        from transformers import AutoModelForCausalLM

    if not saved.stage:  # the trainer's own files, which are those of a model
        loaded = AutoModelForCausalLM.from_pretrained(saved.path, dtype=torch.bfloat16)
        return _empty(base), dict(loaded.state_dict())
    model = _empty(base)
    checkpoint = read(saved.path / f"global_step{saved.step}")
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    state = {}
    for name, states in checkpoint.parameters(("fp32",)):
        check_stop()
        if name not in shapes or states["fp32"].numel() != shapes[name].numel():
            raise HalaError(f"{saved.path}: holds '{name}', which {base.name} does not have so")
        state[name] = states["fp32"].to(torch.bfloat16).view(shapes[name])
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    for name in model.state_dict().keys() - shapes.keys() - tied.keys():
        state[name] = checkpoint.model["module"][name]  # a buffer: every rank has all of it
    return model, state


def _empty(base: Model) -> Any:
    """The model of ``base`` without memory, with what loading it found out: configuration, names, tied weights."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base.name, revision=base.revision, device_map="meta")
