"""From a recipe to a planned run, with progress: what ``plan`` and ``submit`` share."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hala_hpc import engines, tasks
from hala_hpc.config.compose import freeze
from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Recipe
from hala_hpc.data import hub
from hala_hpc.data.cut import Watch
from hala_hpc.run import create
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.manifest import Facts, Shard
from hala_hpc.slurm.launch import require_environment
from hala_hpc.tasks.base import Task


def check(recipe: Recipe) -> Task:
    """Refuse what can be refused before the data is read."""
    if not recipe.name or "/" in recipe.name or recipe.name.startswith("."):
        raise HalaError(f"name: '{recipe.name}' cannot be a folder's name", "letters, digits, - and _")
    for key in ("workers", "shard_tokens", "shard_rows", "attempts", "lease_seconds"):
        if getattr(recipe.run, key) <= 0:
            raise HalaError(f"run.{key}: must be more than 0")
    task = tasks.create(recipe)
    engines.check(recipe)
    require_environment(recipe.site, task.stage)
    hub.use_cache(recipe.site.cache, recipe.site.offline)
    if recipe.site.offline and recipe.engine.kind == "vllm":
        hub.require_cached(recipe.model)
    return task


def plan_run(recipe: Recipe, task: Task, target: Path) -> RunDirectory:
    """Plan the run into its folder. Raises HalaError; nothing is left behind then."""

    def fill(folder: Path) -> tuple[list[Shard], Facts]:
        with _watching() as watch:
            cut = task.plan(folder, watch)
        return cut.shards, cut.facts

    return create.create(target, freeze(recipe), fill)


@contextmanager
def _watching() -> Iterator[Watch]:
    """A line on standard error that counts rows while they are read."""
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("reading {task.fields[name]}: {task.completed:,.0f} rows"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=4) as bar:
        line = bar.add_task("", total=None, name="data")
        yield Watch(
            say=lambda text: bar.update(line, name=text.removeprefix("reading ")),
            count=lambda rows: bar.update(line, completed=rows),
        )
