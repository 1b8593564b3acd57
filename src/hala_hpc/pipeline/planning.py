"""From a recipe to a planned run, with progress: what ``plan`` and ``submit`` share."""

import importlib.util
import json
import re
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from hala_hpc import engines
from hala_hpc.config import frozen
from hala_hpc.config.compose import freeze
from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Recipe
from hala_hpc.config.words import plural
from hala_hpc.data import shapes
from hala_hpc.data.cut import Watch
from hala_hpc.data.files import hub
from hala_hpc.run import create, manifest
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.manifest import Facts, Shard
from hala_hpc.slurm.script import require_environment
from hala_hpc.slurm.submit import preview
from hala_hpc.worker import registry
from hala_hpc.worker.task import ROWS, Task

NAME = re.compile(r"\w[\w.-]{0,99}")
"""Names of runs: they become folders, and part of the names of Slurm jobs."""


def check(recipe: Recipe) -> Task:
    """Refuse what can be refused before the data is read."""
    if not NAME.fullmatch(recipe.name):
        raise HalaError(
            f"name: {recipe.name!r} cannot be a run's name",
            "letters, digits, -, _ and ., at most 100; no . or - in front",
        )
    if recipe.data.limit is not None and recipe.data.limit < 1:
        raise HalaError(f"data.limit: {recipe.data.limit} rows are nothing to do", "at least 1, or null for all")
    shapes.check(recipe.data)
    task = registry.create(recipe)
    has_engine = task.loop == ROWS
    if has_engine:
        engines.check(recipe)
    else:
        _refuse_unused(recipe)
    hub.use_cache(recipe.site.cache, recipe.site.offline)
    loads_model = not has_engine or engines.abilities(recipe.engine.kind).loads_model
    if recipe.site.offline and loads_model:
        hub.require_cached(recipe.model)
    models = [recipe.model.name, recipe.model.tokenizer] if loads_model else []
    hub.go_offline_if_out_of_reach([recipe.data.hub, *models])
    return task


def refuse_missing_environment(recipe: Recipe, task: Task) -> None:
    """Refuse workers that could not be started, or not import their engine in this Python. Raises HalaError."""
    require_environment(recipe.site, task.stage)
    package = engines.abilities(recipe.engine.kind).package if task.loop == ROWS else None
    is_here = recipe.site.executor != "slurm" and task.stage not in recipe.site.environments
    if package and is_here and importlib.util.find_spec(package) is None:
        raise HalaError(
            f"site {recipe.site.name} has no environment for the stage '{task.stage}', and this Python lacks {package}",
            "--site local-cpu has one, made by `make serve`; engine.kind=echo tries a recipe without a model",
        )


def obstacles(recipe: Recipe, task: Task, target: Path) -> list[str]:
    """Why `hala submit` would refuse the run that is planned here, as far as that can be told beforehand."""
    found = []
    try:
        refuse_missing_environment(recipe, task)
    except HalaError as error:
        found.append(str(error))
    if target.exists():
        found.append(_existing(recipe, target).message)
    there = next(folder for folder in (target.parent, *target.parent.parents) if folder.exists())
    try:
        with tempfile.TemporaryDirectory(prefix=".plan-", dir=there):
            pass
    except OSError as error:
        found.append(f"run.root: no folder can be made in {there}: {error.strerror}")
    return found


def _existing(recipe: Recipe, target: Path) -> HalaError:
    """Says of the run that has the name already whether it was asked for the same, and if not, how it differs."""
    if not (target / "recipe.yaml").is_file():
        return HalaError(f"{target} exists, and is no run", "give another name=…, or move it away")
    differs = difference(recipe, target)
    said = f"with another recipe: {differs}" if differs else "with the same recipe"
    hint = f"`hala resume {target.name}`, or give another name=…; resuming goes on with the recipe it has"
    return HalaError(f"run '{target.name}' exists in {target.parent}, {said}", hint)


def difference(recipe: Recipe, run: Path) -> str:
    """How a recipe differs from the one that a run was planned with, in words; empty where it does not."""
    found = frozen.differing(frozen.read(run), yaml.safe_load(freeze(recipe)))
    listed = [f"{key}={_brief(now)} (was {_brief(before)})" for key, (before, now) in sorted(found.items())]
    return ", ".join(listed[:6]) + (f" and {plural(len(listed) - 6, 'more key')}" if len(listed) > 6 else "")


def _brief(value: Any) -> str:
    return textwrap.shorten(json.dumps(value, ensure_ascii=False), 60, placeholder="…")


def _refuse_unused(recipe: Recipe) -> None:
    """What only the engines of row tasks use must not be dropped in silence by others."""
    models = {f"task.models.{label}": model for label, model in (getattr(recipe.task, "models", None) or {}).items()}
    for where, model in ({"model": recipe.model} | models).items():
        if getattr(model, "chat_template_kwargs", None):
            raise HalaError(
                f"{where}.chat_template_kwargs: task.kind {recipe.task.kind} does not use it", "leave it out"
            )


def plan_run(recipe: Recipe, task: Task, target: Path) -> RunDirectory:
    """Plan the run into its folder. Raises HalaError; nothing is left behind then."""
    if target.exists():
        raise _existing(recipe, target)

    def fill(folder: Path) -> tuple[list[Shard], Facts]:
        with _watching() as watch:
            cut = task.plan(folder, watch)
        return cut.shards, cut.facts

    return create.create(target, freeze(recipe), fill)


def summary_of(recipe: Recipe, planned: Path, target: Path, stage: str) -> dict[str, Any]:
    """What a planned run will do, as plain data for people and ``--json``.

    ``planned`` is where the run is planned, ``target`` where it will be.
    """
    plan = manifest.read(planned / "manifest.parquet")
    tokens = plan.column("tokens")
    workers = min(recipe.run.workers, len(plan))
    training, ranks = None, None
    if plan.facts.unit == "models":
        from hala_hpc.tasks.train import task as train
        from hala_hpc.tasks.train.estimate import training as estimates

        training, ranks = estimates.summary(recipe, planned), train.ranks_per_node(recipe.site)
    items = [str(item["name"]) for item in plan.facts.items]
    is_slurm = recipe.site.executor == "slurm"
    return {
        "run": str(target),
        "task": recipe.task.kind,
        "sources": [
            {"file": source["original"], "rows": source["rows"], "bytes": source["bytes"]}
            for source in plan.facts.sources
        ],
        "rows": plan.facts.rows,
        "texts": plan.facts.texts,
        "characters": plan.facts.characters,
        "estimated_tokens": plan.facts.tokens,
        "notes": plan.facts.notes,
        "shards": len(plan),
        "tokens_per_shard": {"least": min(tokens), "median": sorted(tokens)[len(tokens) // 2], "most": max(tokens)},
        "workers": workers,
        "site": recipe.site.name,
        "executor": recipe.site.executor,
        "sbatch": preview(recipe, target, stage, workers, ranks) if is_slurm else None,
    } | {key: value for key, value in (("training", training), ("items", items)) if value}


@contextmanager
def _watching() -> Iterator[Watch]:
    """A line on standard error that counts rows, or bytes, while they are read."""
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("reading {task.fields[name]}{task.fields[read]}"), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, refresh_per_second=4, disable=not console.is_terminal
    ) as bar:
        line = bar.add_task("", total=None, name="data", read="")
        yield Watch(
            say=lambda text: bar.update(line, name=text.removeprefix("reading "), read=""),
            count=lambda rows: bar.update(line, read=f": {plural(rows, 'row')}"),
            weigh=lambda size: bar.update(line, read=f": {size / 1e9:,.2f} GB"),
        )
