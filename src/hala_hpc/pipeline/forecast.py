"""What stages of a pipeline will come to that cannot be planned yet, by what the stages before them will make.

Counts are carried along as they are: nobody knows yet which rows a judge will reject, or a mix take for duplicates, and
a translation is taken to be as long as its text. So they are rather too high; what is not known is said to be so.
"""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from hala_hpc.config import places
from hala_hpc.config.errors import HalaError
from hala_hpc.config.pipeline import stage_of
from hala_hpc.config.schema import Model, Recipe
from hala_hpc.data import templates
from hala_hpc.data.cut import PlanWatch
from hala_hpc.pipeline import lookup
from hala_hpc.pipeline.outlook import Summary
from hala_hpc.pipeline.survey import StageStatus, Survey
from hala_hpc.run import manifest
from hala_hpc.tasks.train.estimate import architecture
from hala_hpc.tasks.train.estimate import memory as estimates
from hala_hpc.tasks.train.options import global_batch, steps_of
from hala_hpc.worker import registry
from hala_hpc.worker.rows.task import RowTask

Plans = Mapping[str, tuple[Sequence[Summary], Sequence[str]]]
"""By stage: what its runs will do, and why they could not be submitted."""


@dataclass(frozen=True)
class Forecast:
    """What a stage will come to; None: not known. ``tokens`` are estimated from bytes, of its input.

    ``steps`` and ``gpu_hours`` are of trainings; ``model`` names one of the form of the model that it makes.
    ``is_planned``: it is no forecast, but a plan.
    """

    rows: int | None = None
    tokens: int | None = None
    steps: int | None = None
    gpu_hours: float | None = None
    model: str | None = None
    is_planned: bool = False


def forecasts(now: Survey, plans: Plans) -> dict[str, Forecast]:
    """By stage, in their order."""
    so_far: dict[str, Forecast] = {}
    for status in now.stages.values():
        so_far[status.name] = _forecast(status, plans, so_far)
    return so_far


def total(numbers: Iterable[float | None]) -> float | None:
    """The sum of what is known; None where nothing is."""
    known = [number for number in numbers if number is not None]
    return sum(known) if known else None


def _forecast(status: StageStatus, plans: Plans, so_far: Mapping[str, Forecast]) -> Forecast:
    if status.stage.command:
        return Forecast()
    recipes = [recipe for _, recipe in status.stage.recipes()]
    models = [_form(recipe, so_far) for recipe in recipes]
    model = next(filter(None, models), None)
    summaries = plans.get(status.name, ((), ()))[0]
    if status.folder is not None:
        facts = [manifest.read(path / "manifest.parquet").facts for path in lookup.runs_of(status.folder)]
        return Forecast(
            sum(fact.rows for fact in facts), sum(fact.tokens for fact in facts), model=model, is_planned=True
        )
    if summaries:
        trainings = [plan["training"] for plan in summaries if "training" in plan]
        return Forecast(
            sum(plan["rows"] for plan in summaries),
            sum(plan["estimated_tokens"] for plan in summaries),
            sum(plan["estimated_steps"] for plan in trainings) if trainings else None,
            sum(plan.get("gpu_hours", 0.0) for plan in trainings) if trainings else None,
            model,
            is_planned=True,
        )
    parts = [_of_recipe(recipe, so_far) for recipe in recipes]
    rows, tokens, steps = (total(getattr(part, key) for part in parts) for key in ("rows", "tokens", "steps"))
    hours = total(part.gpu_hours for part in parts)
    return Forecast(_whole(rows), _whole(tokens), _whole(steps), hours, model)


def _whole(number: float | None) -> int | None:
    return None if number is None else round(number)


def _of_recipe(recipe: Recipe, so_far: Mapping[str, Forecast]) -> Forecast:
    options: Any = recipe.task
    if recipe.task.kind == "train":
        return _of_training(recipe, so_far)
    if recipe.task.kind == "mix":
        return _sum(_share(source, _of_data(source.path, so_far), source) for source in options.sources.values())
    task = registry.create(recipe)
    if not isinstance(task, RowTask):
        return Forecast()
    if (taken := _of_data(recipe.data.path, so_far)) is not None:
        return _share(recipe.data, taken)
    return _counted(task)


def _of_training(recipe: Recipe, so_far: Mapping[str, Forecast]) -> Forecast:
    options: Any = recipe.task
    data = _sum(_share(dataset, _of_data(dataset.path, so_far), dataset) for dataset in options.datasets.values())
    if data.rows is None or data.tokens is None:
        return Forecast()
    batch, length = global_batch(options), options.sequence_length
    tokens = options.tokens or round(data.tokens * options.epochs)
    is_packed = options.packing is not False
    sequences = tokens / length if is_packed or options.tokens else data.rows * options.epochs
    return Forecast(data.rows, tokens, max(1, steps_of(ceil(sequences), batch)), _hours(recipe, tokens, so_far))


def _hours(recipe: Recipe, tokens: int, so_far: Mapping[str, Forecast]) -> float | None:
    if (name := _form(recipe, so_far)) is None:
        return None
    try:
        form = architecture.read(templates.model_config(Model(name=name)))
    except HalaError:
        return None
    return estimates.gpu_hours(form, recipe.task, tokens)


def _form(recipe: Recipe, so_far: Mapping[str, Forecast]) -> str | None:
    """A model that is there, of the form of the recipe's own."""
    name = recipe.model.name
    stage = stage_of(name, so_far) if name.startswith(places.RUN) else None
    return so_far[stage].model if stage is not None else name or None


def _of_data(paths: Sequence[str], so_far: Mapping[str, Forecast]) -> Forecast | None:
    """The sum of the stages that are taken; None where none is."""
    taken = [stage_of(path, so_far) for path in paths if path.startswith(places.RUN)]
    return _sum(so_far[name] for name in taken if name is not None) if taken else None


def _share(data: Any, whole: Forecast | None, drawn: Any = None) -> Forecast:
    """What ``data.limit``, and of a mix or a training ``weight`` and ``sample``, leave of it."""
    if whole is None or not whole.rows or whole.tokens is None:
        return Forecast()
    rows = float(whole.rows)
    if (limit := getattr(data, "limit", None)) is not None:
        rows = min(rows, limit)
    if drawn is not None:
        sample = getattr(drawn, "sample", None)
        rows = min(rows, sample) if sample is not None else rows * getattr(drawn, "weight", 1.0)
    return Forecast(round(rows), round(whole.tokens * rows / whole.rows))


def _sum(parts: Iterable[Forecast]) -> Forecast:
    """Of all parts; nothing is known where one of them is not."""
    listed = list(parts)
    if any(part.rows is None or part.tokens is None for part in listed):
        return Forecast()
    return Forecast(sum(part.rows or 0 for part in listed), sum(part.tokens or 0 for part in listed))


def _counted(task: RowTask) -> Forecast:
    """Of data that are there already, while only the model is not."""
    with tempfile.TemporaryDirectory(prefix=".plan-") as folder:
        try:
            facts = task.plan(Path(folder), PlanWatch()).facts
        except (HalaError, OSError):
            return Forecast()
    return Forecast(facts.rows, facts.tokens)
