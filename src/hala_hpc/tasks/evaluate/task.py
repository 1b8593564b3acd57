"""Ask models benchmarks: a shard is one benchmark of one model.

A worker keeps its engine as long as shards of the same model are left. The weights that a plan saw are the weights that
answer: their digest is computed again before a model is loaded, and kept with every result.
"""

import importlib
import json
import time
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from hala_hpc import engines
from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import PATH, Data, Model, Recipe, TaskOptions
from hala_hpc.data.cut import Cut, Watch
from hala_hpc.models import location
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.manifest import Facts, Manifest, Shard
from hala_hpc.run.verify import CheckShard, ShardReport
from hala_hpc.tasks.evaluate import results
from hala_hpc.tasks.evaluate.benchmarks import local, named
from hala_hpc.tasks.evaluate.benchmarks.named import Setting
from hala_hpc.tasks.evaluate.harness import Benchmark, Harness
from hala_hpc.tasks.evaluate.scorer import Loaded
from hala_hpc.worker.items.task import Item, Planned
from hala_hpc.worker.items.task import cut as planned
from hala_hpc.worker.task import ITEMS

QUESTIONS: Final = 250
"""Of a task whose questions are not at hand (ours): only a guess at how long its shard will take."""


@dataclass
class Options(TaskOptions):
    """The recipe's ``task:`` section for ``kind: evaluate``."""

    kind: str = "evaluate"
    models: dict[str, Model] = field(default_factory=dict)  # by the label that tables will show
    benchmarks: list[str] = field(default_factory=list)  # names, or sets of them: arabic, latxa
    settings: dict[str, Setting] = field(default_factory=dict)  # what differs, by benchmark
    limit: int | None = None  # questions per task, for tries; results say so
    few_shot: int | None = None  # null: as each benchmark says
    chat_template: bool | None = None  # null: as each benchmark says, else where the model has one
    system_prompt: str | None = None
    seed: int = 0  # of drawn examples and texts
    task_files: list[str] = field(default_factory=list, metadata=PATH)  # folders of lm-eval task files, for all


class Evaluate:
    """See the module."""

    stage, loop, suffix = "serve", ITEMS, ""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        options: Options = recipe.task
        engines.refuse_without_tokens(recipe)
        if not options.models:
            raise HalaError("task.models: nothing to evaluate", "for example task.models.mine.name=ORG/MODEL")
        location.refuse_odd(options.models)
        for label, model in options.models.items():
            if not model.name:
                raise HalaError(f"task.models.{label}.name: which model?", "a folder, a run, or a name on the hub")
        for key in ("limit", "few_shot"):
            number = getattr(options, key)
            if number is not None and number < (key == "limit"):
                raise HalaError(f"task.{key}: {number}: must be at least {int(key == 'limit')}")
        self._benchmarks = named.find(options.benchmarks, options.settings, options.task_files)

    def plan(self, folder: Path, watch: Watch) -> Cut:
        """Raises HalaError for a model that is not there or not whole, and for local data that cannot be read."""
        del folder
        asked = [self._asked(benchmark, watch) for benchmark in self._benchmarks]
        items: list[Planned] = []
        sources: list[dict[str, Any]] = []
        for label, (_, path) in location.labelled(self._recipe.task.models).items():
            engines.check(replace(self._recipe, model=Model(str(path))))
            watch.say(f"reading {label}'s weights")
            weights = location.sound_digest(path, watch.weigh)
            size = sum(file.stat().st_size for file in location.weights(path))
            sources.append({"path": str(path), "original": str(path), "rows": len(asked), "bytes": size})
            for cost, question in asked:
                item: dict[str, Any] = {"name": f"{label}-{question['benchmark']}", "model": label, "path": str(path)}
                item |= {"weights": weights} | question
                if item["chat_template"] is None:
                    item["chat_template"] = has_template(path)
                items.append(Planned(item, path, cost))
        return planned("evaluate", "benchmarks", items, sources)

    def checker(self, facts: Facts) -> CheckShard:
        return partial(_check, items=facts.items)

    def open(self, run: RunDirectory, plan: Manifest) -> "Work":
        del run, plan
        return Work(self._recipe)

    def finish(self, run: RunDirectory, plan: Manifest) -> None:
        """Results stand by themselves: ``tasks.evaluate.results`` reads them, ``hala report`` puts them together."""

    def models_on_hub(self) -> list[Model]:
        """What ``hala prefetch`` has to fetch."""
        return list(self._recipe.task.models.values())

    def data_on_hub(self) -> list[Data]:
        """Datasets of the benchmarks that are not given as folders."""
        settings = self._recipe.task.settings
        asked = [each for each in self._benchmarks if not (each.name in settings and settings[each.name].data)]
        return [data for benchmark in asked for data in named.hub_data(benchmark)]

    def _asked(self, benchmark: Benchmark, watch: Watch) -> tuple[int, dict[str, Any]]:
        """What is asked of every model, and about how many questions that is."""
        options: Options = self._recipe.task
        setting = options.settings.get(benchmark.name) or Setting()
        limit = options.limit if setting.limit is None else setting.limit
        few_shot = setting.few_shot if setting.few_shot is not None else options.few_shot
        template = setting.chat_template if setting.chat_template is not None else options.chat_template
        tasks, missing = list(benchmark.tasks), list[str]()
        counts = [benchmark.questions or QUESTIONS] * len(tasks)
        if setting.data and benchmark.harness == "lighteval":
            watch.say(f"reading {setting.data}")
            found = local.read(benchmark, tasks, Path(setting.data))
            tasks, missing = list(found.tasks), list(found.missing)
            counts = [len(splits.get(benchmark.split, ())) for splits in found.tasks.values()]
        cost = sum(min(count, limit or count) for count in counts)
        asked = {
            "benchmark": benchmark.name,
            "harness": benchmark.harness,
            "tasks": tasks,
            "missing": missing,
            "few_shot": benchmark.few_shot if few_shot is None else few_shot,
            "limit": limit,
            "chat_template": benchmark.chat_template if template is None else template,
            "system_prompt": options.system_prompt,
            "data": setting.data,
            "seed": options.seed,
            "options": benchmark.options,
        }
        return cost, asked | {"files_digest": local.digest_of(_folders(asked))}


