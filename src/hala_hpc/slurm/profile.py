"""The text of a site profile, out of what a cluster says of itself and what a person chose."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Recipe
from hala_hpc.slurm import survey
from hala_hpc.slurm.nodetest import Measured, lease_seconds
from hala_hpc.slurm.script import Launch, parameters
from hala_hpc.slurm.submit import would_take
from hala_hpc.slurm.survey import Cluster, Partition, Shape

NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,60}")
Way = Literal["gres", "gpus-per-node", "gpus", "gpus-per-task"]
WAYS: Final[tuple[Way, ...]] = ("gres", "gpus-per-node", "gpus", "gpus-per-task")
"""How sbatch can be asked for GPUs, in the order to try them."""
MINUTES: Final = 480
"""A job's limit where the partition allows it (ours: short jobs start sooner, and a worker goes on by requeueing)."""
SHARE: Final = 0.95
"""Of a node's memory that jobs get: the system needs some (ours)."""
CPU_WORKER: Final = 8
"""Cores of a worker without a GPU (ours)."""
_PLAIN: Final = re.compile(r"[A-Za-z/.~$][\w/.~$-]*")
_WORDS: Final = frozenset(("yes", "no", "on", "off", "true", "false", "null", "y", "n", "~"))


@dataclass(frozen=True)
class Choice:
    """What a person chose, or what was taken for lack of a choice. ``serve`` and ``work`` are environments' folders."""

    name: str
    root: str
    partition: Partition
    cpu_partition: Partition
    account: str | None
    serve: str
    work: str
    cache: str | None = None
    gpu_option: Way = "gres"
    gpu_type: str | None = None

    @property
    def shape(self) -> Shape:
        """The nodes that workers get."""
        shape = self.partition.shape(with_gpus=True) or self.partition.shape(with_gpus=False)
        if shape is None:
            raise HalaError(f"partition {self.partition.name}: none of its nodes takes jobs now")
        return shape


def text(choice: Choice, cluster: Cluster, measured: Sequence[Measured] = (), untested: str = "") -> str:
    """The profile, commented. ``untested`` says why nothing was measured."""
    return "".join(f"{line}\n" if line else "\n" for line in _lines(choice, cluster, measured, untested))


def _lines(choice: Choice, cluster: Cluster, measured: Sequence[Measured], untested: str) -> Iterator[str]:
    yield f"# {one_line(cluster.name)}, as `hala init` saw it (Slurm {one_line(cluster.version)}). Edit it as you like."
    yield f"# Use it with --site {choice.name}, or export HALA_SITE={choice.name}; `hala doctor` looks whether it fits."
    yield "# Paths are relative to this file, unless they begin with / or ~; variables like $SCRATCH may be in them."
    yield ""
    yield "run:"
    yield f"  root: {path(choice.root)} # where runs live, on a file system that login and compute nodes share"
    yield from _lease(measured, untested)
    yield ""
    yield "site:"
    yield f"  name: {scalar(choice.name)}"
    yield "  executor: slurm"
    yield "  # shared_with: group # colleagues of the group of run.root's folder may resume runs, too"
    yield ""
    yield from _slurm(choice, cluster)
    yield ""
    yield from _slurm_cpu(choice)
    yield ""
    yield from _environments(choice)
    yield ""
    if choice.cache:
        yield f"  cache: {path(choice.cache)} # models and datasets (HF_HOME)"
    else:
        yield "  # cache: /scratch/me/huggingface # models and datasets (HF_HOME); unset: the user's own"
    yield "  # scratch: /local/scratch # node-local and fast, for compile caches; unset: the system's temporary folder"
    yield "  offline: true # compute nodes have no internet: run `hala prefetch RECIPE` on the login node first"
    yield ""
    yield "# What was seen, for you to check:"
    yield from (f"#   {one_line(each)}" for each in _facts(choice, cluster))
    for each in measured:
        yield f"# Test job in partition {each.partition or '(the default)'}:"
        yield from (f"#   {one_line(line)}" for line in each.lines())


def _lease(measured: Sequence[Measured], untested: str) -> Iterator[str]:
    if any(each.behind is not None for each in measured):
        yield "  # From the test jobs below: 1.5 x (2 x what a touch is seen late or early + 10 x the slowest fsync),"
        yield "  # in tens of seconds, and no less than the default unless all was measured between two hosts."
        yield f"  lease_seconds: {lease_seconds(measured):.0f}"
    else:
        why = f" ({one_line(untested)})" if untested else ""
        yield f"  # lease_seconds: not measured{why}, so the default holds. To measure it: hala doctor --job"


def _slurm(choice: Choice, cluster: Cluster) -> Iterator[str]:
    shape = choice.shape
    parts = max(1, shape.gpus)
    minutes = min(MINUTES, choice.partition.minutes or MINUTES)
    yield "  slurm: # what ONE worker asks for; a run starts run.workers of them as one job array"
    yield f"    partition: {scalar(choice.partition.name)}"
    yield from _account(choice, cluster)
    yield "    # qos: normal"
    if shape.gpus:
        yield "    gpus_per_worker: 1 # recipes of large models ask for more; then scale the two below"
        yield f"    gpu_option: {choice.gpu_option} # how sbatch is asked for them: Slurm would take this"
        kind = f"gpu_type: {scalar(choice.gpu_type or shape.gpu_type or 'h100')}"
        yield f"    {kind}" if choice.gpu_type else f"    # {kind} # for sites that want the type, too"
    else:
        yield "    gpus_per_worker: 0 # this partition has no GPUs"
    share = "a node's cores divided by its GPUs" if shape.gpus else "at most so many of a node's cores"
    yield f"    cpus_per_worker: {cores(shape, parts)} # {share}"
    gib = memory(shape, parts if shape.gpus else _workers(shape))
    yield f"    mem_gb: {gib} # the same share of the node's memory, less some for the system"
    yield f"    minutes: {minutes} # time limit of one job; a worker that reaches it requeues and goes on"
    seconds = min(120, minutes * 15)
    yield f"    signal_seconds: {seconds} # so long before the limit a worker stops and gives its rows back"
    yield "    # extra: # further options of sbatch by their long name"
    yield "    #   exclude: node[017,101]"


