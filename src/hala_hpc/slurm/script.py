"""How a worker's Python is started in the environment of its stage: the setup lines, the command, srun's arguments.

Setup lines are the site's own shell and go in as they are; everything else is quoted.
"""

import os
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

from hala_hpc.config.errors import HalaError, did_you_mean
from hala_hpc.config.schema import Container, Environment, Site

RANKS, CPUS, GPUS = "HALA_RANKS_PER_NODE", "HALA_CPUS_PER_RANK", "HALA_GPUS_PER_NODE"
"""Variables that tell a training's launcher what its job has on each node. The number of nodes is Slurm's to tell."""
PYTHON, SRUN = "HALA_PYTHON", "HALA_SRUN"
"""And how a rank's Python is started there: words of a shell command, further options of srun."""


@dataclass(frozen=True)
class Launch:
    """``python`` is a shell command, perhaps of several words; ``variables`` are exported before it."""

    python: str
    setup: list[str] = field(default_factory=list)
    srun: list[str] = field(default_factory=list)


def launch(site: Site, stage: str) -> Launch:
    """How a worker of this stage is started at a site. Without an entry for the stage: in the present environment."""
    environment = site.environments.get(stage, Environment())
    python, srun = _python(environment, site.slurm.gpus_per_worker > 0)
    variables = environment.variables | _cache_variables(site)
    modules = [f"module load {shlex.quote(name)} || exit 1" for name in environment.modules]
    exports = [f"export {_name(key)}={shlex.quote(value)}" for key, value in sorted(variables.items())]
    return Launch(python, [*modules, *exports, *environment.setup], srun)


def rank_variables(site: Site, started: Launch, ranks: int) -> list[str]:
    """Setup lines that tell a training's launcher about its ranks, ``ranks`` on each node."""
    slurm = site.slurm
    told = {
        RANKS: ranks,
        CPUS: max(1, slurm.cpus_per_worker // ranks) if slurm.cpus_per_worker else None,
        GPUS: slurm.gpus_per_worker,
        PYTHON: started.python,
        SRUN: shlex.join(started.srun),
    }
    return [f"export {key}={shlex.quote(str(value))}" for key, value in told.items() if value is not None]


def require_environment(site: Site, stage: str) -> None:
    """Refuse a venv that is none before anything is submitted. Raises HalaError."""
    environment = site.environments.get(stage)
    if site.environments and environment is None:
        raise HalaError(
            f"site {site.name}: no environment for the stage '{stage}'", did_you_mean(stage, site.environments)
        )
    if environment and environment.venv and environment.container is None:
        python = Path(environment.venv) / "bin" / "python"
        if not os.access(python, os.X_OK):
            device = "cuda" if site.slurm.gpus_per_worker else "cpu"
            raise HalaError(
                f"site.environments.{stage}.venv: {environment.venv} has no bin/python",
                f"make it with `hala env build {stage}-{device} --to {environment.venv}`",
            )


def _python(environment: Environment, gpus: bool) -> tuple[str, list[str]]:
    venv = f"{environment.venv}/bin/python" if environment.venv else None
    inside = shlex.quote(environment.python or venv or ("python" if environment.container else sys.executable))
    container = environment.container
    if container is None:
        return inside, []
    if container.runtime == "pyxis":
        return inside, _pyxis(container)
    mounts = [word for mount in container.mounts for word in ("--bind", mount)]
    words = ["apptainer", "exec", *(["--nv"] if gpus else []), *mounts, *container.args, container.image]
    return f"{shlex.join(words)} {inside}", []


def _pyxis(container: Container) -> list[str]:
    mounts = [f"--container-mounts={','.join(container.mounts)}"] if container.mounts else []
    return [f"--container-image={container.image}", *mounts, *container.args]


def _cache_variables(site: Site) -> dict[str, str]:
    cache = {"HF_HOME": site.cache} if site.cache else {}
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"} if site.offline else {}
    return cache | offline


def _name(variable: str) -> str:
    if not variable.isidentifier():
        raise HalaError(f"site: '{variable}' is no name of an environment variable")
    return variable
