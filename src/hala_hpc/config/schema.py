"""What a recipe and a site profile may say: dataclasses that OmegaConf checks.

Two sections are open: ``task`` and ``engine`` take their keys from the module that their ``kind`` names, so a new task
or engine is a new file and changes nothing here. A field with ``metadata=PATH`` holds paths, which are resolved
against the file that says them (on the command line: against the current folder).
"""

from dataclasses import dataclass, field
from typing import Any, Final, Literal

MISSING: Any = "???"
"""OmegaConf's mark of a value that must be given, without the cost of importing it: status is to be quick."""

PATH: Final = {"path": "always"}
"""Metadata of a field that is always a path."""
FILE: Final = {"path": "file"}
"""Metadata of a field that is always a path; a link keeps its own name, whose ending is the format."""
HUB_OR_PATH: Final = {"path": "explicit"}
"""Metadata of a field that is a path only when it starts with ``.``, ``/``, ``~`` or ``run:``; else a hub name."""
WITH_VARIABLES: Final = {"path": "text"}
"""Metadata of a field with paths in it, which are not ours to make absolute: variables of the shell are replaced."""


@dataclass
class Data:
    """Which rows go in. Give ``path`` (files, folders, globs) or ``hub`` (a dataset on the Hugging Face hub)."""

    path: list[str] = field(default_factory=list, metadata=FILE)
    format: Literal["auto", "parquet", "arrow", "jsonl", "json", "csv", "text"] = "auto"
    delimiter: str | None = None  # of CSV; null: a comma, in .tsv a tab
    encoding: str | None = None  # of text, CSV and JSON; null: UTF-8, or what a byte order mark says
    bad_rows: Literal["refuse", "set_aside"] = "refuse"  # rows that are broken or of another form
    where: str | None = None  # only rows that fulfil this condition, such as `lang == "en"`
    hub: str | None = field(default=None, metadata=HUB_OR_PATH)
    hub_config: str | None = None
    split: str | None = None  # null: train on the hub; in a folder: refused where there are several. all: all of them
    revision: str | None = None
    limit: int | None = None  # only this many rows, the first in source order
    shape: str = "auto"  # a name in hala_hpc.data.shapes.SHAPES
    columns: list[str] = field(default_factory=list)  # the text columns, for shapes without fixed names; a.b reaches in
    licence: str | None = None  # as the hub names it, for publishing; null: what its card says
    field: str | None = None  # where in a JSON document the list of rows is; a.b reaches in


@dataclass
class NamedModel:
    """A model: a folder, a finished run, or a name on the hub."""

    name: str = field(default="", metadata=HUB_OR_PATH)
    revision: str | None = None


@dataclass
class Model(NamedModel):
    """The model that an engine loads."""

    tokenizer: str | None = field(default=None, metadata=HUB_OR_PATH)
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)  # for the template: {enable_thinking: false}
    licence: str | None = None  # as the hub names it, for publishing; null: what its card says


@dataclass
class TaskOptions:
    """Base of every task's own section; ``kind`` names the module under ``hala_hpc.worker.registry``."""

    kind: str = "translate"


@dataclass
class EngineOptions:
    """Base of every engine's own section; ``kind`` names the module under ``hala_hpc.engines``."""

    kind: str = "vllm"


@dataclass
class Sampling:
    """How text is drawn. ``max_tokens`` null means: whatever room the model's context leaves."""

    temperature: float = 0.0  # observed: greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: all tokens
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int | None = None
    stop: list[str] = field(default_factory=list)
    seed: int = 0  # every request's own seed is derived from this and from its text


@dataclass
class Track:
    """Numbers for those who watch, from each worker; nothing unless asked for. Neither needs a server."""

    prometheus: str | None = field(default=None, metadata=PATH)  # a folder for text files, as node_exporter reads them
    trackio: str | None = None  # the name of a project: in RUN/trackio, for `trackio show`


@dataclass
class Run:
    """How the work is cut, spread and kept safe."""

    root: str = field(default="runs", metadata=PATH)  # runs live here, one folder each
    workers: int = 1  # at most this many array tasks at once
    shard_tokens: int = 200_000  # a shard's estimated input tokens (ours: minutes, not hours, on one GPU)
    shard_rows: int = 10_000  # and never more rows than this
    lease_seconds: float = 120.0  # a worker that is silent for longer is taken for dead; above NFS's caching (60 s)
    flush_seconds: float = 2.0  # finished rows are made durable this often: the most that a kill costs
    attempts: int = 5  # a shard that failed or killed its worker so often is set aside until `hala resume`
    stall_seconds: float = 1800.0  # a worker without a completion for longer, while requests wait, ends itself
    steward: bool = True  # with Slurm: a small job follows the workers, and hands in new ones for what is missing
    submissions: int = 20  # arrays that stewards hand in before a person has to look (ours)
    days: float = 30.0  # and for how long after a person started workers (ours)
    track: Track = field(default_factory=Track)


