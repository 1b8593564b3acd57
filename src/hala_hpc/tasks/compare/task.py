"""Compare models that ought to say the same: a quantized one and its source. A shard is one model."""

import json
import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypedDict, cast

from hala_hpc import engines
from hala_hpc.config.errors import HalaError, refuse_odd_name
from hala_hpc.config.schema import Model, NamedModel, Recipe, TaskOptions
from hala_hpc.data.cut import Cut, PlanWatch
from hala_hpc.models import location
from hala_hpc.models.folder import REPORT, item_report, write_json
from hala_hpc.run import digests, files
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.manifest import Facts, Manifest, Shard
from hala_hpc.run.verify import CheckShard
from hala_hpc.tasks.compare import measure
from hala_hpc.tasks.compare.measure import RESULT, TOKENS, Throughput
from hala_hpc.worker.items import Item, ItemTask, ItemWork, PlannedItem, cut_items

TEXT_TOKENS: Final = "input/texts.json"
"""In the run: the texts, as tokens."""
TABLE: Final = "report.md"


class CompareItem(TypedDict):
    """A shard's entry in the plan: a model by its label, folder, digest and size, and the label of the base."""

    name: str
    model: str
    weights: str
    bytes: int
    base: str


@dataclass
class Options(TaskOptions):
    """The recipe's ``task:`` section for ``kind: compare``. Without ``data`` the project's own texts are used."""

    kind: str = "compare"
    models: dict[str, NamedModel] = field(default_factory=dict)  # a label for each
    base: str | None = None  # label of the model that the others are compared with; null: the first
    texts: int = 200  # rows of data, where data is given
    length: int = 512  # tokens of a text at most
    likely: int = 20  # tokens looked at in each place; vLLM's own limit, unless engine.arguments has max_logprobs
    throughput: Throughput = field(default_factory=Throughput)


class Compare(ItemTask):
    """See the module. Raises HalaError for invalid options; ``plan`` refuses models that take other tokens."""

    environment = "serve"

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        options: Options = recipe.task
        if not options.models or any(not model.name for model in options.models.values()):
            raise HalaError("task.models is missing", "task.models.LABEL.name=FOLDER, RUN or ORG/NAME, at least two")
        for label in options.models:
            refuse_odd_name("task.models", label, "a label")
        engines.refuse_without_tokens(recipe)
        numbers = {"texts": options.texts, "length": options.length - 1, "likely": options.likely}
        numbers |= {f"throughput.{key}": value for key, value in asdict(options.throughput).items()}
        for key, value in numbers.items():
            if value < 1:
                raise HalaError(f"task.{key} is too small")
        context = getattr(recipe.engine, "max_model_len", None)
        if context is not None and options.length >= context:
            raise HalaError(
                f"task.length: texts of {options.length} tokens do not fit a context of {context}",
                f"task.length={context - 1}, or a larger engine.max_model_len",
            )

    def plan(self, folder: Path, watch: PlanWatch) -> Cut:
        """Raises HalaError for models that are not there, and tokenizers that do not agree on the texts."""
        options: Options = self._recipe.task
        models = {label: path for label, (_, path) in location.labelled(options.models).items()}
        base = options.base or next(iter(models))
        if len(models) < 2 or base not in models:
            raise HalaError(f"task.models: {', '.join(models)}", "two or more, and task.base one of them")
        notes: Counter[str] = Counter()
        texts = measure.read(self._recipe.data, options.texts, folder, watch, notes)
        tokens = measure.agreed(models, texts, options.length)
        (folder / TEXT_TOKENS).parent.mkdir(exist_ok=True)
        files.write_durably(folder / TEXT_TOKENS, json.dumps(tokens).encode())
        items, sources = [], []
        for label, model in models.items():
            watch.say(f"reading {label}")
            size = sum(path.stat().st_size for path in location.weights(model))
            digest = location.sound_digest(model, watch.weigh)
            item = CompareItem(name=label, model=str(model), weights=digest, bytes=size, base=base)
            items.append(PlannedItem(dict(item), model, sum(len(ids) - 1 for ids in tokens.values()), [digest, tokens]))
            sources.append({"path": str(model), "original": label, "rows": 1, "bytes": size})
        return cut_items("compare", "benchmarks", items, sources, texts=len(tokens), assembled=True, notes=notes)

    def hub_needs(self) -> list[Model]:
        return [Model(model.name, model.revision) for model in self._recipe.task.models.values()]

    def checker(self, facts: Facts) -> CheckShard:
        return lambda shard, path: item_report(_faults(cast(CompareItem, facts.items[shard.id]), shard, path))

    def open(self, run: RunDirectory, plan: Manifest) -> "Comparing":
        del plan
        return Comparing(self._recipe, run)

    def finish(self, run: RunDirectory, plan: Manifest) -> None:
        """Write RUN/final: the report, and its table for people."""
        items = plan.facts.items
        folders = {str(item["name"]): run.shard_output(shard) for shard, item in enumerate(items)}
        with suppress(FileExistsError), files.whole_directory(run.final) as folder:
            whole = measure.report(items[0]["base"], folders)
            write_json(folder / REPORT, whole)
            (folder / TABLE).write_text(measure.render(whole), "utf-8")
            digests.write(folder)