def _slurm_cpu(choice: Choice) -> Iterator[str]:
    shape = choice.cpu_partition.shape(with_gpus=False) or choice.shape
    yield "  slurm_cpu: # the same for work that needs no GPU, such as tokenizing a training's data"
    yield f"    partition: {scalar(choice.cpu_partition.name)}"
    if choice.account:
        yield f"    account: {scalar(choice.account)}"
    yield f"    cpus_per_worker: {min(CPU_WORKER, shape.cpus)}"
    yield f"    mem_gb: {memory(shape, _workers(shape))}"
    yield f"    minutes: {min(120, choice.cpu_partition.minutes or 120)}"


def _account(choice: Choice, cluster: Cluster) -> Iterator[str]:
    others = [account for account in cluster.accounts if account != choice.account]
    if choice.account:
        also = f" # also yours: {one_line(', '.join(others))}" if others else ""
        yield f"    account: {scalar(choice.account)}{also}"
    else:
        yield "    # account: my-project # Slurm names none of yours here"


def _environments(choice: Choice) -> Iterator[str]:
    device = "cuda" if choice.shape.gpus else "cpu"
    yield "  environments: # where each task's Python is. Translation runs in `serve`, training in `work`"
    for name, folder in (("serve", choice.serve), ("work", choice.work)):
        there = (Path(folder) / "bin" / "python").exists()
        yield f"    {name}:"
        build = f"hala env build {name}-{device} --to {one_line(folder)}"
        yield f"      venv: {path(folder)} # {'is there' if there else f'to be built: {build}'}"
        if name == "serve" and (loaded := survey.modules()):
            yield f"      # modules: {json.dumps(loaded)} # loaded when this was written"
        yield "      variables:"
        yield f'        OMP_NUM_THREADS: "{min(8, max(1, cores(choice.shape, max(1, choice.shape.gpus))))}"'


def _facts(choice: Choice, cluster: Cluster) -> Iterator[str]:
    yield from (f"partition {partition}" for partition in cluster.partitions)
    accounting = "on" if cluster.accounting else "off"
    yield f"arrays of at most {cluster.largest_array:,} tasks; accounting is {accounting}"
    loaded = survey.modules()
    names = ", ".join(loaded or ()) or "none"
    yield "no modules here" if loaded is None else f"modules are here; loaded of Python and CUDA: {names}"
    root = Path(choice.root.replace("$$", "$")) if choice.root.startswith("/") else None
    if root is not None:
        yield f"run.root is on {survey.file_system(root) or 'a file system that the kernel does not name'}"
        yield from (f"quota: {line}" for line in survey.quotas(root))


def cores(shape: Shape, parts: int) -> int:
    """A worker's share of a node's cores."""
    return max(1, shape.cpus // parts) if shape.gpus else min(CPU_WORKER, shape.cpus)


def memory(shape: Shape, parts: int) -> int:
    """A worker's share of a node's memory, in GiB."""
    return max(1, int(shape.memory_mb * SHARE / 1024 / parts))


def _workers(shape: Shape) -> int:
    """How many workers without GPUs a node has room for."""
    return max(1, shape.cpus // min(CPU_WORKER, shape.cpus))


def scalar(value: str) -> str:
    """A name as YAML, quoted where it could be read as anything else; no interpolation is made of it."""
    return path(value.replace("${", r"\${"))


def path(value: str) -> str:
    """A path as YAML: ``~`` and variables in it are what they are."""
    return value if _PLAIN.fullmatch(value) and value.lower() not in _WORDS else json.dumps(value, ensure_ascii=False)


def one_line(value: str) -> str:
    """A text for a comment: whatever Slurm or a path says, it must not begin a line."""
    return "".join(letter if letter.isprintable() else "?" for letter in value)


def accepted(recipe: Recipe, gpu_type: str | None) -> tuple[Way, str | None]:
    """How this site lets GPUs be asked for: the option, and the type where it must be said. Submits nothing.

    Raises HalaError with Slurm's first refusal where it would take no worker at all.
    """
    slurm = recipe.site.slurm
    kinds = (None, gpu_type) if gpu_type else (None,)
    ways = [(way, kind) for kind in kinds for way in WAYS] if slurm.gpus_per_worker else [(WAYS[0], None)]
    refusals = []
    for way, kind in ways:
        asked = replace(slurm, gpu_option=way, gpu_type=kind)
        try:
            would_take(parameters(replace(recipe, site=replace(recipe.site, slurm=asked)), Launch("true")))
        except HalaError as error:
            refusals.append(error)
        else:
            return way, kind
    raise refusals[0]
