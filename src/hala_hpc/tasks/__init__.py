"""What a shard asks for: one module per task, found by the ``task.kind`` of a recipe."""

import importlib
import pkgutil
from types import ModuleType

from hala_hpc import engines
from hala_hpc.config.errors import HalaError, did_you_mean
from hala_hpc.config.schema import Recipe
from hala_hpc.tasks.base import Task

NOT_KINDS = ("base", "rows")


def kinds() -> list[str]:
    """The tasks that there are."""
    return [module.name for module in pkgutil.iter_modules(__path__) if module.name not in NOT_KINDS]


def load(kind: str) -> ModuleType:
    """The module of a task: it has ``Options`` (its keys in a recipe) and ``create``."""
    if kind not in kinds():
        raise HalaError(f"task.kind: no task '{kind}'", did_you_mean(kind, kinds()))
    return importlib.import_module(f"{__name__}.{kind}")


def create(recipe: Recipe) -> Task:
    """The task of a recipe. Raises HalaError for options that cannot be."""
    task: Task = load(recipe.task.kind).create(recipe)
    return task


def options_of(section: str, kind: str) -> type:
    """The keys of the open sections of a recipe (see ``config.compose``)."""
    module = load(kind) if section == "task" else engines.load(kind)
    options: type = module.Options
    return options
