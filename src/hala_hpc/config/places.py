"""Paths as people write them: `~` is a home folder, `$NAME` and `${NAME}` are variables of this shell, now."""

import os
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

from hala_hpc.config.errors import HalaError

RUN: Final = "run:"
"""``run:NAME`` is the run of that name, or what lies in it (``run:NAME/final``), where this recipe's runs live."""
Address = Callable[[str, Path], str]
"""What ``run:NAME/…`` stands for, given the folder in which runs live: as ``in_runs``, or a stage of a pipeline."""
_VARIABLE: Final = re.compile(r"\$(?:(\$)|([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})")


def expanded(text: str, what: str, keys: Collection[str] = ()) -> str:
    """``text`` with a leading ``~`` and the variables in it replaced; ``$$`` is a dollar, ``${KEY}`` of ``keys`` stays.

    Raises HalaError, which begins with ``what``, where there is no such variable or home folder: no folder is ever made
    that is called ``~`` or ``$HOME``.
    """

    def value(variable: re.Match[str]) -> str:
        name = variable[2] or variable[3]
        if variable[1]:
            return "$"
        if variable[3] in keys:
            return variable[0]
        if not os.environ.get(name):
            raise HalaError(f"{what}: {text}: there is no variable {name} in this shell", "export it, or write it out")
        return os.environ[name]

    whole = _VARIABLE.sub(value, text)
    if not text.startswith("~"):
        return whole
    try:
        return str(Path(whole).expanduser())
    except RuntimeError as error:  # ~nobody
        raise HalaError(f"{what}: {text}: no such home folder") from error


def from_environment(name: str) -> str | None:
    """The path or name that a variable of ours holds, expanded; None where it is empty. Raises HalaError."""
    return expanded(value, f"${name}") if (value := os.environ.get(name, "").strip()) else None


def in_runs(value: str, root: Path) -> str:
    """``run:NAME/…`` as a path below ``root``. Raises HalaError where it leads elsewhere."""
    parts = Path(value.removeprefix(RUN)).parts
    if not parts or ".." in parts or parts[0] == "/":
        raise HalaError(f"{value}: does not name a run", f"{RUN}NAME is the run of that name in {root}")
    return str(root.joinpath(*parts))


def no_model(name: str, key: str = "") -> HalaError:
    """What is wrong with a folder that is given as a model; ``key`` comes before it."""
    why = "it has no config.json" if Path(name).is_dir() else "there is no such folder"
    wanted = "a model's folder, a run, or a name on the hub is wanted"
    hint = f"{wanted}; a shipped recipe's first lines say how to get its model"
    return HalaError(f"{key}{name} is not a model folder: {why}", hint)


def hpc_roots() -> list[Path]:
    """Where site profiles, lock files and DeepSpeed's settings are: here, in an installed package, in a checkout."""
    package = Path(__file__).parents[1]
    return [root for root in (Path("hpc"), package / "hpc", package.parents[1] / "hpc") if root.is_dir()]


def shipped(name: str) -> Path:
    """A file of ours below ``hpc/``, whatever is in the current folder."""
    return next(path for root in hpc_roots() if root.is_absolute() and (path := root / name).is_file())
