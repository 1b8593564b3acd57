"""What stages of a pipeline will come to that cannot be planned yet, by what the stages before them will make.

Counts are carried along as they are: nobody knows yet which rows a judge will reject, or a mix take for duplicates, and
a translation is taken to be as long as its text. So they are rather too high; what is not known is said to be so, and
why.
"""

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hala_hpc.config import places
from hala_hpc.config.errors import HalaError, few
from hala_hpc.config.pipeline import stage_of
from hala_hpc.config.schema import Data, Model, Recipe
from hala_hpc.data import cut, documents, templates
from hala_hpc.data.cut import Cut, PlanWatch
from hala_hpc.data.files import hub
from hala_hpc.data.spoken import Dropped
from hala_hpc.pipeline import lookup
from hala_hpc.pipeline.outlook import Summary
from hala_hpc.pipeline.planning import watching
from hala_hpc.pipeline.survey import StageStatus, Survey
from hala_hpc.run import manifest
from hala_hpc.tasks.train.estimate import architecture
from hala_hpc.tasks.train.estimate import memory as estimates
from hala_hpc.tasks.train.estimate.memory import TrainingEstimate
from hala_hpc.worker import registry
from hala_hpc.worker.rows.task import RowTask

Plans = Mapping[str, tuple[Sequence[Summary], Sequence[str]]]
"""By stage: what its runs will do, and why they could not be submitted."""


@dataclass(frozen=True)
class Forecast:
    """What a stage will come to; None: not known, or nothing that is counted.

    ``tokens`` are estimated from bytes, of its input; of a training those that it is trained on, with each time that
    it sees them. ``steps`` and ``gpu_hours`` are of trainings; ``model`` names one of the form of the model that it
    makes. ``is_planned``: it is no forecast, but a plan.

    Of a number that is not known, ``unknown`` says why, and ``unknown_of`` names the stages it stands on that are not
    known either. Commands, and tasks whose shards are no rows (merges, evaluations), have neither.
    """

    rows: int | None = None
    tokens: int | None = None
    steps: int | None = None
    gpu_hours: float | None = None
    model: str | None = None
    is_planned: bool = False
    is_training: bool = False
    unknown: str = ""
    unknown_of: Sequence[str] = ()

    @property
    def is_known(self) -> bool:
        return not self.unknown and not self.unknown_of


@dataclass(frozen=True)
class _Known:
    """What is known by now: of stages by name, and of data that were read, by all that decides what is counted.

    ``scratch`` is where copies of data are made for as long as they are read; None: where the system has them.
    """

    stages: dict[str, Forecast] = field(default_factory=dict)
    read: dict[str, Forecast] = field(default_factory=dict)
    scratch: Path | None = None

    def count(self, basis: str, plan: Callable[[Path, PlanWatch], Cut]) -> Forecast:
        """Rows and tokens of what ``plan`` reads, which is given a folder for copies; read once for each ``basis``."""
        if basis not in self.read:
            self.read[basis] = self._count(plan)
        return self.read[basis]

    def _count(self, plan: Callable[[Path, PlanWatch], Cut]) -> Forecast:
        try:
            with tempfile.TemporaryDirectory(prefix=".plan-", dir=self.scratch) as folder, watching() as watch:
                facts = plan(Path(folder), watch).facts
        except (HalaError, OSError) as error:
            return Forecast(unknown=str(error))
        return Forecast(facts.rows, facts.tokens)


def forecasts(now: Survey, plans: Plans) -> dict[str, Forecast]:
    """By stage, in their order. What is on the hub is looked for in the site's cache, as when it is planned."""
    root = now.pipeline.folder.parent
    known = _Known(scratch=root if root.is_dir() else None)
    for status in now.stages.values():
        known.stages[status.name] = _forecast(status, plans, known)
    return known.stages


def total(numbers: Iterable[float | None]) -> float | None:
    """The sum of what is known; None where nothing is."""
    listed = [number for number in numbers if number is not None]
    return sum(listed) if listed else None


