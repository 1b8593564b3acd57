"""The frozen recipe of a run as plain data, and what was changed of it since: RUN/changes/NNN.yaml, merged in order.

Without the machinery that checks a recipe: status must be quick.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Recipe, Run, Track

CURE = "a run cannot do without it: put a copy back"
HEAD: Final = "# The last line of this file is: ...\n"
END: Final = "...\n"
"""YAML's own end of a document: half a recipe is often one too, of a run with other settings."""
FOLDER: Final = "changes"
NAME: Final = re.compile(r"\d{3,}\.yaml")


def framed(recipe: str) -> str:
    """The text of a run's recipe with its first and last line, by which one that was cut is known."""
    return f"{HEAD}{recipe.rstrip()}\n{END}"


def refuse_cut(path: Path, text: str) -> None:
    """Raises HalaError for a recipe without its last line. Those of runs from before there was one are taken."""
    if text.startswith(HEAD) and not text.endswith(f"\n{END}"):
        raise HalaError(f"{path} is cut off: its last line is not '{END.strip()}'", CURE)


def read(run: Path) -> dict[str, Any]:
    """The recipe of the run in a folder. Raises HalaError where it cannot be read, is cut off, or is not a run's."""
    path = run / "recipe.yaml"
    try:
        text = path.read_text("utf-8")
        refuse_cut(path, text)
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        recipe: dict[str, Any] = yaml.load(text, Loader=loader)
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise HalaError(f"{path} cannot be read: {error}", CURE) from error
    if not isinstance(recipe, dict) or not all(isinstance(recipe.get(name), dict) for name in ("run", "task")):
        raise HalaError(f"{path} is not the frozen recipe of a run", CURE)
    return recipe


def now(run: Path) -> Mapping[str, Any]:
    """The recipe with what was changed when the run was resumed. Raises HalaError as ``read``."""
    recipe = read(run)
    for path in files(run):
        recipe = overlaid(recipe, _read(path))
    return recipe


def settings(run: Path) -> Run:
    """The ``run`` section as it holds now. Raises HalaError as ``read``, and for keys that nobody knows here."""
    try:
        section = now(run)["run"]
        return Run(**section | {"track": Track(**section.get("track") or {})})
    except TypeError as error:
        raise HalaError(f"{run / 'recipe.yaml'}: {error}", "was the run planned by a newer hala?") from error


def files(run: Path) -> list[Path]:
    """The changes of a run, in their order; other files in the folder are ignored."""
    folder = run / FOLDER
    names = [path for path in folder.iterdir() if NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(names, key=lambda path: int(path.stem))


def between(before: Recipe, after: Recipe) -> Mapping[str, Any]:
    """The keys whose values differ, as a nested dict; None takes away an entry of a mapping."""
    return _between(dataclasses.asdict(before), dataclasses.asdict(after))


def differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Each dotted key whose value is another one: before, and after; None where it is not there."""
    old, new = _flat(before), _flat(after)
    return {key: (old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)}


def overlaid(below: Any, above: Any) -> Any:
    """The later one of two values; of two mappings the keys of both."""
    if not isinstance(below, Mapping) or not isinstance(above, Mapping):
        return above
    return {**below, **{key: overlaid(below.get(key), value) for key, value in above.items()}}


def _read(path: Path) -> Mapping[str, Any]:
    try:
        change = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise HalaError(f"{path} cannot be read: {' '.join(str(error).split())}", "remove it, or mend it") from error
    if not isinstance(change, dict):
        raise HalaError(f"{path} is not a change of a recipe", "remove it: `hala resume` may be given the keys anew")
    return change


def _between(before: Mapping[str, Any], after: Mapping[str, Any]) -> Mapping[str, Any]:
    change: dict[str, Any] = {key: None for key in before if key not in after}
    for key, value in after.items():
        old = before.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            if inner := _between(old, value):
                change[key] = inner
        elif key not in before or old != value:
            change[key] = value
    return change


def _flat(values: Mapping[str, Any], prefix: str = "") -> Mapping[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
