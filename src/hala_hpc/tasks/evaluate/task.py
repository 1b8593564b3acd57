"""Ask models benchmarks: a shard is one benchmark of one model.

A worker keeps its engine as long as shards of the same model are left. The weights that a plan saw are the weights that
answer: their digest is computed again before a model is loaded, and kept with every result.
"""

import importlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from hala_hpc import engines
from hala_hpc.config.errors import HalaError, refuse_odd_name
from hala_hpc.config.imports import heavy_imports
from hala_hpc.config.schema import PATH, Data, Model, Recipe, TaskOptions
from hala_hpc.data.cut import Cut, PlanWatch
from hala_hpc.models import card, location
from hala_hpc.models.folder import item_report
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.manifest import Facts, Manifest, Shard
from hala_hpc.run.verify import CheckShard, ShardReport
from hala_hpc.tasks.evaluate import benchmarks, local, results
from hala_hpc.tasks.evaluate.benchmarks import Benchmark, BenchmarkItem, Harness, Setting
from hala_hpc.tasks.evaluate.scorer import Attempt, Counts, Scorer
from hala_hpc.worker.items import Item, ItemTask, ItemWork, PlannedItem, cut_items

QUESTIONS: Final = 250
"""A guess (ours) at the questions of a task that nobody has counted, for how long its shard will take."""
HEADER: Final = ("model", "path", "weights", "benchmark", "harness", "few_shot", "limit", "chat_template", "missing")
"""What a result repeats of its item."""
PLANNED: Final = ("model", "weights", "benchmark", "harness", "few_shot", "limit")
"""What a result must have as it was planned."""
KINDS: Final = (".safetensors", ".json", ".model", ".txt", ".jinja")
"""Files that decide what a model says; a card may change at any time."""
T = TypeVar("T")


@dataclass
class Options(TaskOptions):
    """The recipe's ``task:`` section for ``kind: evaluate``."""

    kind: str = "evaluate"
    models: dict[str, Model] = field(default_factory=dict)  # by the label that tables will show
    benchmarks: list[str] = field(default_factory=list)  # names, or sets of them: arabic, latxa
    settings: dict[str, Setting] = field(default_factory=dict)  # what differs, by benchmark
    limit: int | None = None  # questions per task, for tries; results name it
    few_shot: int | None = None  # null: as each benchmark says
    chat_template: bool | None = None  # null: as each benchmark says, else where the model has one
    system_prompt: str | None = None
    seed: int = 0  # of drawn examples and texts
    task_files: list[str] = field(default_factory=list, metadata=PATH)  # folders of lm-eval task files, for all


class Evaluate(ItemTask):
    """See the module. Raises HalaError for impossible options."""

    stage = "serve"

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        options: Options = recipe.task
        engines.refuse_without_tokens(recipe)
        if not options.models:
            raise HalaError("task.models: nothing to evaluate", "for example task.models.mine.name=ORG/MODEL")
        for label, model in options.models.items():
            refuse_odd_name("task.models", label, "a label")
            if not model.name:
                raise HalaError(f"task.models.{label}.name: which model?", "a folder, a run, or a name on the hub")
        benchmarks.refuse_small("task", options.limit, options.few_shot)
        self._benchmarks = benchmarks.find(options.benchmarks, options.settings, options.task_files)

    def plan(self, folder: Path, watch: PlanWatch) -> Cut:
        """Raises HalaError for a model that is not there or not whole, and for local data that cannot be read."""
        del folder
        planned_benchmarks = [self._planned(benchmark, watch) for benchmark in self._benchmarks]
        items: list[PlannedItem] = []
        sources: list[dict[str, Any]] = []
        for label, (_, path) in location.labelled(self._recipe.task.models).items():
            engines.check(replace(self._recipe, model=Model(str(path))))
            watch.say(f"reading {label}'s weights")
            weights = location.sound_digest(path, watch.weigh)
            size = sum(file.stat().st_size for file in location.weights(path))
            rows = len(planned_benchmarks)
            sources.append({"path": str(path), "original": str(path), "rows": rows, "bytes": size})
            for cost, benchmark in planned_benchmarks:
                name = f"{label}-{benchmark['benchmark']}"
                item = BenchmarkItem(name=name, model=label, path=str(path), weights=weights, **benchmark)
                if item["chat_template"] is None:
                    item["chat_template"] = has_template(path)
                items.append(PlannedItem(dict(item), path, cost))
        return cut_items("evaluate", "benchmarks", items, sources)

    def checker(self, facts: Facts) -> CheckShard:
        return partial(_check, items=facts.items)

    def open(self, run: RunDirectory, plan: Manifest) -> "Work":
        del run, plan
        return Work(self._recipe)

    def hub_needs(self) -> list[Model | Data]:
        """The models, and datasets of the benchmarks that are not given as folders."""
        settings = self._recipe.task.settings
        fetched = [known for known in self._benchmarks if not settings.get(known.name, Setting()).data]
        data = (source for benchmark in fetched for source in benchmarks.hub_data(benchmark))
        return [*self._recipe.task.models.values(), *data]

    def _planned(self, benchmark: Benchmark, watch: PlanWatch) -> tuple[int, BenchmarkItem]:
        """What every model is asked, and about how many questions that is."""
        options: Options = self._recipe.task
        setting = options.settings.get(benchmark.name) or Setting()
        limit = _first(setting.limit, options.limit)
        tasks, missing = list(benchmark.tasks), list[str]()
        counts = [benchmark.questions or QUESTIONS] * len(tasks)
        if setting.data and benchmark.harness == "lighteval":
            watch.say(f"reading {setting.data}")
            by_task = local.read(benchmark, tasks, Path(setting.data))
            tasks, missing = list(by_task), [task for task in tasks if task not in by_task]
            counts = [len(splits.get(benchmark.split, ())) for splits in by_task.values()]
        item: BenchmarkItem = {
            "benchmark": benchmark.name,
            "harness": benchmark.harness,
            "tasks": tasks,
            "missing": missing,
            "few_shot": _first(setting.few_shot, options.few_shot, benchmark.few_shot),
            "limit": limit,
            "chat_template": _first(setting.chat_template, options.chat_template, benchmark.chat_template),
            "system_prompt": options.system_prompt,
            "data": setting.data,
            "seed": options.seed,
            "options": benchmark.options,
        }
        item["files_digest"] = local.digest_of(_folders(item))
        return sum(min(count, limit or count) for count in counts), item


