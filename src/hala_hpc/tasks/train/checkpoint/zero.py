"""What a DeepSpeed checkpoint holds, parameter by parameter, whatever number of ranks wrote it; and the model in it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Model
from hala_hpc.tasks.train.checkpoint.checkpoints import Saved

STATES: Final = ("fp32", "exp_avg", "exp_avg_sq")
"""Of each parameter: the master weight and Adam's two moments, all float32."""


States = dict[str, Any]
"""By STATES, a whole parameter as a flat float32 tensor."""


@dataclass(frozen=True)
class Checkpoint:
    """Of so many ranks: each one's optimizer file, and what the first rank's model file says."""

    ranks: list[dict[str, Any]]
    model: dict[str, Any]

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
        raise HalaError(
            f"{folder}: holds no ZeRO checkpoint",
            "take another, or resume on as many ranks as wrote it",
        )
    ranks = [_load(path)["optimizer_state_dict"] for path in files]
    return Checkpoint(ranks, _load(models[0]))


def _stage3(found: Checkpoint, states: Sequence[str]) -> Iterator[tuple[str, States]]:
    import torch

    for group, shapes in enumerate(found.model["param_shapes"]):
        flat = [
            {"fp32": rank["fp32_flat_groups"][group]} | rank["optimizer_state_dict"]["state"][group]
            for rank in found.ranks
        ]
        offset = 0
        for name, shape in shapes.items():
            numel = shape.numel()
            share = -(-numel // len(found.ranks))
            yield name, {key: torch.cat([one[key][offset : offset + share] for one in flat])[:numel] for key in states}
            offset += share


def _stage2(found: Checkpoint, states: Sequence[str]) -> Iterator[tuple[str, States]]:
    import torch

    groups = len(found.ranks[0]["single_partition_of_fp32_groups"])
    for group in range(groups):
        parts: dict[str, dict[str, list[Any]]] = {}
        for rank in found.ranks:
            flat = {"fp32": rank["single_partition_of_fp32_groups"][group]} | rank["base_optimizer_state"]["state"][
                group
            ]
            for name, place in rank["param_slice_mappings"][group].items():
                pieces = parts.setdefault(name, {key: [] for key in states})
                for key in states:
                    pieces[key].append(flat[key][place.start : place.start + place.numel])
        for name, pieces in parts.items():
            yield name, {key: torch.cat(pieces[key]) for key in states}


def _rank(path: Path) -> int:
    return int(path.name.split("zero_pp_rank_")[1].split("_")[0])


def _load(path: Path) -> dict[str, Any]:
    # Not weights_only: the files hold DeepSpeed's own classes. checkpoints.complete() has seen that they are ours.
    import torch

    loaded: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=False)
    return loaded


def consolidated(saved: Saved, base: Model, check_stop: Callable[[], None]) -> tuple[Any, dict[str, Any]]:
    """A model whose own weights are of no meaning, and all weights by name in bfloat16 (2 bytes each in memory).

    Parameters
    ----------
    base : what the training began from; it tells configuration and generation config.
    check_stop : called before each weight; may raise.

    Raises
    ------
    HalaError : the checkpoint holds other weights than the model has.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if not saved.stage:  # the trainer's own files, which are those of a model
        loaded = AutoModelForCausalLM.from_pretrained(saved.path, dtype=torch.bfloat16)
        return _empty(base), dict(loaded.state_dict())
    model = _empty(base)
    found = read(saved.path / f"global_step{saved.step}")
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    state = {}
    for name, states in found.parameters(("fp32",)):
        check_stop()
        if name not in shapes or states["fp32"].numel() != shapes[name].numel():
            raise HalaError(f"{saved.path}: holds '{name}', which {base.name} does not have so")
        state[name] = states["fp32"].to(torch.bfloat16).view(shapes[name])
    for name in (
        model.state_dict().keys() - shapes.keys() - (getattr(model, "all_tied_weights_keys", None) or {}).keys()
    ):
        state[name] = found.model["module"][name]  # a buffer: every rank has all of it
    return model, state


def _empty(base: Model) -> Any:
    """The model of ``base`` without memory, with what loading it found out: configuration, names, tied weights."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base.name, revision=base.revision, device_map="meta")
