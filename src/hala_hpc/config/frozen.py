"""The frozen recipe of a run as plain data, without the machinery that checks one: status must be quick."""

from pathlib import Path
from typing import Any

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Run

CURE = "a run cannot do without it: put a copy back"


def read(run: Path) -> dict[str, Any]:
    """The recipe of the run in a folder. Raises HalaError where it cannot be read, or is none of a run."""
    import yaml

    path = run / "recipe.yaml"
    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        recipe: dict[str, Any] = yaml.load(path.read_text("utf-8"), Loader=loader)
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise HalaError(f"{path} cannot be read: {error}", CURE) from error
    if not isinstance(recipe, dict) or not all(isinstance(recipe.get(name), dict) for name in ("run", "task")):
        raise HalaError(f"{path} is no frozen recipe of a run", CURE)
    return recipe


def settings(run: Path, recipe: dict[str, Any]) -> Run:
    """Its ``run`` section. Raises HalaError for keys that this version does not know."""
    try:
        return Run(**recipe["run"])
    except TypeError as error:
        raise HalaError(f"{run / 'recipe.yaml'}: {error}", "was the run planned by a newer hala?") from error
