"""Some rows of a finished run again, as the next version of that run: its recipe with a few keys changed, its plan."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, cast

from hala_hpc.config import frozen
from hala_hpc.config.compose import freeze
from hala_hpc.config.errors import HalaError, few, plural
from hala_hpc.config.schema import Recipe
from hala_hpc.data import schema
from hala_hpc.data.outputs import redo
from hala_hpc.data.outputs.chosen import Choice
from hala_hpc.data.outputs.redo import Chosen
from hala_hpc.data.shards import Progress
from hala_hpc.pipeline import lookup, planning
from hala_hpc.pipeline.planning import PlannedRun
from hala_hpc.pipeline.taking import Taking
from hala_hpc.run import manifest, status
from hala_hpc.run.files import share
from hala_hpc.run.layout import GRID, RunDirectory
from hala_hpc.run.lineage import Earlier, Redo
from hala_hpc.run.manifest import Facts, Manifest, Shard
from hala_hpc.slurm.commands import limits
from hala_hpc.worker import registry
from hala_hpc.worker.rows.task import RowTask
from hala_hpc.worker.task import ROWS

FIXED: Final = ("name", "data.", "run.shard_", "task.kind")
"""How keys begin that say which run, rows and shards there are."""
WHERE_ONLY: Final = ("site.", "run.")
"""Those that say where a run goes, and nothing of what comes out."""
VERSION: Final = re.compile(r"(.+)-v(\d+)")


@dataclass(frozen=True)
class PlannedRedo:
    """A run of the rows ``chosen`` of the run ``of``, not made yet."""

    of: RunDirectory
    plan: Manifest
    planned: PlannedRun
    chosen: Chosen
    redo: Redo

    @property
    def warnings(self) -> list[str]:
        """What a person should know before anything is started."""
        changed = {key for key in self.redo["changes"] if not key.startswith(WHERE_ONLY)}
        is_greedy = cast(RowTask, self.planned.task).is_greedy
        if self.redo["where"] is None or changed - ({"sampling.seed"} if is_greedy else set()):
            return []  # what failed once may do better, and what is asked in another way
        cure = "sampling.temperature=0.5" if is_greedy else "sampling.seed=1"
        same = "at temperature 0 another seed changes little" if changed else "the recipe is the same"
        return [f"{same}: rows that are done will come out as they were ({cure}, another prompt or model)"]

    def make(self) -> None:
        """Make the run. Raises HalaError where one of its name came to be meanwhile."""
        recipe = self.planned.recipe
        share(recipe.is_shared)

        def fill(folder: Path) -> tuple[list[Shard], Facts]:
            return redo.fill(folder, self.of, self.plan, self.chosen, self.redo)

        manifest.create(self.planned.path, freeze(recipe), fill, recipe.is_shared)


def plan(
    path: Path, choice: Choice, overrides: tuple[str, ...], name: str = "", progress: Progress = iter
) -> PlannedRedo:
    """Choose the rows of the finished run at ``path``, and check what is to be done with them.

    Raises HalaError for a run that is not finished or not of rows, for changes of what must stay, where no row is
    chosen, and for whatever `hala submit` refuses.
    """
    run, there = manifest.open_run(path)
    before = lookup.thawed(path)
    old_task = registry.create(before)
    if old_task.loop != ROWS:
        raise HalaError(f"{path}: {before.task.kind} has no rows that could be done again", "plan it anew")
    if missing := status.missing(path):
        raise HalaError(f"{path}: {plural(len(missing), 'shard')} not finished", f"`hala resume {path.name}`")
    recipe = lookup.thawed(path, overrides)
    recipe, _ = Taking(Path(recipe.run.root), lambda _: None).of(recipe, planning.loads_model(recipe), with_data=False)
    changes = _changes(before, recipe)
    recipe = _renamed(recipe, path, overrides, name)
    task = planning.check(recipe)
    target = Path(recipe.run.root) / recipe.name
    if target.exists():
        raise HalaError(f"{target} exists", "give another --name")
    planning.refuse_missing_environment(recipe, task)
    if recipe.site.executor == "slurm":
        limits(recipe.site.slurm)  # raises where there is no Slurm
    work = cast(RowTask, task).work_on(schema.load(there.facts.schema))
    chosen = redo.choose(run, there, choice, work.fields, work.texts, progress)
    earlier = [*(there.facts.redo["earlier"] if there.facts.redo else []), _as_earlier(path, before, there)]
    record = Redo(
        path=str(path),
        where=choice.where,
        quarantine=choice.quarantine,
        changes=changes,
        rows=chosen.rows,
        shards=len(chosen.numbers),
        earlier=earlier,
    )
    return PlannedRedo(run, there, PlannedRun(recipe, task, target), chosen, record)


def _renamed(recipe: Recipe, path: Path, overrides: Sequence[str], name: str) -> Recipe:
    """The recipe under the name of the next version, beside the run or its grid unless ``run.root`` says elsewhere."""
    is_cell = (path.parent / GRID).is_file()
    root = path.parent.parent if is_cell else path.parent
    if any(word.startswith("run.root=") for word in overrides):
        root = Path(recipe.run.root).resolve()
    called = f"{path.parent.name}-{path.name}" if is_cell else path.name
    base = version[1] if (version := VERSION.fullmatch(called)) else called
    names = (f"{base}-v{number}" for number in itertools.count(2))
    free = name or next(free for free in names if not (root / free).exists())
    return replace(recipe, name=free, run=replace(recipe.run, root=str(root)))


def _changes(before: Recipe, now: Recipe) -> dict[str, list[object]]:
    """Each key with another value. Raises HalaError for one that must stay."""
    now = replace(now, run=replace(now.run, root=before.run.root))
    differing = frozen.differing(asdict(before), asdict(now))
    if fixed := [key for key in differing if key.startswith(FIXED)]:
        what = "rows, shards and columns stay those of the run"
        raise HalaError(f"{few(fixed, 3)}: {what}", "--name gives it another name; for other rows plan a new run")
    return {key: list(values) for key, values in differing.items()}


def _as_earlier(path: Path, recipe: Recipe, plan: Manifest) -> Earlier:
    writer = asdict(recipe.model) if recipe.engine.kind != "echo" else None
    return Earlier(name=path.name, made_by=plan.facts.made_by, writer=writer)