class Work(ItemWork):
    """One worker's engine, kept while shards of its model come."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._scorer: Scorer | None = None
        self._weights = ""

    def do(self, item: Item) -> dict[str, Any]:
        benchmark = cast("BenchmarkItem", item.entry)
        if local.digest_of(_folders(benchmark)) != benchmark["files_digest"]:
            raise HalaError(
                f"{benchmark['benchmark']}: its files have changed since the run was planned", "plan another run"
            )
        attempt = Attempt(item.kept, item.check_stop, item.tell)
        scorer = self._scorer_of(Path(benchmark["path"]), benchmark["weights"], attempt)
        # Imported after the engine has started, for a harness imports torch; it keeps what it has found of its tasks.
        with heavy_imports():
            harness = cast("Harness", importlib.import_module(f"hala_hpc.tasks.evaluate.{benchmark['harness']}"))
        scorer.counts, began = Counts(), time.monotonic()
        samples = harness.evaluate(scorer, benchmark, attempt)
        seconds, counts, engine = time.monotonic() - began, scorer.counts, scorer.about()
        header = {key: item.entry[key] for key in HEADER} | {
            "versions": card.versions(harness.PACKAGES) | {engine["kind"]: engine["version"]},
            "seconds": round(seconds, 3),
            "questions_per_second": round(len(samples) * counts.fresh / seconds, 3) if seconds > 0 else 0.0,
            "truncated": counts.truncated,
            "engine": engine,
        }
        result = results.write(item.place, samples, header)
        return {"questions": result.questions, "score": result.score} | asdict(counts)

    def close(self) -> None:
        scorer, self._scorer, self._weights = self._scorer, None, ""
        if scorer is not None:
            scorer.close()

    def _scorer_of(self, path: Path, weights: str, attempt: Attempt) -> Scorer:
        """An engine with the model in ``path`` whose digest is ``weights``.

        Raises HalaError where the files are others, or were written over while they were loaded.
        """
        if self._scorer is not None and self._weights == weights:
            return self._scorer
        self.close()
        attempt.tell("reading the weights")
        before = _stamps(path)
        location.refuse_changed(path, weights, attempt.check_stop)
        attempt.tell("starting the engine")
        began = time.monotonic()
        self._scorer = Scorer(replace(self._recipe, model=Model(str(path))))
        attempt.tell(f"the engine took {time.monotonic() - began:.0f} s to start")
        if not before.items() <= _stamps(path).items():
            raise location.changed(path)
        self._weights = weights
        attempt.check_stop()
        return self._scorer


create = Evaluate


def _first(*values: T | None) -> T | None:
    """The first that is set: for one benchmark, for all, by the benchmark itself."""
    return next((value for value in values if value is not None), None)


def _folders(item: BenchmarkItem) -> list[str]:
    """Folders of a benchmark's questions and task files, if they do not come from the hub and the harness."""
    return [*filter(None, [item["data"]]), *item["options"].get("task_files", ())]


def _stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Sizes and times by name; links of the hub's cache are followed."""
    stats = {file.name: file.stat() for file in folder.iterdir() if file.suffix in KINDS}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def has_template(folder: Path) -> bool:
    """Whether a model brings a chat template."""
    try:
        return (folder / "chat_template.jinja").is_file() or bool(
            json.loads((folder / "tokenizer_config.json").read_text("utf-8")).get("chat_template")
        )
    except (OSError, ValueError) as error:
        raise HalaError(f"{folder}: no tokenizer: {error}") from error


def _check(shard: Shard, path: Path, items: Sequence[Mapping[str, object]]) -> ShardReport:
    """Every score follows from the samples, and the result is of the plan's model and benchmark."""
    problems = results.contradictions(path)
    if not problems:
        result, item = results.read_one(path), items[shard.id]
        problems = [
            f"{key} is {getattr(result, key)!r}, planned was {item[key]!r}"
            for key in PLANNED
            if getattr(result, key) != item[key]
        ]
    return item_report(problems)
