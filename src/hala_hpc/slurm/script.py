"""The job of a worker: what is asked of sbatch, and how the Python of its environment is started.

Setup lines are the site's own shell and go in as they are; everything else is quoted. A person's own options of sbatch
come on top of ours.
"""

import os
import re
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hala_hpc.config.errors import HalaError, did_you_mean
from hala_hpc.config.schema import Environment, Recipe, Site, Slurm
from hala_hpc.slurm import again

RANKS, CPUS, GPUS = "HALA_RANKS_PER_NODE", "HALA_CPUS_PER_RANK", "HALA_GPUS_PER_NODE"
"""Variables with what a training's job has on each node, for its launcher. The number of nodes is Slurm's to say."""
PYTHON, SRUN = "HALA_PYTHON", "HALA_SRUN"
"""And how a rank's Python is started there: words of a shell command, further options of srun."""
TOKEN: Final = "HALA_SUBMISSION"
"""And the token of what a job was submitted by (see ``record``)."""
FORGET: Final = "unset SLURM_GPUS SLURM_GPUS_PER_NODE SLURM_GPUS_PER_TASK"
OPTION = re.compile(r"[a-z][a-z0-9-]*")
OURS: Final = ("array", "error", "output", "open-mode", "parsable", "wait", "wrap")
"""Options that a run cannot do without as they are: who is which worker, and where its log is."""
NEEDED: Final = ("nodes", "ntasks-per-node", "signal")
"""Options that may be given another value, but not taken away."""
ALTERNATIVES: Final = (
    ("gres", "gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket", "tres-per-node", "tres-per-task"),
    ("cpus-per-task", "cpus-per-gpu"),
    ("mem", "mem-per-cpu", "mem-per-gpu"),
)
"""Ways to ask for one thing: where a person takes one, ours is left out."""
OptionValue = str | int | float | bool | None


@dataclass(frozen=True)
class Launch:
    """``python`` is a shell command, perhaps of several words; ``setup`` goes before it, ``srun`` to srun."""

    python: str
    setup: list[str] = field(default_factory=list)
    srun: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SbatchRequest:
    """What is asked of sbatch: ``parameters`` by submitit's names, ``further`` options by their long names."""

    parameters: Mapping[str, OptionValue | list[str]]
    further: Mapping[str, OptionValue]

    @property
    def for_submitit(self) -> dict[str, Any]:
        return {**self.parameters, "additional_parameters": self.further}

    @property
    def options(self) -> list[str]:
        """Long names of the options that are asked for: what a person's own variables must not change."""
        names = (key.replace("_", "-") for key, value in self.parameters.items() if value is not None)
        return [*names, *self.further, "array", "signal", "output", "open-mode"]

    def known_as(self, token: str) -> "SbatchRequest":
        """The same with a token in the job's comment, by which we find it, and in its environment, by which it does."""
        comment = f"{self.further.get('comment', '')} {token}".strip()
        setup: Any = self.parameters.get("setup") or ()
        parameters = {**self.parameters, "setup": [*_exports({TOKEN: token}), *setup]}
        return SbatchRequest(parameters, {**self.further, "comment": comment})


def launch(site: Site, name: str) -> Launch:
    """How a worker is started in the environment of a name. Where the site has none: in the present one."""
    environment = site.environments.get(name, Environment())
    python, srun = _python(environment, site.slurm.gpus_per_worker > 0)
    cache = {"HF_HOME": site.cache} if site.cache else {}
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"), "1")
    variables = environment.variables | cache | (offline if site.offline else {})
    modules = [f"module load {shlex.quote(name)} || exit 1" for name in environment.modules]
    if wrong := next((name for name in variables if not name.isidentifier()), None):
        raise HalaError(f"site: '{wrong}' is not a name of an environment variable")
    return Launch(python, [*modules, *_exports(dict(sorted(variables.items()))), *environment.setup], srun)


