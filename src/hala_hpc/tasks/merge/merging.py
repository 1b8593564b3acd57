"""One merge by mergekit's own plan, executor and writer. Runs in the work environment only.

mergekit's ``run_merge`` is not used: it does not report the parameters that filters and gradients give each tensor, has
no way to merge a vocabulary that is longer in one model, and cannot be stopped half-way.
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
from hala_hpc.models.safetensors_file import Tensor, Tensors, free_at_once
from hala_hpc.tasks.merge.inputs import BASE, FLOATS, Input, Vocabulary, rows_beyond

LEAST_BYTES: Final = 250_000_000
"""The least size of a weights file, about. It is held in memory until it is written, and a second time then."""
FREED_BYTES: Final = 1 << 22
"""The size of the pieces that slerp works in (see ``free_at_once``)."""
TELL_SECONDS: Final = 5.0


@dataclass(frozen=True)
class MergeJob:
    """One merge: ``config`` is mergekit's, with labels in the place of models; ``models`` says where those are.

    ``donor`` gives the rows after those that are merged, where there is a ``vocabulary`` (``shared_vocabulary``).
    """

    config: Mapping[str, Any]
    models: Mapping[str, Input]
    tensors: Mapping[str, Tensor]
    dtype: str
    device: str = "cpu"
    seed: int = 0
    donor: Input | None = None
    vocabulary: Vocabulary | None = None


def merge(
    job: MergeJob,
    folder: Path,
    check_stop: Callable[[], None] = lambda: None,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Mapping[str, Any]]:
    """Write the merged weights and their index to ``folder``: the names are the base's, each tied weight is there once.

    Returns, by tensor, the parameters that mergekit used for it.

    Raises
    ------
    HalaError : mergekit refuses the models or the parameters, or does not know one of the tensors.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin cost tenfold where cores are shared
    import torch
    from mergekit.common import dtype_from_name
    from mergekit.io import TensorWriter

    free_at_once(FREED_BYTES)
    torch.manual_seed(job.seed)
    tied = _tied_to(job)
    wanted = {name: tensor for name, tensor in job.tensors.items() if tied.get(name) not in job.tensors}
    try:
        steps = _planned(job, wanted)
    except (RuntimeError, ValueError, TypeError) as error:
        raise HalaError(f"mergekit: {' '.join(str(error).split())[:500]}") from error
    parameters: dict[str, Mapping[str, Any]] = {
        name: dict(step.tensor_task.parameters.items()) for name, step in steps.items()
    }
    kept = {name: step.dtype for name, step in steps.items() if step.dtype}  # types that mergekit insists on
    last = time.monotonic()
    largest = max(file.stat().st_size for file in job.models[BASE].files())
    # As a context it would write an index after an error too.
    writer = TensorWriter(str(folder), max(LEAST_BYTES, largest // 2))
    for number, (name, tensor) in enumerate(_results(job, steps), 1):
        rest = rows_beyond(job.donor, name, job.vocabulary)
        if rest is not None:
            tensor = torch.cat([tensor.to("cpu", torch.float32), rest.to(torch.float32)])
        is_float = wanted[name].dtype in FLOATS
        writer.save_tensor(name, tensor.to("cpu", dtype_from_name(kept.get(name, job.dtype)) if is_float else None))
        del tensor
        check_stop()
        if time.monotonic() >= last + TELL_SECONDS:
            last = time.monotonic()
            tell(f"{number} of {len(steps)} tensors")
    writer.finalize()
    return parameters


def _tied_to(job: MergeJob) -> dict[str, str]:
    """Weights of the base's architecture that are tied to others, with those others."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    make: Any = AutoModelForCausalLM.from_config
    config = AutoConfig.from_pretrained(job.models[BASE].folder)
    try:
        with torch.device("meta"):
            model = make(config)
    except (ValueError, KeyError, ImportError) as error:
        raise HalaError(f"transformers cannot make a model of {config.model_type}: {error}") from error
    return dict(getattr(model, "all_tied_weights_keys", None) or {})


def _planned(job: MergeJob, wanted: Mapping[str, Tensor]) -> Mapping[str, Any]:
    """The steps of mergekit's plan that save each tensor, by the name that the base stores it under."""
    from mergekit.architecture import get_architecture_info
    from mergekit.config import MergeConfiguration
    from mergekit.io.tasks import LoaderCache, SaveTensor
    from mergekit.options import MergeOptions
    from mergekit.plan import MergePlanner

    options = MergeOptions(device=job.device, quiet=True)
    config = MergeConfiguration.model_validate(_with_folders(job))
    cache = LoaderCache()
    cache.loaders.clear()  # they outlive a merge, and with them the files of the last one
    cache.setup(options=options)
    architecture = get_architecture_info(config, options)
    base = str(job.models[BASE].folder)
    out = next(model for model in config.referenced_models() if model.model.path == base)
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


def _with_folders(job: MergeJob) -> Mapping[str, Any]:
    """The configuration for mergekit; models as mappings, because ``+`` and ``@`` have a meaning in a text."""

    def reference(label: str) -> Mapping[str, Any]:
        return {"model": {"path": str(job.models[label].folder)}}

    config = dict(job.config)
    config["models"] = [dict(part, model=reference(part["model"])) for part in config["models"]]
    if config.get("base_model"):
        config["base_model"] = reference(config["base_model"])
    return config


def _results(job: MergeJob, steps: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The merged tensors as mergekit makes them, in its order."""
    from mergekit.graph import Executor

    names = {id(step.tensor_task): name for name, step in steps.items()}
    for task, tensor in Executor([step.tensor_task for step in steps.values()], math_device=job.device).run(quiet=True):
        if tensor is None:
            raise HalaError(f"{names[id(task)]}: mergekit's {job.config['merge_method']} has no result for it")
        yield names[id(task)], tensor


PIECE: Final = 1 << 22
"""Numbers looked at in one go."""
LERP_ABOVE: Final = 0.9995
"""mergekit's slerp interpolates linearly where the cosine's absolute value is larger (its ``dot_threshold``)."""


def cosines(
    base: Input, other: Input, names: Iterable[str], check_stop: Callable[[], None] = lambda: None
) -> dict[str, float | None]:
    """The cosine between the tensors of two models, by name, each tensor taken as one long vector, in float64.

    None where one of the two is all zeros, and for tensors that do not hold real numbers. ``check_stop`` may raise.
    """
    by_name: dict[str, float | None] = dict.fromkeys(names)
    with Tensors(*base.files()) as stored, Tensors(*other.files()) as of_other:
        for name in (name for name in by_name if base.tensors[name].dtype in FLOATS):
            check_stop()
            pair = (_part(stored[name], base.tensors[name]), _part(of_other[name], other.tensors[name]))
            by_name[name] = _cosine(*pair)
    return by_name


def _part(stored: Any, tensor: Tensor) -> Any:
    """The rows that count: fewer than are stored where the vocabulary was cut."""
    return stored[: tensor.shape[0]] if tensor.shape else stored


def _cosine(base: Any, other: Any) -> float | None:
    dot = square = other_square = 0.0
    for a, b in zip(base.reshape(-1).split(PIECE), other.reshape(-1).split(PIECE), strict=True):
        a, b = a.double(), b.double()
        dot += float(a @ b)
        square += float(a @ a)
        other_square += float(b @ b)
    if not square or not other_square:
        return None
    cosine = dot / math.sqrt(square) / math.sqrt(other_square)
    return max(-1.0, min(1.0, cosine)) if math.isfinite(cosine) else None
