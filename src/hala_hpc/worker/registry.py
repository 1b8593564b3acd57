"""Which tasks there are: each folder below ``hala_hpc.tasks`` with a ``task.py`` is a kind of the folder's name.

A ``task.py`` has ``Options`` (its keys in a recipe) and ``create`` (the task of a recipe).
"""

from functools import cache
from pathlib import Path

from hala_hpc import engines
from hala_hpc.config.errors import Kinds
from hala_hpc.config.schema import Recipe
from hala_hpc.worker.task import Task


@cache
def _modules() -> dict[str, str]:
    """Found by looking at the files; nothing is imported, so that a kind costs only itself."""
    package = Path(engines.__file__).parents[1]
    folders = [path.parent for path in sorted((package / "tasks").rglob("task.py"))]
    return {folder.name: ".".join((package.name, *folder.relative_to(package).parts, "task")) for folder in folders}


KINDS = Kinds("task", _modules)


def create(recipe: Recipe) -> Task:
    """The task of a recipe. Raises HalaError for options that cannot be."""
    task: Task = KINDS.load(recipe.task.kind).create(recipe)
    return task


def options_of(section: str, kind: str) -> type:
    """The keys of the open sections of a recipe (see ``config.compose``)."""
    kinds = KINDS if section == KINDS.section else engines.KINDS
    options: type = kinds.load(kind).Options
    return options
