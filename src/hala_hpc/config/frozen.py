"""The frozen recipe of a run as plain data, without the machinery that checks one: status must be quick."""

from pathlib import Path
from typing import Any, Final

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Run

CURE = "a run cannot do without it: put a copy back"
HEAD: Final = "# The last line of this file is: ...\n"
END: Final = "...\n"
"""YAML's own end of a document: half a recipe is often one too, of a run with other settings."""


def framed(recipe: str) -> str:
    """The text of a run's recipe with its first and last line, by which one that was cut is known."""
    return f"{HEAD}{recipe.rstrip()}\n{END}"


def refuse_cut(path: Path, text: str) -> None:
    """Raises HalaError for a recipe without its last line. Those of runs from before there was one are taken."""
    if text.startswith(HEAD) and not text.endswith(f"\n{END}"):
        raise HalaError(f"{path} is cut off: its last line is not '{END.strip()}'", CURE)


def read(run: Path) -> dict[str, Any]:
    """The recipe of the run in a folder. Raises HalaError where it cannot be read, is cut off, or is none of a run."""
    import yaml

    path = run / "recipe.yaml"
    try:
        text = path.read_text("utf-8")
        refuse_cut(path, text)
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        recipe: dict[str, Any] = yaml.load(text, Loader=loader)
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
