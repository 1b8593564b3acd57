"""Things that turn requests into completions: one small protocol, a module per kind."""

import importlib
import pkgutil
from types import ModuleType
from typing import Any

from hala_hpc.config.errors import HalaError, did_you_mean

NOT_KINDS = ("base",)


def kinds() -> list[str]:
    """The engines that there are: every module of this room but the protocol."""
    return [module.name for module in pkgutil.iter_modules(__path__) if module.name not in NOT_KINDS]


def load(kind: str) -> ModuleType:
    """The module of an engine: it has ``Options`` (its keys in a recipe), ``check`` and ``start``."""
    if kind not in kinds():
        raise HalaError(f"engine.kind: no engine '{kind}'", did_you_mean(kind, kinds()))
    return importlib.import_module(f"{__name__}.{kind}")


def check(recipe: Any) -> None:
    """Refuse, before anything is asked of Slurm, what the recipe's engine could not do. Raises HalaError."""
    load(recipe.engine.kind).check(recipe)
