"""What a run cost: what its jobs were given and used, and what of that came to be output. Sums of runs are such, too.

Jobs are those of Slurm's accounting where there is one, else workers stand for them, as far as their ledgers say.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from hala_hpc.run.goodput import Done, Stay, Work, union

ACCOUNTING, LEDGER, BOTH = "accounting", "ledger", "accounting and ledger"
"""Where numbers are from."""
HOUR: Final = 3600.0
DAY: Final = 86_400.0
BILLION: Final = 1e9


@dataclass(frozen=True)
class Allocation:
    """What a job or an array's task was given, once: a requeued one has several. Times in seconds since 1970.

    ``ended`` is None while it works; ``gpus`` where accounting counts none. ``memory`` in bytes, over all nodes;
    ``peak``: what the largest task used of it. ``cpu_seconds`` of system and user; ``energy`` in joules.
    """

    job: str
    state: str
    started: float
    ended: float | None
    seconds: float
    submitted: float | None = None
    eligible: float | None = None
    nodes: int = 0
    cpus: int = 0
    gpus: int | None = None
    memory: int | None = None
    cpu_seconds: float | None = None
    peak: int | None = None
    energy: int | None = None

    def with_peak(self, size: int) -> "Allocation":
        return replace(self, peak=max(size, self.peak or 0))


@dataclass(frozen=True)
class Given:
    """What jobs were given, in sums of seconds. ``worked`` of ``allocated``: in which a worker ran.

    ``allocations`` counts each start of a job, ``requeues`` those after its first. ``waited``: seconds in the queue, of
    ``waits`` starts. CPU time and memory are those of jobs that ended, where accounting says them: ``peak`` and
    ``memory`` (bytes) of the job that used the largest part of its memory.
    """

    allocations: int = 0
    requeues: int = 0
    start: float | None = None
    end: float | None = None
    node_seconds: float = 0.0
    gpu_seconds: float = 0.0
    allocated: float = 0.0
    worked: float = 0.0
    waited: float = 0.0
    waits: int = 0
    longest_wait: float = 0.0
    cpu_given: float = 0.0
    cpu_used: float = 0.0
    memory: int | None = None
    peak: int | None = None
    energy: int | None = None
    energies: int = 0  # starts whose energy is known


@dataclass(frozen=True)
class Cost:
    """What a run cost. ``done`` holds what it published; ``busy`` of ``measured`` worker-seconds the engine had work.

    ``source``: where ``given`` is from. ``notes`` say what is left out or taken for granted. ``steps`` of a training:
    those that made the model, and those done again after a restart.
    """

    name: str
    source: str
    given: Given
    done: Done
    workers: int = 0
    silent: int = 0
    worker_seconds: float = 0.0
    busy: float = 0.0
    measured: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    trained_tokens: int = 0
    steps: Mapping[str, int] | None = None
    notes: Sequence[str] = ()
    useful: float | None = field(default=None)  # of a sum: the third layer, weighed by workers' time

    @property
    def goodput(self) -> dict[str, float | None]:
        """The three layers, each a share of the one before; None: not measured. ``all``: their product."""
        given = self.given
        infrastructure = min(1.0, given.worked / given.allocated) if given.allocated > 0 else None
        framework = min(1.0, self.busy / self.measured) if self.measured > 0 else None
        layers = [infrastructure, framework, self.done.share if self.useful is None else self.useful]
        whole = None
        if all(layer is not None for layer in layers):
            whole = 1.0
            for layer in layers:
                whole *= layer or 0.0
        return {"infrastructure": layers[0], "framework": layers[1], "output": layers[2], "all": whole}

    @property
    def tokens(self) -> int:
        """Those that a model wrote, or learned from."""
        return self.trained_tokens or self.output_tokens

    @property
    def costly(self) -> str:
        """What such tokens are called."""
        return "trained on" if self.trained_tokens else "written"

    @property
    def gpu_days_per_billion_tokens(self) -> float | None:
        if not self.tokens or not self.given.gpu_seconds:
            return None
        return self.given.gpu_seconds / DAY / (self.tokens / BILLION)

    @property
    def cpu_efficiency(self) -> float | None:
        return self.given.cpu_used / self.given.cpu_given if self.given.cpu_given else None

    @property
    def memory_efficiency(self) -> float | None:
        given = self.given
        return given.peak / given.memory if given.peak is not None and given.memory else None

    @property
    def wall_seconds(self) -> float | None:
        given = self.given
        return given.end - given.start if given.start is not None and given.end is not None else None

    def as_json(self) -> dict[str, Any]:
        given = self.given
        return {
            "run": self.name,
            "source": self.source,
            "notes": list(self.notes),
            "gpu_hours": round(given.gpu_seconds / HOUR, 6),
            "node_hours": round(given.node_seconds / HOUR, 6),
            "worker_hours": round(self.worker_seconds / HOUR, 6),
            "wall_seconds": self.wall_seconds,
            "queue_seconds": given.waited if given.waits else None,
            "longest_queue_seconds": given.longest_wait if given.waits else None,
            "starts": given.allocations,
            "requeues": given.requeues,
            "workers": self.workers,
            "silent_workers": self.silent,
            "energy_joules": given.energy,
            "energy_of_starts": given.energies,
            "goodput": self.goodput,
            "done": asdict(self.done) | {"twice": dict(self.done.twice)},
            "steps": dict(self.steps) if self.steps is not None else None,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "trained_tokens": self.trained_tokens,
            "gpu_days_per_billion_tokens": self.gpu_days_per_billion_tokens,
            "cpu_efficiency": self.cpu_efficiency,
            "memory_efficiency": self.memory_efficiency,
            "memory_peak_bytes": given.peak,
        }


def given_by_accounting(allocations: Sequence[Allocation], stays: Iterable[Stay], gpus: int) -> Given:
    """Sums over allocations; ``gpus`` of each node by the recipe, for those whose GPUs accounting does not count."""
    by_job: dict[str, list[tuple[float, float]]] = {}
    for stay in stays:
        by_job.setdefault(stay.job, []).append((stay.start, stay.end))
    given = Given()
    seconds: defaultdict[str, float] = defaultdict(float)
    for allocation in sorted(allocations, key=lambda allocation: allocation.started):
        is_again = allocation.job in seconds
        seconds[allocation.job] += allocation.seconds
        given = _with(given, _of(allocation, is_again, gpus))
    worked = sum(min(whole, union(by_job.get(job, []))) for job, whole in seconds.items())
    return replace(given, worked=worked)


def given_by_ledger(stays: Sequence[Stay], submitted: Mapping[str, float], gpus: int, nodes: int) -> Given:
    """What can be said without accounting: a worker's time for its job's; ``gpus`` and ``nodes`` of the recipe.

    ``submitted``: when each job was handed in. How long a job was there before its worker is only known where Slurm
    told the worker since when (``Stay.allocated``). A killed worker that started again in its job goes on with that.
    """
    given = Given()
    ended: dict[str, float] = {}
    for stay in sorted(stays, key=lambda stay: stay.start):
        here = stay.nodes or nodes
        goes_on = stay.life > 1 and stay.job in ended
        start = stay.start if stay.allocated is None else min(stay.allocated, stay.start)
        start = ended[stay.job] if goes_on else start
        seconds = max(0.0, stay.end - start)
        is_again, handed_in = bool(stay.job) and stay.job in ended, submitted.get(stay.job)
        ended[stay.job] = max(stay.end, ended.get(stay.job, 0.0))
        wait = max(0.0, start - handed_in) if handed_in is not None and not is_again else None
        addition = Given(
            allocations=int(not goes_on),
            requeues=int(is_again and not goes_on and stay.executor == "slurm"),
            start=start,
            end=stay.end,
            node_seconds=seconds * here,
            gpu_seconds=seconds * here * (gpus if stay.gpus is None else stay.gpus),
            allocated=seconds if stay.allocated is not None else 0.0,
            worked=stay.seconds if stay.allocated is not None else 0.0,
            waited=wait or 0.0,
            waits=int(wait is not None),
            longest_wait=wait or 0.0,
        )
        given = _with(given, addition)
    return given


def joined(givens: Iterable[Given]) -> Given:
    """The sum of what some jobs were given."""
    whole = Given()
    for given in givens:
        whole = _with(whole, given)
    return whole


def total(name: str, costs: Sequence[Cost]) -> Cost:
    """The sum of runs. Their last layers are weighed by the time of their workers."""
    shares = [(cost.goodput["output"], cost.worker_seconds) for cost in costs]
    known = [(share, weight) for share, weight in shares if share is not None]
    weights = sum(weight for _, weight in known)
    sources = {cost.source for cost in costs if cost.given.allocations}
    rows = [cost.done for cost in costs if cost.done.unit == "rows"]
    twice: defaultdict[str, float] = defaultdict(float)
    for why, amount in (pair for done in rows for pair in done.twice.items()):
        twice[why] += amount
    published, waiting = sum(done.published for done in rows), sum(done.waiting for done in rows)
    return Cost(
        name=name,
        source=sources.pop() if len(sources) == 1 else BOTH if sources else LEDGER,
        given=joined(cost.given for cost in costs),
        done=Done("rows", published, waiting, dict(twice)),
        workers=sum(cost.workers for cost in costs),
        silent=sum(cost.silent for cost in costs),
        worker_seconds=sum(cost.worker_seconds for cost in costs),
        busy=sum(cost.busy for cost in costs),
        measured=sum(cost.measured for cost in costs),
        prompt_tokens=sum(cost.prompt_tokens for cost in costs),
        output_tokens=sum(cost.output_tokens for cost in costs),
        trained_tokens=sum(cost.trained_tokens for cost in costs),
        notes=tuple(dict.fromkeys(note for cost in costs for note in cost.notes)),
        useful=sum(share * weight for share, weight in known) / weights if weights else None,
    )


def of_work(name: str, work: Work, given: Given, source: str, notes: Sequence[str]) -> Cost:
    """A run's cost from what its ledgers say and what its jobs were given."""
    measured = [stay for stay in work.leaves if stay.busy is not None]
    unmeasured = len(work.leaves) - len(measured)
    if measured and unmeasured:
        notes = [*notes, f"how busy the engine was is known of {len(measured)} of {len(work.leaves)} workers"]
    return Cost(
        name=name,
        source=source,
        given=given,
        done=work.done,
        workers=len(work.whole),
        silent=work.silent,
        worker_seconds=sum(stay.seconds for stay in work.whole),
        busy=sum(stay.busy or 0.0 for stay in measured),
        measured=sum(stay.seconds for stay in measured),
        prompt_tokens=sum(stay.tokens[0] for stay in work.stays),
        output_tokens=sum(stay.tokens[1] for stay in work.stays),
        notes=tuple(notes),
    )


