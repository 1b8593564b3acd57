"""Which numbers make sense in a recipe, whoever says them: all are finite, and what counts or lasts is not below 0."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, Final

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Run, Slurm

POSITIVE: Final = {
    Run: ("workers", "shard_tokens", "shard_rows", "attempts", "lease_seconds", "stall_seconds"),
    Slurm: ("nodes_per_worker", "ranks_per_node", "cpus_per_worker", "minutes", "max_running", "gpu_memory_gb"),
}
NOT_NEGATIVE: Final = {Run: ("flush_seconds",), Slurm: ("gpus_per_worker", "mem_gb", "signal_seconds")}


def check(value: Any, name: str = "") -> None:
    """Walk a recipe, or a part of it that is called ``name``. Raises HalaError, which names the key."""
    if isinstance(value, float) and not math.isfinite(value):
        raise HalaError(f"{name}: {value} is no number to work with", "give a finite one")
    if dataclasses.is_dataclass(value):
        _check_signs(value, name)
    for key, item in _entries(value):
        check(item, f"{name}.{key}".strip("."))


def _entries(value: Any) -> Iterable[tuple[Any, Any]]:
    if dataclasses.is_dataclass(value):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, list) else ()


def _check_signs(section: Any, name: str) -> None:
    for key in POSITIVE.get(type(section), ()):
        if (number := getattr(section, key)) is not None and number <= 0:
            raise HalaError(f"{name}.{key}: must be more than 0")
    for key in NOT_NEGATIVE.get(type(section), ()):
        if (number := getattr(section, key)) is not None and number < 0:
            raise HalaError(f"{name}.{key}: must be 0 or more")
