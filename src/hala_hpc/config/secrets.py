"""What looks like a secret, and so must not be written down: a recipe is frozen into its run, for all to read."""

import re
from collections.abc import Iterator
from typing import Any, Final

from hala_hpc.config.errors import HalaError

KEYS: Final = r"\b(?:hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{20,}|gh[ps]_[A-Za-z0-9]{30,})"
"""Keys of the hub, of OpenAI and of GitHub: a regular expression, for text and for bytes."""
_NAME: Final = r"(?:\w*_)?(?:TOKEN|SECRET|PASSWORD|PASSWD|KEY|CREDENTIALS)"
_VARIABLE: Final = re.compile(rf"{_NAME}$", re.IGNORECASE)
_FROM_ENVIRONMENT: Final = re.compile(r"\$\{oc\.env:\s*(\w+)")
_ASSIGNED: Final = re.compile(rf"(?<![\w$])({_NAME})=[\"']?[^\s\"'$`]", re.IGNORECASE)
"""``HF_TOKEN=hf_…`` in a line of shell; ``HF_TOKEN=$(cat …)`` only says where it is."""
_SHELL: Final = (".setup", ".args", ".mounts", ".variables", ".extra")


def refuse(where: str, name: str, value: Any) -> None:
    """Raises HalaError where the value of the key ``name`` holds a secret, names one, or assigns one in shell."""
    named = [key for key in value if _VARIABLE.match(str(key))] if isinstance(value, dict) and _is_shell(name) else []
    for text in _texts(value):
        named += filter(_VARIABLE.match, _FROM_ENVIRONMENT.findall(text))
        named += _ASSIGNED.findall(text) if _is_shell(name) else []
        if re.search(KEYS, text):
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
        for key, item in value.items():
            yield from _texts(item)
            yield str(key)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif value is not None:
        yield str(value)