@dataclass
class Slurm:
    """What one worker asks of Slurm. Unset keys are left to the cluster's defaults.

    A worker of several nodes (a training) has these GPUs, cores and gigabytes on each of them.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodes_per_worker: int = 1  # more than one for trainings only
    ranks_per_node: int | None = None  # processes of a training on each node; null: one a GPU
    gpus_per_worker: int = 0
    gpu_type: str | None = None
    # How sbatch is asked for them; none: not at all, or by `extra`.
    gpu_option: Literal["gres", "gpus", "gpus-per-node", "gpus-per-task", "none"] = "gres"
    gpu_memory_gb: float | None = None  # of one GPU: what the plan of a training has to fit in; null: 80
    cpus_per_worker: int | None = 4  # null: left to the site
    mem_gb: float | None = None  # 0: all of the node
    minutes: int = 60  # time limit of one job; a longer run goes on by requeueing
    signal_seconds: int = 90  # the worker gets a signal to stop and requeue this long before the limit
    max_running: int | None = None  # array tasks that Slurm runs at once (`--array=...%N`)
    extra: dict[str, Any] = field(default_factory=dict)  # sbatch options by their long name, stronger than ours


@dataclass
class Container:
    """Run workers in a container. ``runtime`` apptainer wraps python; pyxis uses ``srun --container-*``."""

    runtime: Literal["apptainer", "pyxis"] = "apptainer"
    image: str = field(default=MISSING, metadata=WITH_VARIABLES)
    mounts: list[str] = field(default_factory=list, metadata=WITH_VARIABLES)
    args: list[str] = field(default_factory=list, metadata=WITH_VARIABLES)


@dataclass
class Environment:
    """Where the Python of some tasks lives and what must be set up before it starts."""

    venv: str | None = field(default=None, metadata=PATH)
    # Instead of a venv: the interpreter, as named inside the container or by the modules.
    python: str | None = field(default=None, metadata=WITH_VARIABLES)
    modules: list[str] = field(default_factory=list)
    container: Container | None = None
    setup: list[str] = field(default_factory=list)  # shell lines of the site's own, run before the worker
    variables: dict[str, str] = field(default_factory=dict, metadata=WITH_VARIABLES)


@dataclass
class Site:
    """A cluster, or this machine."""

    name: str = "local"
    executor: Literal["slurm", "local", "debug"] = "local"
    shared_with: Literal["group"] | None = None  # who else may resume runs that are planned here: their folder's group
    slurm: Slurm = field(default_factory=Slurm)
    slurm_cpu: Slurm = field(default_factory=Slurm)  # the same for work that needs no GPU: tokenizing
    environments: dict[str, Environment] = field(default_factory=dict)  # by name: serve, work
    cache: str | None = field(default=None, metadata=PATH)  # models and datasets (HF_HOME); null: the user's own
    scratch: str | None = field(default=None, metadata=PATH)  # node-local, for compile caches; null: the system's
    offline: bool = False  # compute nodes have no internet: only what `hala prefetch` fetched is used
    jobs_submit: bool = True  # jobs may hand in jobs; false: no steward follows (`hala steward RUN --watch` instead)
    # A program and its arguments, started without a shell when a run is done or stopped for good.
    at_end: list[str] = field(default_factory=list, metadata=WITH_VARIABLES)
    mail: str | None = None  # whom Slurm writes to then


@dataclass
class Recipe:
    """Everything that a run is asked to do, and where."""

    name: str = MISSING
    task: Any = MISSING
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    engine: Any = MISSING
    sampling: Sampling = field(default_factory=Sampling)
    run: Run = field(default_factory=Run)
    site: Site = field(default_factory=Site)

    @property
    def is_shared(self) -> bool:
        """Whether the group may resume the run; never a training, whose checkpoints run code where they are loaded."""
        return self.site.shared_with == "group" and self.task.kind != "train"


SECTIONS: Final[dict[str, type[TaskOptions] | type[EngineOptions]]] = {"task": TaskOptions, "engine": EngineOptions}
"""The open sections and the base of their options."""
