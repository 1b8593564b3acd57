"""One layer of configuration: a file or the command line, checked key by key before it is merged.

OmegaConf checks types when layers merge, but by then nobody knows which file said what. So each layer is walked against
the schema first: unknown keys are refused by name, a lone value becomes a list where a list is wanted, and paths
are resolved against the place that says them.
"""

import dataclasses
import json
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hala_hpc.config.errors import HalaError, did_you_mean

_SECRET = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|KEY|CREDENTIALS)$", re.IGNORECASE)
_FROM_ENVIRONMENT = re.compile(r"\$\{oc\.env:\s*(\w+)")


@dataclass(frozen=True)
class Layer:
    """What one place says: ``values`` is a plain nested dict, ``where`` its name in errors, ``base`` its folder."""

    values: dict[str, Any]
    where: str
    base: Path


def from_file(path: Path) -> Layer:
    """Read a YAML file. Raises HalaError where it is missing, broken or no mapping."""
    if not path.is_file():
        raise HalaError(f"{path}: no such file", "give the path of a YAML file")
    try:
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException, OSError) as error:
        raise HalaError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise HalaError(f"{path}: expected `key: value` lines, found {'nothing' if not values else 'a list'}")
    return Layer(typing.cast(dict[str, Any], values), str(path), path.resolve().parent)


def from_command_line(overrides: Sequence[str]) -> Layer:
    """``key.sub=value`` words, as a layer."""
    given = OmegaConf.create()
    for word in overrides:
        if "=" not in word or word.startswith("="):
            raise HalaError(f"'{word}': not of the form key=value", "for example run.workers=64")
        try:
            given.merge_with_dotlist([_plain_words(word)])
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise HalaError(f"command line: '{word}': {' '.join(str(error).split())}") from error
    values = OmegaConf.to_container(given)
    return Layer(typing.cast(dict[str, Any], values), "command line", Path.cwd())


def _plain_words(word: str) -> str:
    """``data.path=*.jsonl`` is no YAML: a value that begins with a sign of YAML's grammar is meant as text."""
    key, _, value = word.partition("=")
    return f"{key}={json.dumps(value)}" if value.startswith(tuple("*&!%@`")) else word


def checked(layer: Layer, values: Any, schema: type, prefix: str = "") -> dict[str, Any]:
    """``values`` with only keys of the dataclass ``schema``, paths made absolute. Raises HalaError."""
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise HalaError(f"{layer.where}: '{prefix.rstrip('.')}' holds keys of its own, not the value {values!r}")
    fields = {field.name: field for field in dataclasses.fields(schema)}
    hints = typing.get_type_hints(schema)
    result = {}
    for key, value in values.items():
        if key not in fields:
            raise HalaError(f"{layer.where}: unknown key '{prefix}{key}'", did_you_mean(str(key), fields))
        result[key] = _checked_value(layer, value, hints[key], dict(fields[key].metadata), f"{prefix}{key}")
    return result


def _checked_value(layer: Layer, value: Any, hint: Any, metadata: dict[str, str], name: str) -> Any:
    hint = _without_none(hint)
    _refuse_secrets(layer, value, name)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if value is None else checked(layer, value, hint, f"{name}.")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is dict and dataclasses.is_dataclass(arguments[1]) and isinstance(value, dict):
        inner = typing.cast(type, arguments[1])
        return {key: checked(layer, item, inner, f"{name}.{key}.") for key, item in value.items()}
    if origin is list and value is not None and not isinstance(value, list):
        value = [value]
    if origin is list and any(item is None or isinstance(item, dict | list) for item in value or ()):
        raise HalaError(f"{layer.where}: {name}: a list of single values is wanted, not {value!r}")
    if "path" in metadata and value is not None:
        try:
            paths = [resolved(item, layer.base, metadata["path"]) for item in (value if origin is list else [value])]
        except RuntimeError as error:  # ~nobody
            raise HalaError(f"{layer.where}: {name}: {value}: no such home folder") from error
        return paths if origin is list else paths[0]
    return value


def _refuse_secrets(layer: Layer, value: Any, name: str) -> None:
    """Everything in a layer is written down in the run directory, and printed: no place for a secret."""
    named = list(value) if isinstance(value, dict) and name.endswith(".variables") else []
    named += _FROM_ENVIRONMENT.findall(value) if isinstance(value, str) else []
    for secret in filter(_SECRET.search, map(str, named)):
        raise HalaError(
            f"{layer.where}: {name}: {secret} would be written into the run directory",
            f"read it where it is used: a line of setup, such as export {secret}=$(cat ~/.{secret.lower()})",
        )


def _without_none(hint: Any) -> Any:
    """``X | None`` is ``X`` here: absence is checked by OmegaConf."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        some = [part for part in typing.get_args(hint) if part is not type(None)]
        return some[0] if len(some) == 1 else hint
    return hint


def resolved(value: Any, base: Path, rule: str) -> Any:
    """A path made absolute, by the rule of its field; what holds an interpolation has to wait for its value."""
    if not isinstance(value, str) or "${" in value:
        return value
    if rule == "explicit" and not value.startswith((".", "/", "~")):
        return value
    return str((base / Path(value).expanduser()).resolve()) if value else value
