"""One layer of configuration: a file or the command line, checked key by key before it is merged.

OmegaConf checks types when layers merge, but by then nobody knows which file said what. So each layer is walked against
the schema first: unknown keys are refused by name, a lone value becomes a list where a list is wanted, and paths
are resolved against the place that says them. YAML's plain scalars remember how they were written. What looks like a
secret is refused, for a recipe is frozen into its run, for all to read.
"""

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import yaml
from omegaconf import DictConfig, OmegaConf

from hala_hpc.config import places
from hala_hpc.config.errors import HalaError, did_you_mean
from hala_hpc.config.frozen import overlaid, refuse_cut
from hala_hpc.config.schema import Recipe, Run, Slurm

_BASE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG: Final = "tag:yaml.org,2002:"
_INT: Final = re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)$")
_FLOAT: Final = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"
    r"|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
)


@dataclass(frozen=True)
class Written:
    """A plain scalar that YAML takes for a truth value or a number: ``value``, and the ``text`` that stood there."""

    value: bool | int | float
    text: str

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__


def load(text: str) -> Any:
    """The YAML in ``text``; keys are text, numbers and truth values are ``Written``. Raises yaml.YAMLError."""
    return yaml.load(text, Loader=_Loader)


def wanted(value: Any, hint: Any) -> Any:
    """``value`` as a key of the type ``hint`` takes it, at any depth: text for text, YAML's own choice for Any."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(value, list):
        return [wanted(item, arguments[0] if origin is list else Any) for item in value]
    if isinstance(value, dict):
        return {key: wanted(item, arguments[1] if origin is dict else Any) for key, item in value.items()}
    if not isinstance(value, Written):
        return value
    if hint is Any or (hint is float and not isinstance(value.value, bool)):
        return value.value
    if origin is typing.Literal:
        return next((word for word in arguments if word == value.value and type(word) is type(value.value)), value.text)
    return value.text  # OmegaConf makes whole numbers and truth values of it, or says that it cannot


class _Loader(_BASE):  # type: ignore[misc]
    """See the module. A key that stands there twice is refused, and so is a value that contains itself."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in patterns if tag.removeprefix(_TAG) in ("bool", "null", "merge")]
        for first, patterns in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def mapping(self, node: Any) -> dict[str, Any]:
        keys = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key that is not text", key.start_mark)
            if keys.count(key.value) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key.value}", key.start_mark)
        self.flatten_mapping(node)
        return {key.value: self.construct_object(value, deep=True) for key, value in node.value}

    def sequence(self, node: Any) -> list[Any]:
        return [self.construct_object(item, deep=True) for item in node.value]

    def written(self, node: Any) -> Written:
        kind = node.tag.removeprefix(_TAG)
        return Written(getattr(self, f"construct_yaml_{kind}")(node), node.value)


_Loader.add_implicit_resolver(f"{_TAG}int", _INT, list("-+0123456789"))
_Loader.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+.0123456789"))
for _kind in ("bool", "int", "float"):
    _Loader.add_constructor(f"{_TAG}{_kind}", _Loader.written)
_Loader.add_constructor(f"{_TAG}map", _Loader.mapping)
_Loader.add_constructor(f"{_TAG}seq", _Loader.sequence)


POSITIVE: Final = {
    Run: ("workers", "shard_tokens", "shard_rows", "attempts", "lease_seconds", "stall_seconds", "submissions", "days"),
    Slurm: ("nodes_per_worker", "ranks_per_node", "cpus_per_worker", "minutes", "max_running", "gpu_memory_gb"),
}
NOT_NEGATIVE: Final = {Run: ("flush_seconds",), Slurm: ("gpus_per_worker", "mem_gb", "signal_seconds")}


def check(value: Any, name: str = "") -> None:
    """Walk a recipe, or a part of it that is called ``name``. Raises HalaError, which names the key."""
    if isinstance(value, float) and not math.isfinite(value):
        raise HalaError(f"{name}: {value} is not a number to work with", "give a finite one")
    if dataclasses.is_dataclass(value):
        _check_signs(value, name)
        value = vars(value)
    for key, item in value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ()):
        check(item, f"{name}.{key}".strip("."))


def _check_signs(section: Any, name: str) -> None:
    for keys, rule in ((POSITIVE, "more than 0"), (NOT_NEGATIVE, "0 or more")):
        for key in keys.get(type(section), ()):
            number = getattr(section, key)
            if number is not None and (number < 0 or (number == 0 and keys is POSITIVE)):
                raise HalaError(f"{name}.{key}: must be {rule}")


SECRETS: Final = (
    r"\b(?:hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{20,}|gh[opsu]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,}"
    r"|glpat-[A-Za-z0-9_-]{20,}|AKIA[0-9A-Z]{16}\b|xox[abprs]-[A-Za-z0-9-]{20,})"
)
"""Keys of the hub, OpenAI, GitHub, GitLab, AWS and Slack: a regular expression, for text and for bytes."""
_NAME: Final = r"(?:\w*_)?(?:TOKEN|SECRET|PASSWORD|PASSWD|KEY|CREDENTIALS)"
_VARIABLE: Final = re.compile(rf"{_NAME}$", re.IGNORECASE)
_FROM_ENVIRONMENT: Final = re.compile(r"\$\{oc\.env:\s*(\w+)")
_ASSIGNED: Final = re.compile(rf"(?<![\w$])({_NAME})=[\"']?[^\s\"'$`]", re.IGNORECASE)
"""``HF_TOKEN=hf_…`` in a line of shell; ``HF_TOKEN=$(cat …)`` only says where it is."""
_GIVEN: Final = re.compile(
    r"(?P<option>--(?:[a-z]+-)*(?:token|password|passwd|secret|api-?key))\s+[\"']?[^\s\"'$`-]"
    r"|(?P<login>\blogin)\s+[0-9a-f]{40}\b|(?P<bearer>\bBearer)\s+[\w.~+/-]{8,}|(?P<url>://[^\s/:@$]+):[^\s/:@$]+@",
    re.IGNORECASE,
)
"""A secret that is a word of a command: ``--token abc``, ``wandb login 0123…``, ``https://me:abc@host``."""
_SHELL: Final = (".setup", ".args", ".mounts", ".variables", ".extra", ".at_end")


