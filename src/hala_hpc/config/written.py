"""Values as they were written: YAML whose plain scalars remember it, and which numbers make sense in a recipe."""

import dataclasses
import math
import re
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import yaml

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Run, Slurm

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
    Run: ("workers", "shard_tokens", "shard_rows", "attempts", "lease_seconds", "stall_seconds"),
    Slurm: ("nodes_per_worker", "ranks_per_node", "cpus_per_worker", "minutes", "max_running", "gpu_memory_gb"),
}
NOT_NEGATIVE: Final = {Run: ("flush_seconds",), Slurm: ("gpus_per_worker", "mem_gb", "signal_seconds")}


def check(value: Any, name: str = "") -> None:
    """Walk a recipe, or a part of it that is called ``name``. Raises HalaError, which names the key."""
    if isinstance(value, float) and not math.isfinite(value):
        raise HalaError(f"{name}: {value} is not a number to work with", "give a finite one")
    if dataclasses.is_dataclass(value):
        _check_signs(value, name)
    for key, item in _entries(value):
        check(item, f"{name}.{key}".strip("."))


def _entries(value: Any) -> Iterable[tuple[Any, Any]]:
    if dataclasses.is_dataclass(value):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, list) else ()


def _check_signs(section: Any, name: str) -> None:
    for keys, rule in ((POSITIVE, "more than 0"), (NOT_NEGATIVE, "0 or more")):
        for key in keys.get(type(section), ()):
            number = getattr(section, key)
            if number is not None and (number < 0 or (number == 0 and keys is POSITIVE)):
                raise HalaError(f"{name}.{key}: must be {rule}")
