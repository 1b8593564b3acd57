"""A pipeline file: stages, each a recipe with what it changes, or a command. It is read and checked, nothing is done.

A stage takes what other stages make by their addresses: ``run:STAGE`` in its recipe, its changes or its command. So
which stage comes after which is in the recipes already, and a recipe that names the run of another needs no change.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hala_hpc.config import layers, places
from hala_hpc.config.errors import HalaError, did_you_mean, first_twice, refuse_odd_name, within
from hala_hpc.config.frozen import overlaid
from hala_hpc.config.layers import Layer

SECTION: Final = "stages"
KEYS: Final = ("name", "set", SECTION)
STAGE_KEYS: Final = ("recipe", "set", "command", "each", "when", "after")
COMMANDS: Final = ("best", "collect", "publish", "report", "verify")
"""The commands of `hala` that a stage may be."""
EACH: Final = "{each}"
"""Stands for a value of ``each`` in whatever a stage says."""


@dataclass(frozen=True)
class Stage:
    """A stage as the file has it, one for each value of its ``each``.

    Parameters
    ----------
    recipe : the file of its recipe; None for a command.
    changes : what it changes of the recipe, as a nested mapping, the pipeline's own below it.
    command : the words of a command of `hala`.
    when : a stage that is `hala best`, and a pattern that the label of its choice must match: else this is left out.
    after : stages that come before this one without its taking anything of them.
    """

    name: str
    recipe: Path | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    command: Sequence[str] = ()
    when: Mapping[str, str] = field(default_factory=dict)
    after: Sequence[str] = ()


@dataclass(frozen=True)
class PipelineFile:
    """The name of a pipeline and its stages, in the order of the file."""

    path: Path
    name: str
    stages: Sequence[Stage]

    def split(self, overrides: Iterable[str]) -> dict[str, list[str]]:
        """The words of a command line by stage: ``stages.STAGE.KEY=value`` is for one, all others are for each recipe.

        Raises HalaError for a stage that there is not.
        """
        words: dict[str, list[str]] = {stage.name: [] for stage in self.stages}
        for word in overrides:
            if not word.startswith(f"{SECTION}."):
                for mine in words.values():
                    mine.append(word)
                continue
            rest = word.removeprefix(f"{SECTION}.")
            # Names may have dots in them (sft-1.2b): the longest that fits is meant.
            named = max((name for name in words if rest.startswith(f"{name}.")), key=len, default="")
            if not named:
                raise HalaError(f"'{word}': no such stage", did_you_mean(rest.partition(".")[0], words))
            words[named].append(rest.removeprefix(f"{named}."))
        return words


def is_pipeline(path: Path) -> bool:
    """Whether a file is a pipeline's."""
    return path.is_file() and SECTION in layers.from_file(path).values


def read(path: Path) -> PipelineFile:
    """Raises HalaError for a file that is none, an unknown key, a stage that is neither recipe nor command."""
    layer = layers.from_file(path)
    with within(layer.where):
        _refuse_unknown(layer.values, KEYS, "")
        name = str(layer.values.get("name") or path.stem)
        refuse_odd_name("name", name, "a pipeline's name")
        common = _changes(layer.values.get("set"), "set")
        listed = _mapping(layer.values[SECTION], SECTION)
        stages = [stage for key, given in listed.items() for stage in _stages(str(key), given, layer, common)]
        if twice := first_twice([stage.name for stage in stages]):
            raise HalaError(f"{SECTION}: two stages are called '{twice}'", "give one another name")
        for stage in stages:
            _refuse_unknown([*stage.when, *stage.after], [other.name for other in stages], f"{stage.name}: no stage")
    return PipelineFile(path.resolve(), name, stages)


def layer_of(stage: Stage, path: Path) -> Layer:
    """What a stage changes of its recipe, as a layer above it."""
    return Layer(stage.changes, f"{path}: {SECTION}.{stage.name}.set", path.resolve().parent)


def _stages(key: str, given: Any, layer: Layer, common: Mapping[str, Any]) -> list[Stage]:
    """A stage, or one for each value of its ``each``."""
    where = f"{SECTION}.{key}"
    section = _mapping(given, where)
    _refuse_unknown(section, STAGE_KEYS, f"{where}.")
    each = section.get("each")
    if each is None:
        return [_stage(key, section, layer, common)]
    if not isinstance(each, list | dict) or not each:
        raise HalaError(f"{where}.each: must be a list of values, or a mapping of them to changes, not {each!r}")
    own = each if isinstance(each, dict) else dict.fromkeys(map(str, each))
    stages = []
    for value, changes in own.items():
        name = key if EACH in key else f"{key}-{EACH}"
        more = overlaid(_changes(section.get("set"), f"{where}.set"), _changes(changes, f"{where}.each.{value}"))
        filled = _filled({"name": name} | section | {"set": more}, str(value))
        stages.append(_stage(filled.pop("name"), filled, layer, common))
    return stages


def _stage(name: str, section: Mapping[str, Any], layer: Layer, common: Mapping[str, Any]) -> Stage:
    where = f"{SECTION}.{name}"
    refuse_odd_name(SECTION, name, "a stage's name")
    command = [str(word) for word in _listed(section.get("command"))]
    recipe = section.get("recipe")
    if (recipe is None) == (not command):
        raise HalaError(f"{where}: must have either a recipe or a command", "recipe: FILE, or command: [report, …]")
    if command and command[0] not in COMMANDS:
        raise HalaError(f"{where}.command: '{command[0]}' cannot be a stage", did_you_mean(command[0], COMMANDS))
    if command and section.get("set"):
        raise HalaError(f"{where}.set: is for a recipe, and this is a command", "give its options as words of it")
    file = None
    if recipe is not None:
        file = Path(layers.resolved(places.expanded(str(recipe), f"{where}.recipe"), layer.base, "file"))
        if not file.is_file():
            raise HalaError(f"{where}.recipe: {file}: no such file", "paths are from the pipeline's own folder")
    when = {str(stage): str(pattern) for stage, pattern in _mapping(section.get("when") or {}, f"{where}.when").items()}
    changes = overlaid(common, _changes(section.get("set"), f"{where}.set")) if file else {}
    return Stage(name, file, changes, command, when, [str(stage) for stage in _listed(section.get("after"))])


def _changes(given: Any, where: str) -> Any:
    """``set``: keys may be written with dots, as on a command line, or nested, as in a recipe."""
    whole: Any = {}
    for key, value in _mapping(given or {}, where).items():
        for part in reversed(str(key).split(".")):
            value = {part: value}
        whole = overlaid(whole, value)
    return whole


def _filled(value: Any, each: str) -> Any:
    if isinstance(value, dict):
        return {_filled(key, each): _filled(item, each) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, each) for item in value]
    return value.replace(EACH, each) if isinstance(value, str) else value


def _mapping(value: Any, where: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise HalaError(f"'{where}' must be a mapping, not {value!r}")
    return value


def _listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _refuse_unknown(given: Iterable[Any], known: Sequence[str], prefix: str) -> None:
    if (wrong := next((str(key) for key in given if key not in known), None)) is not None:
        what = f"{prefix} '{wrong}'" if prefix.endswith("stage") else f"unknown key '{prefix}{wrong}'"
        raise HalaError(what, did_you_mean(wrong, known))


def stage_of(address: str, names: Iterable[str]) -> str | None:
    """The stage whose result ``run:NAME/…`` is; None where it is a run of its own."""
    name = re.split("/", address.removeprefix(places.RUN), maxsplit=1)[0]
    return name if name in names else None