class Work:
    """One worker's engine, kept while shards of its model come."""

    def __init__(self, recipe: Recipe) -> None:
        self._loaded = Loaded(recipe.engine, recipe.site.scratch, recipe.run.stall_seconds)
        self._harnesses: dict[str, Harness] = {}

    def do(self, item: Item) -> dict[str, Any]:
        asked = item.asked
        harness = self._harness(asked["harness"])
        if local.digest_of(_folders(asked)) != asked["files_digest"]:
            raise HalaError(
                f"{asked['benchmark']}: its files have changed since the run was planned", "plan another run"
            )
        scorer = self._loaded.scorer(Path(asked["path"]), asked["weights"], item.check_stop, item.tell)
        before, began = scorer.counts(), time.monotonic()
        found = harness.evaluate(scorer, asked, item.kept, item.check_stop, item.tell)
        seconds, counts, engine = time.monotonic() - began, scorer.counts().since(before), scorer.about()
        told = {key: asked[key] for key in TOLD} | {
            "versions": harness.versions() | {engine["kind"]: engine["version"]},
            "seconds": round(seconds, 3),
            "questions_per_second": round(len(found) * counts.fresh / seconds, 3) if seconds > 0 else 0.0,
            "truncated": counts.truncated,
            "engine": engine,
        }
        result = results.write(item.place, found, told)
        return {"questions": result.questions, "score": result.score} | asdict(counts)

    def close(self) -> None:
        self._loaded.close()

    def _harness(self, name: str) -> Harness:
        """Kept too: one may take long to find its tasks."""
        if name not in self._harnesses:
            self._harnesses[name] = importlib.import_module(f"hala_hpc.tasks.evaluate.{name}.harness").create()
        return self._harnesses[name]


TOLD: Final = (
    "model",
    "path",
    "weights",
    "benchmark",
    "harness",
    "few_shot",
    "limit",
    "chat_template",
    "missing",
)
"""What a result repeats of its item."""


def create(recipe: Recipe) -> Evaluate:
    """The task of a recipe. Raises HalaError for options that cannot be."""
    return Evaluate(recipe)


def _folders(asked: dict[str, Any]) -> list[str]:
    """Where a benchmark's questions and task files are read from, if not from the hub and the harness."""
    return [*filter(None, [asked["data"]]), *asked["options"].get("task_files", ())]


def has_template(folder: Path) -> bool:
    """Whether a model brings a chat template."""
    try:
        return (folder / "chat_template.jinja").is_file() or bool(
            json.loads((folder / "tokenizer_config.json").read_text("utf-8")).get("chat_template")
        )
    except (OSError, ValueError) as error:
        raise HalaError(f"{folder}: no tokenizer: {error}") from error


def _check(shard: Shard, path: Path, items: list[dict[str, Any]]) -> ShardReport:
    """Every score follows from the samples, and the result is of the plan's model and benchmark."""
    problems = results.contradictions(path)
    if not problems:
        result, item = results.read_one(path), items[shard.id]
        problems = [
            f"{key} is {getattr(result, key)!r}, planned was {item[key]!r}"
            for key in ("model", "weights", "benchmark", "harness", "few_shot", "limit")
            if getattr(result, key) != item[key]
        ]
    return ShardReport(done=0 if problems else 1, problems=tuple(problems))