def _forecast(status: StageStatus, plans: Plans, known: _Known) -> Forecast:
    if status.stage.command or status.state == "left out":
        return Forecast()
    recipes = dict(status.stage.recipes())
    model = next(filter(None, (_form(recipe, known) for recipe in recipes.values())), None)
    if status.folder is not None:
        parts = {path.name: _of_run(path) for path in lookup.runs_of(status.folder)}
    elif summaries := plans.get(status.name, ((), ()))[0]:
        parts = {Path(plan["run"]).name: _of_plan(plan) for plan in summaries}
    else:
        parts = {name: _of_recipe(recipe, known) for name, recipe in recipes.items()}
    return replace(_whole(parts, status.stage.grid is not None), model=model)


def _of_run(run: Path) -> Forecast:
    """Of a run that was planned already."""
    facts = manifest.read(run / "manifest.parquet").facts
    if facts.unit == "models" and not facts.items:
        try:
            return _of_estimate(estimates.summary(lookup.thawed(run), run))
        except HalaError as error:  # its model is gone from the cache
            return Forecast(facts.texts, is_planned=True, is_training=True, unknown=str(error))
    return Forecast(facts.rows, facts.tokens, is_planned=True) if facts.unit == "rows" else Forecast(is_planned=True)


def _of_plan(plan: Summary) -> Forecast:
    if training := plan.get("training"):
        return _of_estimate(training)
    if "items" in plan and "mix" not in plan:
        return Forecast(is_planned=True)
    return Forecast(plan["rows"], plan["estimated_tokens"], is_planned=True)


def _of_estimate(training: TrainingEstimate) -> Forecast:
    return Forecast(
        sum(data["rows"] for data in training["datasets"]),
        training["estimated_tokens_trained"],
        training["estimated_steps"],
        training.get("gpu_hours"),
        is_planned=True,
        is_training=True,
        unknown=training.get("memory_unknown", ""),
    )


def _of_recipe(recipe: Recipe, known: _Known) -> Forecast:
    hub.use_cache(recipe.site.cache, recipe.site.offline)
    options: Any = recipe.task
    if options.kind == "train":
        return _of_training(recipe, known)
    if options.kind == "mix":
        return _whole({name: _of_source(recipe, name, source, known) for name, source in options.sources.items()})
    if not isinstance(registry.create(recipe), RowTask):
        return Forecast()

    def plan(data: Data, folder: Path, watch: PlanWatch) -> Cut:
        return registry.create(replace(recipe, data=data)).plan(folder, watch)

    return _of_data(recipe.data, plan, f"{recipe.task} {recipe.model} {recipe.sampling} {recipe.engine}", known)


def _of_source(recipe: Recipe, name: str, source: Any, known: _Known) -> Forecast:
    """One source of a mix: all of its rows that may be taken."""

    def plan(data: Data, folder: Path, watch: PlanWatch) -> Cut:
        alone = replace(recipe, task=replace(recipe.task, sources={name: data}))
        return registry.create(alone).plan(folder, watch)

    whole = _of_data(source, plan, f"{recipe.task}", known)
    if whole.rows is None:
        return whole
    return _cut(whole, whole.rows * source.weight if source.sample is None else min(whole.rows, source.sample))


def _of_training(recipe: Recipe, known: _Known) -> Forecast:
    options: Any = recipe.task
    datasets = {f"task.datasets.{name}": dataset for name, dataset in options.datasets.items()}
    parts = {name: _of_dataset(recipe, dataset, known) for name, dataset in datasets.items()}
    whole = replace(_whole(parts, is_named=True), is_training=True)
    if not whole.is_known:
        return whole
    config, unknown = dict[str, Any](), ""
    sizes = [
        {"used": part.rows, "tokens": part.tokens, "kind": dataset.kind, "weight": dataset.weight}
        for part, dataset in zip(parts.values(), datasets.values(), strict=True)
    ]
    try:
        config = _config(recipe, known)
        form = architecture.read(config)
    except HalaError as error:
        form, unknown = None, str(error)
    tokens, steps = estimates.extent(options, sizes, estimates.packing(recipe, config) != "no")
    hours = estimates.gpu_hours(form, options, tokens) if form is not None else None
    return replace(whole, tokens=tokens, steps=steps, gpu_hours=hours, unknown=unknown)


