"""What planned runs will do, for people who look before they submit: `hala plan`."""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from hala_hpc.config.errors import HalaError
from hala_hpc.pipeline.planning import (
    PlannedRun,
    RunList,
    existing,
    looked_up,
    on_its_nodes,
    plan,
    refuse_missing_environment,
)
from hala_hpc.pipeline.taking import Take
from hala_hpc.run import manifest
from hala_hpc.slurm.submit import preview
from hala_hpc.tasks.mix import counts


class SourceSummary(TypedDict):
    """An input file of a plan."""

    file: str
    rows: int
    bytes: int


class Summary(TypedDict):
    """What a planned run will do, for people and ``--json``. ``training``, ``items``, ``mix``: of such runs alone.

    ``takes`` has what it takes of other runs, ``mix`` a line for each source (see ``tasks.mix.counts``).
    """

    run: str
    task: str
    sources: list[SourceSummary]
    rows: int
    texts: int
    characters: int
    estimated_tokens: int
    most_asks: int
    notes: dict[str, int]
    shards: int
    tokens_per_shard: dict[str, int]
    workers: int
    site: str
    executor: str
    sbatch: str | None
    training: NotRequired[Any]
    items: NotRequired[list[str]]
    mix: NotRequired[Any]
    takes: NotRequired[list[Take]]
    warnings: NotRequired[list[str]]


def summaries(runs: RunList, create: bool) -> tuple[list[Summary], list[str]]:
    """What each run will do, and why `hala submit` would refuse them; ``create``: plan them to stay."""
    runs = looked_up(runs)
    folder = runs.folder
    with ExitStack() as stack:
        if not create:
            root = folder.parent if folder.parent.is_dir() else None
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix=".plan-", dir=root))
            folder = Path(scratch) / folder.name
        planned = plan(runs, folder)
        plans = [summary_of(run, runs.folder / run.path.relative_to(folder)) for run in planned]
    return plans, [] if create else obstacles(runs, planned)


def obstacles(runs: RunList, planned: Sequence[PlannedRun]) -> list[str]:
    """Why `hala submit` would refuse the runs that are planned here, as far as that can be known beforehand."""
    reasons = []
    for run in planned:
        try:
            refuse_missing_environment(run.recipe, run.task)
        except HalaError as error:
            reasons.append(str(error))
    target = runs.folder
    if target.exists():
        reasons.append(existing(runs).message)
    there = next(folder for folder in target.parents if folder.exists())
    try:
        with tempfile.TemporaryDirectory(prefix=".plan-", dir=there):
            pass
    except OSError as error:
        reasons.append(f"run.root: no folder can be made in {there}: {error.strerror}")
    return list(dict.fromkeys(reasons))


def summary_of(run: PlannedRun, target: Path) -> Summary:
    """What a planned run will do; ``target`` is where it will be."""
    recipe = run.recipe
    plan = manifest.read(run.path / "manifest.parquet")
    facts, tokens = plan.facts, plan.column("tokens")
    summary = Summary(
        run=str(target),
        task=recipe.task.kind,
        sources=[
            SourceSummary(file=source["original"], rows=source["rows"], bytes=source["bytes"])
            for source in facts.sources
        ],
        rows=facts.rows,
        texts=facts.texts,
        characters=facts.characters,
        estimated_tokens=facts.tokens,
        most_asks=facts.most_asks,
        notes=facts.notes,
        shards=len(plan),
        tokens_per_shard={"least": min(tokens), "median": sorted(tokens)[len(tokens) // 2], "most": max(tokens)},
        workers=min(recipe.run.workers, len(plan)),
        site=recipe.site.name,
        executor=recipe.site.executor,
        sbatch=None,
    )
    ranks = None
    if facts.unit == "models":
        from hala_hpc.tasks.train import task as train
        from hala_hpc.tasks.train.estimate import memory as estimates

        summary["training"], ranks = estimates.summary(recipe, run.path), train.ranks_per_node(recipe.site)
    if facts.items:
        summary["items"] = [str(item["name"]) for item in facts.items]
    if recipe.task.kind == "mix":
        summary["mix"] = counts.planned(facts)
    if run.takes:
        summary["takes"] = list(run.takes)
    if recipe.site.executor == "slurm":
        on_nodes = on_its_nodes(recipe, run.task)
        summary["sbatch"] = preview(on_nodes, target, run.task.environment, summary["workers"], ranks)
    return summary
