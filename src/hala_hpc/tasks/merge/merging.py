"""One merge by mergekit's own plan, executor and writer. Runs in the work environment only.

mergekit's ``run_merge`` is not used, which does not tell what its filters and gradients made of the parameters of each
tensor, knows nothing of a vocabulary that is longer in one model, and cannot be stopped half-way.
"""

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hala_hpc.config.errors import HalaError
from hala_hpc.config.words import plural
from hala_hpc.models.malloc import free_at_once
from hala_hpc.models.safetensors_file import Tensor, Tensors
from hala_hpc.tasks.merge.inputs import FLOATS, Input

LEAST_BYTES: Final = 250_000_000
"""Of a weights file, about, at least. It is held in memory until it is written, and once more then."""
FREED_BYTES: Final = 1 << 22
"""Of the pieces that slerp works in (see ``free_at_once``)."""
TELL_SECONDS: Final = 5.0


@dataclass(frozen=True)
class Asked:
    """One merge: ``config`` is mergekit's, with labels in the place of models; ``models`` says where those are."""

    config: Mapping[str, Any]
    models: Mapping[str, Input]
    base: str
    tensors: Mapping[str, Tensor]
    dtype: str
    device: str = "cpu"
    seed: int = 0
    beyond: Callable[[str], Any] | None = None
    """By a tensor's name the rows after those that are merged; None for a tensor without (``shared_vocabulary``)."""


def merge(
    asked: Asked,
    folder: Path,
    check_stop: Callable[[], None] = lambda: None,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, dict[str, Any]]:
    """Write the merged weights and their index to ``folder``: the names are the base's, each tied weight is there once.

    Returns what was merged: by tensor, the parameters that mergekit found for it.

    Raises
    ------
    HalaError : mergekit refuses the models or the parameters, or does not know one of the tensors.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin cost tenfold where cores are shared
    import torch
    from mergekit.common import dtype_from_name
    from mergekit.io import TensorWriter

    free_at_once(FREED_BYTES)
    torch.manual_seed(asked.seed)
    tied = _tied_to(asked)
    wanted = {name: tensor for name, tensor in asked.tensors.items() if tied.get(name) not in asked.tensors}
    try:
        steps = _planned(asked, wanted)
    except (RuntimeError, ValueError, TypeError) as error:
        raise HalaError(f"mergekit: {' '.join(str(error).split())[:500]}") from error
    parameters = {name: dict(step.tensor_task.parameters.items()) for name, step in steps.items()}
    kept = {name: step.dtype for name, step in steps.items() if step.dtype}  # types that mergekit insists on
    told = time.monotonic()
    largest = max(file.stat().st_size for file in asked.models[asked.base].files())
    # As a context it would write an index after an error too.
    writer = TensorWriter(str(folder), max(LEAST_BYTES, largest // 2))
    for number, (name, tensor) in enumerate(_results(asked, steps), 1):
        rest = asked.beyond(name) if asked.beyond is not None else None
        if rest is not None:
            tensor = torch.cat([tensor.to("cpu", torch.float32), rest.to(torch.float32)])
        is_float = wanted[name].dtype in FLOATS
        writer.save_tensor(name, tensor.to("cpu", dtype_from_name(kept.get(name, asked.dtype)) if is_float else None))
        del tensor
        check_stop()
        if time.monotonic() >= told + TELL_SECONDS:
            told = time.monotonic()
            tell(f"{number} of {len(steps)} tensors")
    writer.finalize()
    return parameters


def _tied_to(asked: Asked) -> dict[str, str]:
    """Weights of the base's architecture that are no weights of their own, and what they are the same as."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    make: Any = AutoModelForCausalLM.from_config
    config = AutoConfig.from_pretrained(asked.models[asked.base].folder)
    try:
        with torch.device("meta"):
            model = make(config)
    except (ValueError, KeyError, ImportError) as error:
        raise HalaError(f"transformers cannot make a model of {config.model_type}: {error}") from error
    return dict(getattr(model, "all_tied_weights_keys", None) or {})


