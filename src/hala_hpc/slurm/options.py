"""What a recipe asks of Slurm, as submitit's parameters: our options of sbatch, and on top of them the person's own."""

import re
from collections.abc import Sequence
from typing import Any, Final

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Recipe, Slurm
from hala_hpc.slurm.script import Launch, rank_variables

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


def parameters(recipe: Recipe, started: Launch, ranks: int | None = None, after: Sequence[str] = ()) -> dict[str, Any]:
    """What ``submit_each`` asks for, as submitit's parameters. Raises HalaError for an option that cannot be."""
    slurm = recipe.site.slurm
    cpus = slurm.cpus_per_worker
    own = _own(slurm.extra)
    for_srun = None if own.get("cpus-per-gpu") else own.get("cpus-per-task", cpus)
    wanted: dict[str, Any] = {
        "job_name": f"hala-{recipe.name}",
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "nodes": 1,
        "cpus_per_task": cpus,
        "mem": _memory(slurm.mem_gb),
        "time": slurm.minutes,
        "signal_delay_s": slurm.signal_seconds,
        "array_parallelism": slurm.max_running or max(1, recipe.run.workers),
        "dependency": f"afterany:{':'.join(after)}" if after else None,
        "setup": started.setup,
        # srun does not take --cpus-per-task over from sbatch since Slurm 22.05.
        "srun_args": [*([f"--cpus-per-task={for_srun}"] if for_srun else []), *started.srun],
        "stderr_to_stdout": True,
        "wckey": None,
    }
    wanted |= _of_a_training(recipe, started, ranks) if ranks is not None else {}
    further: dict[str, Any] = {"requeue": True} | gpus(slurm, ranks or 1)
    for option in _replaced(own):
        further.pop(option, None)
        if option not in own or own[option] is None or "-" in option:  # else submitit lets theirs win by itself
            wanted[option.replace("-", "_")] = None
    further |= {option: value for option, value in own.items() if value is not None}
    # submitit leaves out what is None, and has defaults of its own for these where they are not there.
    defaults = ("job_name", "time", "wckey")
    kept = {key: value for key, value in wanted.items() if value is not None or key in defaults}
    return kept | {"additional_parameters": further}


def given(asked: dict[str, Any]) -> list[str]:
    """Long names of the options that are asked for: what a person's own variables must not change."""
    names = (key.replace("_", "-") for key, value in asked.items() if value is not None)
    return [*names, *asked["additional_parameters"], "array", "signal", "output", "open-mode"]


def gpus(slurm: Slurm, ranks: int) -> dict[str, str]:
    """How GPUs are asked for at this site; nothing where there are none. Raises HalaError."""
    each, option = slurm.gpus_per_worker, slurm.gpu_option
    if not each or option == "none":
        return {}
    if option == "gpus":
        each *= slurm.nodes_per_worker
    if option == "gpus-per-task":
        if each % ranks:
            raise HalaError(
                f"site.slurm.gpu_option: {each} GPUs cannot be shared out to {ranks} ranks of a node",
                "set ranks_per_node, or another gpu_option",
            )
        each //= ranks
    amount = f"{slurm.gpu_type}:{each}" if slurm.gpu_type else str(each)
    return {option: f"gpu:{amount}" if option == "gres" else amount}


def _own(extra: dict[str, Any]) -> dict[str, Any]:
    """``site.slurm.extra`` by long names: text, True for a bare flag, None for what is taken away."""
    found: dict[str, Any] = {}
    for key, value in extra.items():
        name, where = str(key).replace("_", "-"), f"site.slurm.extra.{key}"
        if not OPTION.fullmatch(name):
            raise HalaError(f"{where}: no long name of an option of sbatch", "for example exclude, mail-type")
        if name in OURS:
            raise HalaError(f"{where}: hala sets --{name} itself", "leave it out")
        if isinstance(value, dict | list) or any(sign in str(value) for sign in "\n\r\0"):
            raise HalaError(f"{where}: one line of text, a number, true, false or null is wanted, not {value!r}")
        if name in NEEDED and (value is None or value is False):
            raise HalaError(f"{where}: hala cannot do without --{name}", "leave it out, or give it a value")
        found[name] = None if value is False else value
    return found


def _replaced(own: dict[str, Any]) -> list[str]:
    """All options of ours that the person's own take the place of."""
    told = [option for option, value in own.items() if value is not None]
    others = [other for group in ALTERNATIVES if set(group) & set(told) for other in group]
    return list(dict.fromkeys([*own, *others]))


def _memory(gigabytes: float | None) -> str | None:
    if gigabytes is None:
        return None
    return f"{int(gigabytes * 1024)}M" if gigabytes else "0"  # 0: all of the node


def _of_a_training(recipe: Recipe, started: Launch, ranks: int) -> dict[str, Any]:
    """The job has a task for each rank, but srun starts one launcher, which starts the ranks as a step of its own."""
    slurm = recipe.site.slurm
    each = max(1, slurm.cpus_per_worker // ranks) if slurm.cpus_per_worker else None
    environment = recipe.site.environments.get("work")
    # The GPUs are for the ranks' step. In a container there may be no srun, and the launcher has to start them itself.
    inside = environment is not None and environment.container is not None
    none = [] if inside else ["--gres=none"]
    # Where they were asked for in another way, srun would take that from the job's variables.
    forget = [] if inside or slurm.gpu_option == "gres" else [FORGET]
    cpus = [f"--cpus-per-task={each * ranks}"] if each else []
    alone = ["--nodes=1", "--ntasks=1", "--ntasks-per-node=1", "--overlap", *none, *cpus]
    return {
        "nodes": slurm.nodes_per_worker,
        "ntasks_per_node": ranks,
        "cpus_per_task": each,
        "setup": [*started.setup, *forget, *rank_variables(recipe.site, started, ranks)],
        "srun_args": [*alone, *started.srun],
    }
