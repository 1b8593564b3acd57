"""Engines turn requests into completions: one small protocol, a module per kind.

A module has ``Options`` (its keys in a recipe), ``ABILITIES`` (what such engines can do), ``check`` (is the recipe
possible?) and ``start`` (the engine).
"""

import pkgutil

from hala_hpc.config.errors import HalaError, Kinds
from hala_hpc.config.schema import Recipe, Sampling
from hala_hpc.engines.base import Abilities, Engine, TokenEngine

HELPERS = ("base", "encoder")


def _modules() -> dict[str, str]:
    names = [module.name for module in pkgutil.iter_modules(__path__) if module.name not in HELPERS]
    return {name: f"{__name__}.{name}" for name in names}


KINDS = Kinds("engine", _modules)
RANGES = (
    "temperature >= 0, 0 < top_p <= 1, top_k >= 0 (0: all), frequency_penalty -2 to 2, repetition_penalty > 0, "
    "max_tokens >= 1 or null"
)


def check(recipe: Recipe) -> None:
    """Refuse what the recipe's engine could not do, before any request to Slurm. Raises HalaError."""
    check_sampling(recipe.sampling)
    if recipe.model.chat_template_kwargs and not getattr(recipe.task, "chat", True):
        raise HalaError(
            "model.chat_template_kwargs: task.chat is false, so no chat template is filled", "leave one out"
        )
    KINDS.load(recipe.engine.kind).check(recipe)


def abilities(kind: str) -> Abilities:
    """What engines of a kind can do. Raises HalaError for an unknown kind."""
    declared: Abilities = KINDS.load(kind).ABILITIES
    return declared


def refuse_without_tokens(recipe: Recipe) -> None:
    """Raises HalaError where the recipe's engine does not return log-probabilities."""
    if not abilities(recipe.engine.kind).takes_tokens:
        able = " or ".join(kind for kind in KINDS.names() if abilities(kind).takes_tokens)
        raise HalaError(f"engine.kind: {recipe.engine.kind} does not return log-probabilities", f"engine.kind={able}")


def start(recipe: Recipe) -> Engine:
    """The engine of a recipe. Takes minutes where it loads a large model."""
    engine: Engine = KINDS.load(recipe.engine.kind).start(recipe)
    return engine


def start_for_tokens(recipe: Recipe) -> TokenEngine:
    """The engine of a recipe that ``refuse_without_tokens`` lets pass."""
    engine: TokenEngine = KINDS.load(recipe.engine.kind).start(recipe)
    return engine


def check_sampling(sampling: Sampling, name: str = "sampling") -> None:
    """Raises HalaError for a value that no engine takes, which would send every row to quarantine.

    ``name`` is what the recipe calls it.
    """
    wrong = {
        "temperature": sampling.temperature < 0,
        "top_p": not 0 < sampling.top_p <= 1,
        "top_k": sampling.top_k < 0,
        "frequency_penalty": not -2 <= sampling.frequency_penalty <= 2,
        "repetition_penalty": sampling.repetition_penalty <= 0,
        "max_tokens": sampling.max_tokens is not None and sampling.max_tokens < 1,
    }
    for key in (key for key, is_wrong in wrong.items() if is_wrong):
        raise HalaError(f"{name}.{key}: {getattr(sampling, key)} is out of its range", RANGES)
