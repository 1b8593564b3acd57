"""What a person changed of a frozen recipe when the run went on: where and how it runs, never what is asked.

The recipe itself stays as it was planned. Each change is a file of its own, ``RUN/changes/NNN.yaml``; whoever thaws the
recipe merges them in their order.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hala_hpc.config.compose import CHANGES, changes_of
from hala_hpc.run import files


def add(run: Path, keys: Sequence[str], recipe: Mapping[str, Any]) -> None:
    """Write down what ``recipe`` (resolved, as plain data) says under ``keys`` (dotted); nothing for no keys."""
    import yaml

    if not keys:
        return
    values: dict[str, Any] = {}
    for key in keys:
        value: Any = recipe
        parts = key.split(".")
        for part in parts:
            value = value[part] if isinstance(value, Mapping) and part in value else None
        below = values
        for part in parts[:-1]:
            below = below.setdefault(part, {})
        below[parts[-1]] = value
    folder = run / CHANGES
    folder.mkdir(exist_ok=True)
    numbers = [int(path.stem) for path in changes_of(run)]
    files.write_durably(folder / f"{max(numbers, default=0) + 1:03d}.yaml", yaml.safe_dump(values).encode())
