"""What runs cost: Slurm's accounting, where there is one, beside what their ledgers say."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from hala_hpc.config import frozen
from hala_hpc.config.errors import HalaError, plural
from hala_hpc.config.schema import Recipe
from hala_hpc.pipeline import lookup, planning
from hala_hpc.run import cost, goodput, manifest
from hala_hpc.run.cost import Allocation, Cost
from hala_hpc.run.goodput import Done, Work
from hala_hpc.run.layout import GRID
from hala_hpc.slurm import accounting, record
from hala_hpc.slurm.submit import without_gpus
from hala_hpc.tasks.train import steps
from hala_hpc.tasks.train import task as train
from hala_hpc.worker import registry

NO_ANSWER: Final = "Slurm's accounting is off, or does not answer: jobs are as long as their workers' ledgers"


@dataclass(frozen=True)
class CostReport:
    """A run or a grid, and of a grid or a training its parts: cells, and what prepared their data."""

    whole: Cost
    parts: Sequence[Cost]

    def as_json(self) -> dict[str, object]:
        parts = {"parts": [part.as_json() for part in self.parts]} if len(self.parts) > 1 else {}
        return self.whole.as_json() | parts


@dataclass(frozen=True)
class _Member:
    """A run, with what its ledgers say, and the GPUs and nodes that its recipe gives a worker."""

    name: str
    path: Path
    work: Work
    kind: str
    gpus: int
    nodes: int


def read(run: str) -> CostReport:
    """The cost of a run, a grid or a pipeline, by its path or name. Raises HalaError where a run cannot be read."""
    paths = lookup.runs(run)
    if not paths:
        raise HalaError(f"{run}: none of its stages is planned yet", f"hala status {run}")
    folder = lookup.find_group(run) or paths[0]
    recipes = {path: lookup.thawed(path) for path in paths}
    data = [place.resolve() for path, recipe in recipes.items() for place in _prepared(path, recipe)]
    members = [_member(path, folder, recipe) for path, recipe in recipes.items()]
    members += [_member(path, folder, lookup.thawed(path)) for path in dict.fromkeys(data)]
    owners, submitted = _jobs(folder, members)
    slurm = {job.partition("_")[0] for member in members for job in record.slurm_jobs(member.path)}
    allocations = accounting.allocations(sorted(slurm)) if slurm else []
    costs = [_cost(member, owners, submitted, allocations, is_slurm=bool(slurm)) for member in members]
    return CostReport(replace(cost.total(folder.name, costs), name=folder.name) if len(costs) > 1 else costs[0], costs)


def _prepared(path: Path, recipe: Recipe) -> list[Path]:
    places = train.prepare_runs(path, recipe) if recipe.task.kind == "train" else []
    return [place for place in places if (place / "manifest.parquet").is_file()]  # once trained, they may go


def _member(path: Path, folder: Path, recipe: Recipe) -> _Member:
    run, plan = manifest.open_run(path)
    work = goodput.read(run, plan, frozen.settings(path).lease_seconds)
    is_cpu = recipe.task.kind == "prepare"
    site = without_gpus(recipe.site) if is_cpu else planning.on_its_nodes(recipe, registry.create(recipe)).site
    name = path.name if path == folder else str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
    return _Member(name, path, work, recipe.task.kind, site.slurm.gpus_per_worker, site.slurm.nodes_per_worker)


def _jobs(folder: Path, members: Sequence[_Member]) -> tuple[dict[str, Path], dict[str, float]]:
    """Whose each job is, and when it was handed in.

    A launcher also finishes the preparation of its data, under its own job: that stays its own.
    """
    by_path = {member.path: member.path for member in members}
    by_name = {member.path.name: member.path for member in members}
    owners: dict[str, Path] = {}
    times: dict[str, float] = {}
    folders = [folder, *(member.path for member in members)]
    folders += [folder.parent] if (folder.parent / GRID).is_file() else []
    for place in dict.fromkeys(folders):
        for submission in record.submitted(place):
            for task, path in submission.tasks.items():
                if (owner := by_path.get(path.resolve()) or by_name.get(path.name)) is not None:
                    owners[task], times[task] = owner, submission.time
    for member in members:
        for stay in member.work.whole:
            if stay.job:
                owners.setdefault(stay.job, member.path)
    return owners, times


def _cost(
    member: _Member,
    owners: Mapping[str, Path],
    submitted: Mapping[str, float],
    allocations: Iterable[Allocation] | None,
    *,
    is_slurm: bool,
) -> Cost:
    path = member.path
    stays = [stay for stay in member.work.stays if owners.get(stay.job, path) == path]
    work = replace(member.work, stays=stays)
    ours = [allocation for allocation in allocations or () if owners.get(allocation.job) == path]
    known = {allocation.job for allocation in ours}
    unknown = [stay for stay in work.whole if stay.job not in known]
    notes = []
    if is_slurm and allocations is None:
        notes.append(NO_ANSWER)
    elif is_slurm and unknown:
        notes.append(f"{plural(len(unknown), 'worker')} in no job on record: their time is that of their ledgers")
    if member.gpus and any(allocation.gpus is None for allocation in ours):
        notes.append("GPUs are those of the recipe: accounting does not count them")
    given = [cost.given_by_accounting(ours, work.whole, member.gpus)] if ours else []
    given += [cost.given_by_ledger(unknown, submitted, member.gpus, member.nodes)] if unknown else []
    source = cost.BOTH if ours and unknown else cost.ACCOUNTING if ours else cost.LEDGER
    whole = cost.of_work(member.name, work, cost.joined(given), source, notes)
    return _with_steps(whole, path) if member.kind == "train" else whole


def _with_steps(whole: Cost, run: Path) -> Cost:
    """Of a training the engine is busy in its steps, and the model is made by those that were not done again."""
    if (trained := steps.of_run(run)) is None:
        return whole
    twice = {steps.AGAIN: trained.repeated_seconds} if trained.repeated else {}
    return replace(
        whole,
        busy=trained.useful_seconds + trained.repeated_seconds,
        measured=whole.worker_seconds,
        done=Done("seconds", trained.useful_seconds, 0.0, twice),
        steps={"useful": trained.useful, "repeated": trained.repeated},
        trained_tokens=trained.tokens,
    )