def _planned(asked: Asked, wanted: Mapping[str, Tensor]) -> dict[str, Any]:
    """The steps of mergekit's plan that save each tensor, by the name that the base stores it under."""
    from mergekit.architecture import get_architecture_info
    from mergekit.config import MergeConfiguration
    from mergekit.io.tasks import LoaderCache, SaveTensor
    from mergekit.options import MergeOptions
    from mergekit.plan import MergePlanner

    options = MergeOptions(device=asked.device, quiet=True)
    config = MergeConfiguration.model_validate(_with_folders(asked))
    cache = LoaderCache()
    cache.loaders.clear()  # they outlive a merge, and with them the files of the last one
    cache.setup(options=options)
    architecture = get_architecture_info(config, options)
    out = next(one for one in config.referenced_models() if one.model.path == str(asked.models[asked.base].folder))
    steps = {}
    planner = MergePlanner(config, architecture, options, out_model_config=out.config())
    for step in planner.plan_to_disk("nowhere"):  # the step that would make its files is not run
        if not isinstance(step, SaveTensor):
            continue
        weight = step.tensor_task.output_weight
        names = (weight.name, *(weight.aliases or ()))
        if stored := next((name for name in names if name in wanted), None):
            steps[stored] = step
    if unknown := wanted.keys() - steps.keys():
        raise HalaError(
            f"mergekit does not know {plural(len(unknown), 'tensor')} of this architecture, e.g. "
            f"{min(unknown)}, and would leave them out"
        )
    return {name: steps[name] for name in wanted}


def _with_folders(asked: Asked) -> dict[str, Any]:
    """The configuration for mergekit; models as mappings, for in a text ``+`` and ``@`` would mean something."""

    def reference(label: str) -> dict[str, Any]:
        return {"model": {"path": str(asked.models[label].folder)}}

    config = dict(asked.config)
    config["models"] = [dict(part, model=reference(part["model"])) for part in config["models"]]
    if config.get("base_model"):
        config["base_model"] = reference(config["base_model"])
    return config


def _results(asked: Asked, steps: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The merged tensors as mergekit makes them, in its order."""
    from mergekit.graph import Executor

    names = {id(step.tensor_task): name for name, step in steps.items()}
    for task, tensor in Executor([step.tensor_task for step in steps.values()], math_device=asked.device).run(
        quiet=True
    ):
        if tensor is None:
            raise HalaError(f"{names[id(task)]}: mergekit's {asked.config['merge_method']} makes nothing of it")
        yield names[id(task)], tensor


PIECE: Final = 1 << 22
"""Numbers looked at in one go."""
LERP_ABOVE: Final = 0.9995
"""Of the cosine's absolute value: mergekit's slerp interpolates linearly there (its ``dot_threshold``)."""


def cosines(
    one: Input, two: Input, names: Iterable[str], check_stop: Callable[[], None] = lambda: None
) -> dict[str, float | None]:
    """The cosine between the tensors of two models, by name, each tensor taken as one long vector, in float64.

    None where one of the two is all zeros, and for tensors that hold no real numbers. ``check_stop`` may raise.
    """
    found: dict[str, float | None] = dict.fromkeys(names)
    with Tensors(*one.files()) as mine, Tensors(*two.files()) as other:
        for name in (name for name in found if one.tensors[name][1].dtype in FLOATS):
            check_stop()
            found[name] = _cosine(_part(mine[name], one.tensors[name][1]), _part(other[name], two.tensors[name][1]))
    return found


def _part(stored: Any, tensor: Tensor) -> Any:
    """The rows that are meant: of a vocabulary that was cut they are fewer than are stored."""
    return stored[: tensor.shape[0]] if tensor.shape else stored


def _cosine(one: Any, two: Any) -> float | None:
    dot = square = other_square = 0.0
    for a, b in zip(one.reshape(-1).split(PIECE), two.reshape(-1).split(PIECE), strict=True):
        a, b = a.double(), b.double()
        dot += float(a @ b)
        square += float(a @ a)
        other_square += float(b @ b)
    if not square or not other_square:
        return None
    cosine = dot / math.sqrt(square) / math.sqrt(other_square)
    return max(-1.0, min(1.0, cosine)) if math.isfinite(cosine) else None