class Comparing(ItemWork):
    """One worker's work: an engine for each model, one after the other."""

    def __init__(self, recipe: Recipe, run: RunDirectory) -> None:
        self._recipe, self._run = recipe, run

    def do(self, item: Item) -> dict[str, Any]:
        """Log-probabilities of the texts, then the throughput."""
        planned, check_stop = cast(CompareItem, item.entry), item.check_stop
        model = Path(planned["model"])
        item.tell("checking the weights")
        location.refuse_changed(model, planned["weights"], check_stop)
        item.tell("loading")
        tokens: dict[str, list[int]] = json.loads((self._run.path / TEXT_TOKENS).read_text("utf-8"))
        began = time.monotonic()
        # Closed at once, to free the device: another model's engine may start in this process.
        with closing(engines.start_for_tokens(replace(self._recipe, model=Model(name=str(model))))) as engine:
            seconds, version = time.monotonic() - began, engine.version
            item.tell("log-probabilities")
            places = measure.log_probabilities(engine, tokens, self._recipe.task.likely, check_stop)
            item.tell("throughput")
            speed = measure.throughput(engine, tokens, self._recipe.task.throughput, check_stop)
        item.place.mkdir()
        measure.write(item.place / TOKENS, places)
        options = {key: value for key, value in asdict(self._recipe.engine).items() if value is not None}
        result = {
            "name": planned["name"],
            "weights": planned["weights"],
            "bytes": planned["bytes"],
            "throughput": speed,
            "load_seconds": round(seconds, 3),
            "engine": {"version": version, **options},
        }
        write_json(item.place / RESULT, result)
        return {"tokens": len(places), "output_tokens": speed["output_tokens"]}


create = Compare


def _faults(item: CompareItem, shard: Shard, path: Path) -> Iterator[str]:
    """What contradicts the plan in a model's results."""
    import pyarrow as pa

    try:
        result = json.loads((path / RESULT).read_text("utf-8"))
        places = measure.read_logprobs(path / TOKENS)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        yield f"cannot be read: {type(error).__name__}: {error}"
        return
    if result.get("weights") != item["weights"]:
        yield "it was measured on other weights"
    if len(places) != shard.tokens:
        yield f"it has {len(places)} tokens, {shard.tokens} were planned"
    wrong = [place for place in places if not (math.isfinite(place.log_probability) and place.log_probability <= 1e-6)]
    if wrong:
        yield f"{len(wrong)} log-probabilities are not finite, the first in {wrong[0].text}"