def refuse(where: str, name: str, value: Any) -> None:
    """Raises HalaError where the value of the key ``name`` holds a secret, names one, or assigns one in shell."""
    named = [key for key in value if _VARIABLE.match(str(key))] if isinstance(value, dict) and _is_shell(name) else []
    for text in _texts(value):
        named += filter(_VARIABLE.match, _FROM_ENVIRONMENT.findall(text))
        named += _ASSIGNED.findall(text) if _is_shell(name) else []
        if _is_shell(name) and (given := _GIVEN.search(text)):
            what = f"what follows '{given[given.lastgroup or 0]}' would be written into the run directory"
            raise HalaError(f"{where}: {name}: {what}", "read a secret where it is used, such as $(cat ~/.token)")
        if re.search(SECRETS, text):
            raise HalaError(f"{where}: {name}: holds what looks like a secret key", "take it out, and have it revoked")
    for secret in map(str, named):
        raise HalaError(
            f"{where}: {name}: {secret} would be written into the run directory",
            f"read it where it is used: a line of setup, such as export {secret}=$(cat ~/.{secret.lower()})",
        )


def _is_shell(name: str) -> bool:
    return any(f"{part}." in f"{name}." for part in _SHELL)


def _texts(value: Any) -> Iterator[str]:
    """All texts at any depth."""
    if isinstance(value, dict):
        value = [part for key, item in value.items() for part in (item, key)]
    if isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif value is not None:
        yield str(value)


INCLUDE: Final = "include"
"""Key of a recipe: files whose values stand below its own, such as a prompt."""
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
        values = load(text)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise HalaError(f"{path}: not valid YAML: {_one_line(error)}") from error
    if not isinstance(values, dict):
        kind = "a list" if isinstance(values, list) else "nothing" if values is None else f"'{values}'"
        raise HalaError(f"{path}: expected `key: value` lines, found {kind}")
    return Layer(values, str(path), path.resolve().parent, frozen)


def of_recipe(path: Path, above: tuple[Path, ...] = ()) -> list[Layer]:
    """A recipe's layers, weakest first: the files that its key ``include`` names, as it writes them, and itself.

    What is included may include others, and has no ``grid``; ``above`` are the files that include this one.
    Raises HalaError.
    """
    recipe = from_file(path)
    if above and "grid" in recipe.values:
        raise HalaError(f"{path}: is included by {above[-1]}, and cannot have 'grid'")
    if path.resolve() in above:
        raise HalaError(f"{path}: includes itself, by way of {above[-1]}")
    named = recipe.values.get(INCLUDE) or []
    below: list[Layer] = []
    for name in named if isinstance(named, list) else [named]:
        if not isinstance(name, str):
            raise HalaError(f"{path}: {INCLUDE}: must be a file or a list of files, not {name!r}")
        file = Path(resolved(places.expanded(name, f"{path}: {INCLUDE}"), recipe.base, "file"))
        below += of_recipe(file, (*above, path.resolve()))
    own = {key: value for key, value in recipe.values.items() if key != INCLUDE}
    return [*below, dataclasses.replace(recipe, values=own)]


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
            value = load(json.dumps(text) if text.startswith(tuple("*&!%@`")) else text)
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
        refuse(layer.where, name, value)
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
        raise HalaError(f"{layer.where}: {name}: must be a list of single values, not {value!r}")
    if origin is None and value is None and not is_optional and hint is not Any:
        raise HalaError(f"{layer.where}: {name}: is empty", "leave it out for its default, or give a value")
    if hint is str and isinstance(value, dict | list):
        kind = "a mapping" if isinstance(value, dict) else "a list"
        raise HalaError(
            f"{layer.where}: {name}: must be text, but YAML reads {kind} here",
            f"quote it: '{name}=\"…\"'" if layer.where == "command line" else 'quote it: "…"',
        )
    value = wanted(value, hint)
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
        if value is not None and not isinstance(value, dict):
            left[key] = value
            continue
        name = f"{prefix}{key}"
        is_there = key in below and not OmegaConf.is_missing(below, key) and not OmegaConf.is_interpolation(below, key)
        mapping = below[key] if is_there and isinstance(below[key], DictConfig) else None
        if isinstance(value, dict) and mapping is not None:
            left[key] = take_away(layer, mapping, value, f"{name}.")
        elif value is None and OmegaConf.get_type(below) is dict and key in below:
            below.pop(key)
        elif value is None and OmegaConf.get_type(below) is dict and below._metadata.element_type is not Any:
            raise HalaError(f"{layer.where}: {name}: no such entry to remove", did_you_mean(key, map(str, below)))
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
