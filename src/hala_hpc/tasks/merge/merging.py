"""One merge by mergekit's own graph, tensor by tensor to the disk. Runs in the work environment only.

mergekit's ``run_merge`` is not used: it holds a whole file of weights in memory before it writes it, keeps every file
that it reads mapped, copies no generation config where it makes a tokenizer, and cannot be stopped half-way. What
decides the numbers is all mergekit's: its methods, filters and gradients.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hala_hpc.config.errors import HalaError
from hala_hpc.config.words import plural
from hala_hpc.models.malloc import free_at_once
from hala_hpc.models.safetensors_file import Tensor
from hala_hpc.tasks.merge.inputs import FLOATS, Input
from hala_hpc.tasks.merge.writer import Writer

NAMES: Final = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
"""safetensors' names of the types that a merged model may have."""
FLUSH_BYTES: Final = 32 * 1024 * 1024
"""After so much of results the files that are read are let go of: what is mapped of them counts as memory."""
TELL_SECONDS: Final = 5.0
PIECE: Final = 1 << 20
"""Bytes: smaller than the pieces that slerp works in."""


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
    """By a tensor's name the rows after those that are merged; None for a tensor without (``merge_vocabulary``)."""


def merge(
    asked: Asked,
    folder: Path,
    check_stop: Callable[[], None] = lambda: None,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, dict[str, Any]]:
    """Write the merged weights to ``folder``: files and names are those of the base, each tied weight is there once.

    Returns what was merged: by tensor, the parameters that mergekit found for it.

    Raises
    ------
    HalaError : mergekit refuses the models or the parameters, or does not know one of the tensors.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin cost tenfold where cores are shared
    import torch

    free_at_once(PIECE)
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
    with Writer(folder, _layout(asked, wanted, kept)) as writer:
        for number, (name, tensor) in enumerate(_results(asked, steps), 1):
            rest = asked.beyond(name) if asked.beyond is not None else None
            if rest is not None:
                tensor = torch.cat([tensor.to("cpu", torch.float32), rest.to(torch.float32)])
            writer.write(name, _bytes_of(tensor, writer.place(name).dtype))
            del tensor
            check_stop()
            if time.monotonic() >= told + TELL_SECONDS:
                told = time.monotonic()
                tell(f"{number} of {len(steps)} tensors")
        writer.finish()
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


def _layout(
    asked: Asked, wanted: Mapping[str, Tensor], kept: Mapping[str, str]
) -> dict[str, list[tuple[str, str, tuple[int, ...]]]]:
    files: dict[str, list[tuple[str, str, tuple[int, ...]]]] = {}
    for name, tensor in wanted.items():
        file, _ = asked.models[asked.base].tensors[name]
        dtype = NAMES.get(kept.get(name, asked.dtype), tensor.dtype) if tensor.dtype in FLOATS else tensor.dtype
        files.setdefault(file.name, []).append((name, dtype, tensor.shape))
    return files


def _results(asked: Asked, steps: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The merged tensors as mergekit makes them, in its order."""
    from mergekit.graph import Executor
    from mergekit.io.tasks import LoaderCache

    names = {id(step.tensor_task): name for name, step in steps.items()}
    done = 0
    for task, tensor in Executor([step.tensor_task for step in steps.values()], math_device=asked.device).run(
        quiet=True
    ):
        if tensor is None:
            raise HalaError(f"{names[id(task)]}: mergekit's {asked.config['merge_method']} makes nothing of it")
        yield names[id(task)], tensor
        done += tensor.numel() * tensor.element_size()
        del tensor
        if done >= FLUSH_BYTES:
            LoaderCache().flush_all()
            done = 0


def _bytes_of(tensor: Any, dtype: str) -> Any:
    """The bytes of a tensor in the type that it is stored in."""
    import torch

    types = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
    converted = tensor.to("cpu", types.get(dtype, tensor.dtype)).contiguous()
    return memoryview(converted.reshape(-1).view(torch.uint8).numpy())