def rank_variables(site: Site, started: Launch, ranks: int) -> list[str]:
    """Setup lines that say to a training's launcher what its ranks have, ``ranks`` on each node."""
    slurm = site.slurm
    cpus, srun = _cpus_of_a_rank(slurm, ranks), shlex.join(started.srun)
    return _exports({RANKS: ranks, CPUS: cpus, GPUS: slurm.gpus_per_worker, PYTHON: started.python, SRUN: srun})


def require_environment(site: Site, name: str) -> None:
    """Refuse a venv without a Python before anything is submitted. Raises HalaError."""
    environment = site.environments.get(name)
    if site.environments and environment is None:
        raise HalaError(f"site {site.name}: no environment '{name}'", did_you_mean(name, site.environments))
    if environment and environment.venv and environment.container is None:
        python = Path(environment.venv) / "bin" / "python"
        if not os.access(python, os.X_OK):
            device = "cuda" if site.slurm.gpus_per_worker else "cpu"
            raise HalaError(
                f"site.environments.{name}.venv: {environment.venv} has no bin/python",
                f"make it with `hala env build {name}-{device} --to {environment.venv}`",
            )


def job_text(request: SbatchRequest, command: str, logs: Path, tasks: int = 1) -> str:
    """The sbatch file of an array of so many tasks, as submitit writes it."""
    from submitit.slurm.slurm import _make_sbatch_string

    count = tasks if tasks > 1 else None
    return str(_make_sbatch_string(command=command, folder=logs, map_count=count, **request.for_submitit))


def parameters(
    recipe: Recipe,
    started: Launch,
    ranks: int | None = None,
    after: Sequence[str] = (),
    *,
    starts_again: bool = False,
) -> SbatchRequest:
    """What ``submit_each`` asks for. Raises HalaError for an option that cannot be.

    ``starts_again``: what is killed (see ``again``).
    """
    slurm = recipe.site.slurm
    cpus = slurm.cpus_per_worker
    own = _own(slurm.extra)
    for_srun = None if own.get("cpus-per-gpu") else own.get("cpus-per-task", cpus)
    wanted: dict[str, OptionValue | list[str]] = {
        "job_name": f"hala-{recipe.name}",
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "nodes": 1,
        "cpus_per_task": cpus,
        # 0: all of the node
        "mem": None if slurm.mem_gb is None else f"{int(slurm.mem_gb * 1024)}M" if slurm.mem_gb else "0",
        "time": slurm.minutes,
        "signal_delay_s": slurm.signal_seconds,
        "array_parallelism": slurm.max_running or max(1, recipe.run.workers),
        "dependency": f"afterany:{':'.join(after)}" if after else None,
        "setup": [*started.setup, *(again.function(slurm.minutes, slurm.signal_seconds) if starts_again else [])],
        # srun does not take --cpus-per-task over from sbatch since Slurm 22.05.
        "srun_args": [*([f"--cpus-per-task={for_srun}"] if for_srun else []), *started.srun],
        "stderr_to_stdout": True,
        "wckey": None,
    }
    wanted |= _of_a_training(recipe, started, ranks) if ranks is not None else {}
    further: dict[str, OptionValue] = {"requeue": True, **gpus(slurm, ranks or 1)}
    for option in _replaced(own):
        further.pop(option, None)
        if option not in own or own[option] is None or "-" in option:  # else submitit lets theirs win by itself
            wanted[option.replace("-", "_")] = None
    further |= {option: value for option, value in own.items() if value is not None}
    # submitit leaves out what is None, and has defaults of its own for these where they are not there.
    defaults = ("job_name", "time", "wckey")
    return SbatchRequest({key: value for key, value in wanted.items() if value is not None or key in defaults}, further)


def gpus(slurm: Slurm, ranks: int) -> dict[str, str]:
    """How GPUs are asked for at this site; nothing where there are none. Raises HalaError."""
    count, option = slurm.gpus_per_worker, slurm.gpu_option
    if not count or option == "none":
        return {}
    if option == "gpus":
        count *= slurm.nodes_per_worker
    if option == "gpus-per-task":
        if count % ranks:
            raise HalaError(
                f"site.slurm.gpu_option: {count} GPUs cannot be shared out to {ranks} ranks of a node",
                "set ranks_per_node, or another gpu_option",
            )
        count //= ranks
    amount = f"{slurm.gpu_type}:{count}" if slurm.gpu_type else str(count)
    return {option: f"gpu:{amount}" if option == "gres" else amount}