def _of_dataset(recipe: Recipe, dataset: Any, known: _Known) -> Forecast:
    """One dataset of a training, read as it would be; its tokens are estimated, for the tokenizer may not be here."""

    def plan(data: Data, folder: Path, watch: PlanWatch) -> Cut:
        def texts_of(schema: Any) -> cut.TextsOf:
            reader = documents.reader_of(dataset.kind, data, schema)

            def texts(row: Any) -> list[str]:
                try:
                    return reader.read(row).texts
                except Dropped:
                    return []

            return texts

        return cut.cut(data, recipe.run, "prepare", folder, texts_of, watch)

    return _of_data(dataset, plan, dataset.kind, known)


def _of_data(data: Data, plan: Callable[[Data, Path, PlanWatch], Cut], basis: str, known: _Known) -> Forecast:
    """Rows of stages, as many as these will make; and those that are there, which ``plan`` reads.

    ``basis`` is all that decides, besides ``data``, what ``plan`` finds.
    """
    taken = {path: name for path in data.path if (name := _stage(path, known)) is not None}
    parts = {name: _taken(name, known.stages[name]) for name in dict.fromkeys(taken.values())}
    here = replace(data, path=[path for path in data.path if path not in taken])
    if here.path or here.hub or not taken:
        parts[""] = known.count(f"{basis} {here}", lambda folder, watch: plan(here, folder, watch))
    whole = _whole(parts)
    return whole if whole.rows is None or data.limit is None else _cut(whole, min(whole.rows, data.limit))


def _taken(name: str, before: Forecast) -> Forecast:
    """What a stage hands on: its rows, and no more of what is known of it."""
    if before.rows is None or before.tokens is None or before.is_training:
        return Forecast(unknown_of=(name,))
    return Forecast(before.rows, before.tokens)


def _cut(whole: Forecast, rows: float) -> Forecast:
    """So many rows of it, with their share of the tokens."""
    return replace(whole, rows=round(rows), tokens=round((whole.tokens or 0) * rows / whole.rows) if whole.rows else 0)


def _whole(parts: Mapping[str, Forecast], is_named: bool = False) -> Forecast:
    """The sum of all parts; a number is not known where it is not of one of them.

    ``is_named``: what is not known begins with the name of the part.
    """
    listed = list(parts.values())
    reasons: dict[str, list[str]] = {}
    for name, part in parts.items():
        if part.unknown:
            reasons.setdefault(part.unknown, []).append(name)
    named = (f"{few(names, 2, ' and {} more')}: " if is_named else "" for names in reasons.values())
    return Forecast(
        _all(part.rows for part in listed),
        _all(part.tokens for part in listed),
        _all(part.steps for part in listed),
        _all(part.gpu_hours for part in listed),
        is_planned=any(part.is_planned for part in listed),
        is_training=any(part.is_training for part in listed),
        unknown="; ".join(map("".join, zip(named, reasons, strict=True))),
        unknown_of=tuple(dict.fromkeys(name for part in listed for name in part.unknown_of)),
    )


def _all(numbers: Iterable[Any]) -> Any:
    """The sum; None where one is not known."""
    listed = list(numbers)
    return None if None in listed else sum(listed)


def _stage(address: str, known: _Known) -> str | None:
    return stage_of(address, known.stages) if address.startswith(places.RUN) else None


def _form(recipe: Recipe, known: _Known) -> str | None:
    """A model that is there, of the form of the recipe's own."""
    name = recipe.model.name
    stage = _stage(name, known)
    return known.stages[stage].model if stage is not None else name or None


def _config(recipe: Recipe, known: _Known) -> dict[str, Any]:
    """The ``config.json`` of such a model. Raises HalaError."""
    if (name := _form(recipe, known)) is None:
        raise HalaError(f"model.name: nothing is known of the model that {recipe.model.name} makes")
    revision = recipe.model.revision if name == recipe.model.name else None
    return templates.model_config(Model(name=name, revision=revision))
