"""Things that turn requests into completions: one small protocol, a module per kind."""

import importlib
import pkgutil
from types import ModuleType

from hala_hpc.config.errors import HalaError, did_you_mean
from hala_hpc.config.schema import Recipe, Sampling

NOT_KINDS = ("base", "guard")
RANGES = (
    "temperature >= 0, 0 < top_p <= 1, top_k >= 0 (0: all), frequency_penalty -2 to 2, repetition_penalty > 0, "
    "max_tokens >= 1 or null"
)


def kinds() -> list[str]:
    """The engines that there are: every module of this room but the protocol."""
    return [module.name for module in pkgutil.iter_modules(__path__) if module.name not in NOT_KINDS]


def load(kind: str) -> ModuleType:
    """The module of an engine: it has ``Options`` (its keys in a recipe), ``check`` and ``start``."""
    if kind not in kinds():
        raise HalaError(f"engine.kind: no engine '{kind}'", did_you_mean(kind, kinds()))
    return importlib.import_module(f"{__name__}.{kind}")


def check(recipe: Recipe) -> None:
    """Refuse, before anything is asked of Slurm, what the recipe's engine could not do. Raises HalaError."""
    _check_sampling(recipe.sampling)
    load(recipe.engine.kind).check(recipe)


def _check_sampling(sampling: Sampling) -> None:
    """A value that no engine takes would send every row to quarantine."""
    wrong = {
        "temperature": sampling.temperature < 0,
        "top_p": not 0 < sampling.top_p <= 1,
        "top_k": sampling.top_k < 0,
        "frequency_penalty": not -2 <= sampling.frequency_penalty <= 2,
        "repetition_penalty": sampling.repetition_penalty <= 0,
        "max_tokens": sampling.max_tokens is not None and sampling.max_tokens < 1,
    }
    for key in (key for key, is_wrong in wrong.items() if is_wrong):
        raise HalaError(f"sampling.{key}: {getattr(sampling, key)} is out of its range", RANGES)