def _of(allocation: Allocation, is_again: bool, gpus: int) -> Given:
    """What one allocation adds. A job that is requeued waits from then on; at first, from when it may start."""
    since = allocation.submitted if is_again else allocation.eligible or allocation.submitted
    wait = max(0.0, allocation.started - since) if since is not None else None
    seconds, has_ended = allocation.seconds, allocation.ended is not None
    has_cpu = has_ended and allocation.cpu_seconds is not None
    has_memory = allocation.peak is not None and bool(allocation.memory)
    all_gpus = gpus * allocation.nodes if allocation.gpus is None else allocation.gpus
    return Given(
        allocations=1,
        requeues=int(is_again),
        start=allocation.started,
        end=allocation.started + seconds if allocation.ended is None else allocation.ended,
        node_seconds=seconds * allocation.nodes,
        gpu_seconds=seconds * all_gpus,
        allocated=seconds,
        waited=wait or 0.0,
        waits=int(wait is not None),
        longest_wait=wait or 0.0,
        cpu_given=seconds * allocation.cpus if has_cpu else 0.0,
        cpu_used=allocation.cpu_seconds or 0.0 if has_cpu else 0.0,
        memory=allocation.memory if has_memory else None,
        peak=allocation.peak if has_memory else None,
        energy=allocation.energy,
        energies=int(allocation.energy is not None),
    )


_SUMMED: Final = (
    *("allocations", "requeues", "node_seconds", "gpu_seconds", "allocated", "worked", "waited", "waits"),
    *("cpu_given", "cpu_used", "energies"),
)


def _with(first: Given, second: Given) -> Given:
    sums: dict[str, Any] = {name: getattr(first, name) + getattr(second, name) for name in _SUMMED}
    fullest = max((first, second), key=lambda given: given.peak / given.memory if given.peak and given.memory else -1.0)
    starts = [given.start for given in (first, second) if given.start is not None]
    ends = [given.end for given in (first, second) if given.end is not None]
    energies = [given.energy for given in (first, second) if given.energy is not None]
    return Given(
        **sums,
        start=min(starts, default=None),
        end=max(ends, default=None),
        longest_wait=max(first.longest_wait, second.longest_wait),
        memory=fullest.memory,
        peak=fullest.peak,
        energy=sum(energies) if energies else None,
    )