def _exports(variables: Mapping[str, object]) -> list[str]:
    return [f"export {key}={shlex.quote(str(value))}" for key, value in variables.items() if value is not None]


def _cpus_of_a_rank(slurm: Slurm, ranks: int) -> int | None:
    return max(1, slurm.cpus_per_worker // ranks) if slurm.cpus_per_worker else None


def _python(environment: Environment, gpus: bool) -> tuple[str, list[str]]:
    """The command, and further options of srun."""
    venv = f"{environment.venv}/bin/python" if environment.venv else None
    inside = shlex.quote(environment.python or venv or ("python" if environment.container else sys.executable))
    container = environment.container
    if container is None:
        return inside, []
    if container.runtime == "pyxis":
        mounts = [f"--container-mounts={','.join(container.mounts)}"] if container.mounts else []
        return inside, [f"--container-image={container.image}", *mounts, *container.args]
    mounts = [word for mount in container.mounts for word in ("--bind", mount)]
    words = ["apptainer", "exec", *(["--nv"] if gpus else []), *mounts, *container.args, container.image]
    return f"{shlex.join(words)} {inside}", []


def _own(extra: Mapping[str, Any]) -> dict[str, OptionValue]:
    """``site.slurm.extra`` by long names: text, True for a bare flag, None for what is taken away."""
    own: dict[str, OptionValue] = {}
    for key, value in extra.items():
        name, where = str(key).replace("_", "-"), f"site.slurm.extra.{key}"
        if not OPTION.fullmatch(name):
            raise HalaError(f"{where} is not a long name of an option of sbatch", "for example exclude, mail-type")
        if name in OURS:
            raise HalaError(f"{where}: hala sets --{name} itself", "leave it out")
        if isinstance(value, dict | list) or any(sign in str(value) for sign in "\n\r\0"):
            raise HalaError(f"{where} must be one line of text, a number, true, false or null, not {value!r}")
        if name in NEEDED and (value is None or value is False):
            raise HalaError(f"{where}: hala cannot do without --{name}", "leave it out, or give it a value")
        own[name] = None if value is False else value
    return own


def _replaced(own: Mapping[str, OptionValue]) -> Collection[str]:
    """All options of ours that the person's own take the place of."""
    given = {option for option, value in own.items() if value is not None}
    return dict.fromkeys([*own, *(option for group in ALTERNATIVES if given & set(group) for option in group)])


def _of_a_training(recipe: Recipe, started: Launch, ranks: int) -> dict[str, OptionValue | list[str]]:
    """The job has a task for each rank, but srun starts one launcher, which starts the ranks as a step of its own."""
    slurm = recipe.site.slurm
    cpus = _cpus_of_a_rank(slurm, ranks)
    environment = recipe.site.environments.get("work")
    # The GPUs are for the ranks' step. In a container there may be no srun, and the launcher has to start them itself.
    inside = environment is not None and environment.container is not None
    no_gpus = [] if inside else ["--gres=none"]
    # Where they were asked for in another way, srun would take that from the job's variables.
    forget = [] if inside or slurm.gpu_option == "gres" else [FORGET]
    with_cpus = [f"--cpus-per-task={cpus * ranks}"] if cpus else []
    return {
        "nodes": slurm.nodes_per_worker,
        "ntasks_per_node": ranks,
        "cpus_per_task": cpus,
        "setup": [*started.setup, *forget, *rank_variables(recipe.site, started, ranks)],
        "srun_args": [
            *("--nodes=1", "--ntasks=1", "--ntasks-per-node=1", "--overlap"),
            *(*no_gpus, *with_cpus, *started.srun),
        ],
    }
