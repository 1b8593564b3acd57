"""Where packages come from: pip's configuration handed on to uv, and the sources of torch in the order to try."""

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

_HANDED_ON = (  # pip's option; uv's variable; another name of that variable; what stands between values in it
    ("index-url", "UV_DEFAULT_INDEX", "UV_INDEX_URL", ""),
    ("extra-index-url", "UV_INDEX", "UV_EXTRA_INDEX_URL", " "),
    ("find-links", "UV_FIND_LINKS", "", ","),
    ("trusted-host", "UV_INSECURE_HOST", "", " "),
    ("cert", "SSL_CERT_FILE", "", ""),
    ("default-timeout", "UV_HTTP_TIMEOUT", "", ""),
    ("timeout", "UV_HTTP_TIMEOUT", "", ""),
)


@dataclass(frozen=True)
class TorchSource:
    """One place to take torch from: what to ask uv for, with which options, and what a person is told."""

    requirement: str
    options: tuple[str, ...]
    says: str


def torch_sources(version: str) -> tuple[TorchSource, ...]:
    """Where to take ``torch==version`` from, in the order to try.

    The plain registry's build of a version is the CUDA one. A lock that says ``+cpu`` therefore gets that build from
    any configured source that has it, else from PyTorch's own index, which uv knows by its backend name; and only then
    the plain one, with the packages it needs. A lock that says nothing means the CUDA build, also where the CPU one is
    on offer.
    """
    base, _, label = version.partition("+")
    if not label:
        plain = f"torch {base}, the CUDA build, from the configured sources"
        return (TorchSource(f"torch=={base},!={base}+cpu", ("--no-deps",), plain),)
    return (
        TorchSource(f"torch=={version}", ("--no-deps",), f"torch {version} from the configured sources"),
        TorchSource(
            f"torch=={base}",
            ("--no-deps", "--torch-backend", label),
            f"torch {base} from PyTorch's own index of {label} builds",
        ),
        TorchSource(f"torch=={base}", (), f"the registry's plain torch {base}: the CUDA build, several GB larger"),
    )


def pip_settings(listing: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Options of pip: the output of ``pip config list``, and the ``PIP_*`` variables, which win as they do in pip."""
    sections: dict[str, dict[str, str]] = {"global": {}, "install": {}}
    for line in listing.splitlines():
        key, _, value = line.partition("=")
        section, _, option = key.rpartition(".")
        if section in sections:
            sections[section][option] = str(ast.literal_eval(value))
    variables = {k[4:].lower().replace("_", "-"): v for k, v in environ.items() if k.startswith("PIP_") and v}
    return sections["global"] | sections["install"] | variables


def uv_variables(pip: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that make uv use pip's sources. What ``environ`` tells uv already is left as it is."""
    found: dict[str, str] = {}
    for option, variable, alias, separator in _HANDED_ON:
        if option in pip and not environ.get(variable) and not environ.get(alias):
            found[variable] = separator.join(pip[option].split()) if separator else pip[option]
    if "UV_INDEX" in found and not environ.get("UV_INDEX_STRATEGY"):
        # pip takes the best version from all its indexes; uv alone would stop at the first index that knows the name.
        found["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    if pip.get("no-index", "").lower() in {"1", "true", "yes", "on"} and not environ.get("UV_OFFLINE"):
        found["UV_OFFLINE"] = "1"  # uv has no variable for pip's no-index; both mean that only local wheels count
    return found


def uv_environ() -> dict[str, str]:
    """Our own environment, plus what makes uv use the sources that pip uses."""
    pip = [sys.executable, "-m", "pip"] if importlib.util.find_spec("pip") else [shutil.which("pip") or ""]
    listing = ""
    if pip[0]:
        command = [*pip, "config", "list"]
        listing = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return {**os.environ, **uv_variables(pip_settings(listing, os.environ), os.environ)}
