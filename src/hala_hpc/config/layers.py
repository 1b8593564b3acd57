"""One layer of configuration: a file or the command line, checked key by key before it is merged.

OmegaConf checks types when layers merge, but by then nobody knows which file said what. So each layer is walked against
the schema first: unknown keys are refused by name, a lone value becomes a list where a list is wanted, and paths
are resolved against the place that says them.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from hala_hpc.config import places, secrets, written
from hala_hpc.config.errors import HalaError, did_you_mean
from hala_hpc.config.frozen import overlaid, refuse_cut
from hala_hpc.config.schema import Recipe

KEYS = tuple(field.name for field in dataclasses.fields(Recipe))
"""``${name}`` in a path points at a key of the recipe, ``${SCRATCH}`` is a variable."""


@dataclass(frozen=True)
class Layer:
    """What one place says: ``values`` is a nested dict, ``where`` its name in errors, ``base`` its folder.

    Numbers and truth values are ``Written`` until it is known what their keys want. What is ``frozen`` was checked and
    expanded when its run was planned, and stays as it stands.
    """

    values: Mapping[str, Any]
    where: str
    base: Path
    frozen: bool = False


def from_file(path: Path, frozen: bool = False) -> Layer:
    """Read a YAML file. Raises HalaError where it is missing, broken, cut off as a frozen one, or not a mapping."""
    if not path.is_file():
        raise HalaError(f"{path}: no such file", "give the path of a YAML file")
    try:
        text = path.read_text("utf-8-sig")
        if frozen:
            refuse_cut(path, text)
        values = written.load(text)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise HalaError(f"{path}: not valid YAML: {_one_line(error)}") from error
    if not isinstance(values, dict):
        kind = "a list" if isinstance(values, list) else "nothing" if values is None else f"'{values}'"
        raise HalaError(f"{path}: expected `key: value` lines, found {kind}")
    return Layer(values, str(path), path.resolve().parent, frozen)


def from_environment() -> list[Layer]:
    """What $HALA_RUNS says: a layer between the site profile and the recipe."""
    root = places.from_environment("HALA_RUNS")
    return [Layer({"run": {"root": root.replace("$", "$$")}}, "$HALA_RUNS", Path.cwd())] if root else []


def from_command_line(overrides: Sequence[str]) -> Layer:
    """``key.sub=value`` words, as a layer."""
    values: dict[str, Any] = {}
    for word in overrides:
        key, sign, text = word.partition("=")
        if not sign or not all(key.split(".")):
            raise HalaError(f"'{word}': not of the form key=value", "for example run.workers=64")
        try:
            # A value that begins with a sign of YAML's grammar (``data.path=*.jsonl``) is meant as text.
            value = written.load(json.dumps(text) if text.startswith(tuple("*&!%@`")) else text)
        except yaml.YAMLError as error:
            hint = f"is it one word for your shell? Quote all of it: '{key}=…'"
            raise HalaError(f"command line: '{word}': {_one_line(error)}", hint) from error
        for part in reversed(key.split(".")):
            value = {part: value}
        values = overlaid(values, value)
    return Layer(values, "command line", Path.cwd())


def _one_line(error: Exception) -> str:
    return " ".join(str(error).replace(' in "<unicode string>",', " at").split())


def checked(layer: Layer, values: Any, schema: type, prefix: str = "") -> dict[str, Any]:
    """``values`` with only keys of the dataclass ``schema``, paths made absolute. Raises HalaError."""
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise HalaError(f"{layer.where}: '{prefix.rstrip('.')}' must be a mapping, not {values!r}")
    fields = {field.name: field for field in dataclasses.fields(schema)}
    hints = typing.get_type_hints(schema)
    result = {}
    for key, value in values.items():
        if key not in fields:
            raise HalaError(f"{layer.where}: unknown key '{prefix}{key}'", did_you_mean(str(key), fields))
        result[key] = _checked_value(layer, value, hints[key], dict(fields[key].metadata), f"{prefix}{key}")
    return result


def _checked_value(layer: Layer, value: Any, hint: Any, metadata: dict[str, str], name: str) -> Any:
    is_optional, hint = hint is not _without_none(hint), _without_none(hint)
    if not layer.frozen:
        secrets.refuse(layer.where, name, value)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if value is None else checked(layer, value, hint, f"{name}.")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is dict and isinstance(value, list):
        raise HalaError(f"{layer.where}: {name} must be a mapping, not {value!r}")
    if origin is dict and dataclasses.is_dataclass(arguments[1]) and isinstance(value, dict):
        inner = typing.cast(type, arguments[1])
        return {  # null is for ``take_away``
            key: item if item is None else checked(layer, item, inner, f"{name}.{key}.") for key, item in value.items()
        }
    if origin is list and value is not None and not isinstance(value, list):
        value = [value]
    if origin is list and any(item is None or isinstance(item, dict | list) for item in value or ()):
        raise HalaError(f"{layer.where}: {name}: a list of single values is wanted, not {value!r}")
    if origin is None and value is None and not is_optional and hint is not Any:
        raise HalaError(f"{layer.where}: {name}: is empty", "leave it out for its default, or give a value")
    if hint is str and isinstance(value, dict | list):
        kind = "a mapping" if isinstance(value, dict) else "a list"
        raise HalaError(
            f"{layer.where}: {name}: a text is wanted, and YAML reads {kind} here",
            f"quote it: '{name}=\"…\"'" if layer.where == "command line" else 'quote it: "…"',
        )
    value = written.wanted(value, hint)
    rule = metadata.get("path")
    if rule and not layer.frozen and value is not None:
        return _placed(layer, value, rule, name)
    return value


def _placed(layer: Layer, value: Any, rule: str, name: str) -> Any:
    """A path, or a list or mapping of them, with its variables replaced and, where its rule says so, made absolute."""
    if isinstance(value, list):
        return [_placed(layer, item, rule, name) for item in value]
    if isinstance(value, dict):
        return {key: _placed(layer, item, rule, f"{name}.{key}") for key, item in value.items()}
    if not isinstance(value, str):
        return value
    text = places.expanded(value, f"{layer.where}: {name}", KEYS)
    is_name = bool(text) and not text.startswith((".", "/", places.RUN)) and "${" not in text
    if rule == "explicit" and is_name and (layer.base / text).is_dir():
        raise HalaError(
            f"{layer.where}: {name}: '{text}' names something on the hub, and is a folder here too",
            f"write ./{text} for the folder",
        )
    return text if rule == "text" else resolved(text, layer.base, rule)


def take_away(layer: Layer, below: DictConfig, given: Mapping[str, Any], prefix: str = "") -> Mapping[str, Any]:
    """What is left of a checked layer to be merged once its nulls have removed entries of mappings from ``below``.

    In a mapping with a fixed type of entry a null that removes nothing is refused; in an open one it stays, as a value.
    """
    left = {}
    for key, value in given.items():
        name = f"{prefix}{key}"
        is_there = key in below and not OmegaConf.is_missing(below, key) and not OmegaConf.is_interpolation(below, key)
        mapping = below[key] if is_there and isinstance(below[key], DictConfig) else None
        if isinstance(value, dict) and mapping is not None:
            left[key] = take_away(layer, mapping, value, f"{name}.")
        elif value is None and OmegaConf.get_type(below) is dict and key in below:
            below.pop(key)
        elif value is None and OmegaConf.get_type(below) is dict and below._metadata.element_type is not Any:
            raise HalaError(f"{layer.where}: {name}: there is nothing to take away", did_you_mean(key, map(str, below)))
        elif value is None and mapping is not None and OmegaConf.get_type(mapping) is dict:
            below[key] = {}
        else:
            left[key] = value
    return left


def _without_none(hint: Any) -> Any:
    """``X | None`` is ``X`` here: absence is checked by OmegaConf."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        some = [part for part in typing.get_args(hint) if part is not type(None)]
        return some[0] if len(some) == 1 else hint
    return hint


def resolved(value: Any, base: Path, rule: str) -> Any:
    """A path made absolute, by the rule of its field; what holds an interpolation has to wait for its value."""
    if not value or not isinstance(value, str) or "${" in value or value.startswith(places.RUN) or rule == "text":
        return value
    if rule == "explicit" and not value.startswith((".", "/", "~")):
        return value
    path = base / value
    if rule == "file" and path.name != "..":
        return str(path.parent.resolve() / path.name)
    return str(path.resolve())
