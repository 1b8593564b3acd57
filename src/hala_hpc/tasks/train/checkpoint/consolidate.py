"""The model in a checkpoint of a training, without ranks and without its optimizer: ready for ``export.save``."""

from collections.abc import Callable
from typing import Any

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Model
from hala_hpc.tasks.train.checkpoint import zero
from hala_hpc.tasks.train.checkpoint.checkpoints import Saved


def read(saved: Saved, base: Model, check_stop: Callable[[], None]) -> tuple[Any, dict[str, Any]]:
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
    found = zero.read(saved.path / f"global_step{saved.step}")
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
