"""What a newcomer would otherwise find out one failed job at a time."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hala_hpc import __version__
from hala_hpc.config.compose import of_place
from hala_hpc.config.errors import HalaError
from hala_hpc.config.places import expanded
from hala_hpc.config.schema import Environment, Recipe
from hala_hpc.run.files import touched_now
from hala_hpc.slurm import commands, nodetest
from hala_hpc.slurm.commands import limits, parse_config
from hala_hpc.slurm.script import launch, parameters
from hala_hpc.slurm.submit import would_take
from hala_hpc.slurm.survey import file_system

IMPORT_SECONDS = 180.0
"""A first import of vLLM from a cold shared file system takes a minute or two."""
LITTLE_SPACE_GB = 20
CLOCK_SECONDS = 60.0
EXAMPLE, CHANGE = "example-h100.yaml", "CHANGE"
LOCAL = ("tmpfs", "ramfs", "overlay", "squashfs")
"""Kinds of file systems that no other machine sees."""
NEEDED = {"serve": "vllm", "work": "trl"}
"""What the environment of this name must be able to import, besides hala_hpc."""


@dataclass(frozen=True)
class Finding:
    """One thing looked at; ``advice`` says what to do where it is not as it should be."""

    what: str
    state: Literal["ok", "warning", "missing"]
    detail: str
    advice: str = ""


def examine(recipe: Recipe, profile: Path, is_named: bool = True) -> Iterator[Finding]:
    """Look at this machine and at the recipe's site, one finding after the other. Makes nothing that stays.

    ``is_named``: a person said which site, and did not just forget to.
    """
    yield Finding("hala_hpc", "ok", f"{__version__}, Python {sys.version.split()[0]}")
    if not is_named and shutil.which("sbatch"):
        unset = f"not set, though this machine has Slurm: this is about {recipe.site.name}"
        yield Finding(
            "HALA_SITE", "warning", unset, "export HALA_SITE=NAME, one of `hala sites`; `hala init` makes one"
        )
    yield from _unedited(profile)
    yield from _two_roots(recipe, profile)
    yield from _runs(Path(recipe.run.root), recipe.site.executor == "slurm")
    yield from _cache(recipe)
    for name, environment in recipe.site.environments.items():
        yield _environment(name, environment, "cuda" if recipe.site.slurm.gpus_per_worker else "cpu")
    if not recipe.site.environments:
        advice = "--site local-cpu has an environment for it, made by `make serve`; other engines need none"
        this = _importable(sys.executable, "serve", "no environments in the profile, so workers use this one", advice)
        # No fault where the engine is an endpoint: only vLLM in the worker needs it.
        yield this if this.state == "ok" else replace(this, state="warning")
    if recipe.site.executor == "slurm":
        yield from _slurm(recipe)


def _unedited(profile: Path) -> Iterator[Finding]:
    """Lines of a copied example that had to be changed, and were not."""
    lines = profile.read_text("utf-8", "replace").splitlines()
    example = profile.with_name(EXAMPLE)
    shipped = set(example.read_text("utf-8").splitlines()) if example.is_file() else set()
    left = [
        number
        for number, line in enumerate(lines, 1)
        if CHANGE in line.partition("#")[0] or (CHANGE in line and line in shipped and line.partition("#")[0].strip())
    ]
    if left:
        lines_left = f"{profile}: CHANGE stands in line {', '.join(map(str, left))}"
        yield Finding("profile", "missing", lines_left, "put in what your cluster has, and take the mark away")


def _two_roots(recipe: Recipe, profile: Path) -> Iterator[Finding]:
    """$HALA_RUNS is stronger than a profile, so a profile that says another folder misleads."""
    layers = [layer for layer in of_place(profile) if isinstance(layer.values.get("run"), dict)]
    roots = {layer.where: str(layer.values["run"].get("root")) for layer in layers if "root" in layer.values["run"]}
    places = {where: _rooted(root, profile.parent) for where, root in roots.items()}
    if len(set(places.values())) > 1:
        differing = ", ".join(f"{where} says {root}" for where, root in places.items())
        yield Finding("run.root", "warning", f"{differing}; runs go to {recipe.run.root}", "let both say the same")


def _rooted(root: str, base: Path) -> Path:
    try:
        return (base / expanded(root, "run.root")).resolve()
    except HalaError:
        return Path(root)


def nodes(recipe: Recipe, wait: float, say: Callable[[str], None]) -> Iterator[Finding]:
    """What the test jobs of a site show, and whether leases are long enough for it."""
    try:
        measured = nodetest.measure(recipe, wait, say)
    except HalaError as error:
        yield Finding("test job", "missing", error.message, error.hint or "mend site.slurm")
        return
    for each in measured:
        what = f"nodes {each.partition}".strip()
        if each.untested:
            yield Finding(what, "warning", each.untested, "try again later, or --wait longer")
        yield from (Finding(what, "missing", problem, "mend it before any run") for problem in each.problems)
        yield from (Finding(what, "ok", line) for line in each.facts())
    least = nodetest.lease_seconds(measured)
    if least > recipe.run.lease_seconds:
        short = f"run.lease_seconds is {recipe.run.lease_seconds:.0f}, and what was measured asks for {least:.0f}"
        yield Finding("lease", "warning", short, f"set run.lease_seconds: {least:.0f} in the profile")


def _runs(root: Path, is_for_nodes: bool) -> Iterator[Finding]:
    if CHANGE in root.parts:
        return  # already named; no folder must be made of it
    there = next(folder for folder in (root, *root.parents) if folder.exists())
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=there) as folder:
            file, link = Path(folder, "file"), Path(folder, "link")
            file.write_text("x")
            link.hardlink_to(file)
            ahead = touched_now(file) - time.time()
        free = shutil.disk_usage(there).free / 1e9
    except OSError as error:
        yield Finding("runs", "missing", f"{root}: {error.strerror}", "set run.root to a shared, writable folder")
        return
    kind = file_system(there.resolve())
    if is_for_nodes and kind in LOCAL:
        yield Finding("runs", "warning", f"{root} is on {kind}, this machine's own", "set run.root to a shared folder")
    detail = f"{root.resolve()}{'' if there == root else ' (to be made)'}: hard links work, {free:,.0f} GB free"
    little = f"less than {LITTLE_SPACE_GB} GB: free some space, or set run.root"
    yield Finding("runs", "ok", detail) if free > LITTLE_SPACE_GB else Finding("runs", "warning", detail, little)
    if abs(ahead) > CLOCK_SECONDS:
        off = f"the file server is {ahead:+.0f} s off"
        yield Finding("clock", "warning", off, "harmless for runs; tell the admins")


def _cache(recipe: Recipe) -> Iterator[Finding]:
    for key in ("cache", "scratch"):
        folder = getattr(recipe.site, key)
        if folder and not os.access(folder, os.W_OK):
            where = "compute nodes may have it" if key == "scratch" else f"make it, or set site.{key}"
            yield Finding(key, "warning", f"{folder}: not writable here", where)
        elif folder:
            yield Finding(key, "ok", folder)


def _environment(name: str, environment: Environment, device: str) -> Finding:
    if environment.container is not None:
        runtime = environment.container.runtime
        state: Literal["ok", "warning"] = "ok" if runtime == "pyxis" or shutil.which(runtime) else "warning"
        return Finding(f"environment {name}", state, f"{runtime} {environment.container.image}")
    if environment.modules or environment.python:
        return Finding(f"environment {name}", "ok", "set up on the node by the site's own lines: not checked")
    advice = f"hala env build {name}-{device} --to {environment.venv}"
    return _importable(f"{environment.venv}/bin/python", name, str(environment.venv), advice)


def _importable(python: str, name: str, where: str, advice: str) -> Finding:
    module = NEEDED.get(name, "hala_hpc")
    code = f"import hala_hpc, submitit, {module}; print({module}.__version__)"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=IMPORT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding(f"environment {name}", "missing", f"{where}: {error}", advice)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["failed"])[-1]
        return Finding(f"environment {name}", "missing", f"{where}: {last}", advice)
    return Finding(f"environment {name}", "ok", f"{where}: {module} {done.stdout.split()[-1]}")


def _slurm(recipe: Recipe) -> Iterator[Finding]:
    site = recipe.site
    yield _tried("slurm", lambda: commands.run("scontrol", "ping").strip().splitlines()[0], commands.NO_SLURM)
    try:
        config = parse_config(commands.run("scontrol", "show", "config"))
    except HalaError:
        return
    most = limits(site.slurm)
    of_user = "any" if most.submit is None else f"{most.submit:,}"
    yield Finding("limits", "ok", f"arrays of {most.array:,}, {most.jobs:,} jobs, {of_user} of this user")
    if config.get("AccountingStorageType", "").endswith("/none"):
        yield Finding("accounting", "warning", "off: everything works, but why a job died is not on record")
    yield _tried("job", lambda: _tested(recipe), f"mend site.slurm of {site.name}; `sinfo` lists the partitions")


def _tested(recipe: Recipe) -> str:
    """Ask Slurm whether it would take the job, without submitting it."""
    would_take(parameters(recipe, launch(recipe.site, next(iter(recipe.site.environments), "serve"))))
    return "Slurm would take it"


def _tried(what: str, look: Callable[[], str], advice: str) -> Finding:
    try:
        return Finding(what, "ok", look())
    except HalaError as error:
        return Finding(what, "missing", error.message, error.hint or advice)
