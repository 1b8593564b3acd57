"""Compare models that ought to say the same: a quantized one and its source. A shard is one model."""

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from hala_hpc import engines
from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import HUB_OR_PATH, Data, Model, Recipe, TaskOptions
from hala_hpc.data import shapes
from hala_hpc.data.bad_rows import BadRows
from hala_hpc.data.cut import Cut, Watch
from hala_hpc.data.files import sources
from hala_hpc.engines.base import TokenEngine, TokenRequest, outputs_of
from hala_hpc.models import location
from hala_hpc.run import digests, files
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.manifest import Facts, Manifest, Shard
from hala_hpc.run.verify import CheckShard, ShardReport
from hala_hpc.tasks.compare import distance
from hala_hpc.tasks.compare.distance import RESULT, TOKENS, Place
from hala_hpc.tasks.compare.texts import TEXTS
from hala_hpc.worker.items.task import Item, Planned
from hala_hpc.worker.items.task import cut as planned
from hala_hpc.worker.task import ITEMS

ASKED: Final = "input/texts.json"
"""In the run: the texts, as tokens."""
REPORT: Final = "report.json"
TABLE: Final = "report.md"
WARM_TOKENS: Final = 8
"""Written before the clock starts: the first steps of an engine are slower."""


@dataclass
class Compared:
    """One of the models: a folder, a finished run, or a name on the hub."""

    name: str = field(default="", metadata=HUB_OR_PATH)
    revision: str | None = None


@dataclass
class Throughput:
    """How fast a model writes: so many prompts at once, each answered at full length."""

    prompts: int = 64
    prompt_tokens: int = 128
    output_tokens: int = 128


@dataclass
class Options(TaskOptions):
    """The recipe's ``task:`` section for ``kind: compare``. Without ``data`` the project's own texts are used."""

    kind: str = "compare"
    models: dict[str, Compared] = field(default_factory=dict)  # a label for each
    base: str | None = None  # label of what the others are held against; null: the first
    texts: int = 200  # rows of data, where data is given
    length: int = 512  # tokens of a text at most
    likely: int = 20  # tokens looked at in each place; vLLM's own limit, unless engine.arguments has max_logprobs
    throughput: Throughput = field(default_factory=Throughput)


class Compare:
    """See the module. Models that do not take the same tokens are refused when the run is planned."""

    stage = "serve"
    loop = ITEMS
    suffix = ""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        options: Options = recipe.task
        if not options.models or any(not model.name for model in options.models.values()):
            raise HalaError(
                "task.models: which models?", "task.models.LABEL.name=FOLDER, RUN or ORG/NAME, at least two"
            )
        location.refuse_odd(options.models)
        engines.refuse_without_tokens(recipe)
        numbers = {"texts": options.texts, "length": options.length - 1, "likely": options.likely}
        numbers |= {f"throughput.{key}": value for key, value in asdict(options.throughput).items()}
        for key, value in numbers.items():
            if value < 1:
                raise HalaError(f"task.{key}: too small")
        context = getattr(recipe.engine, "max_model_len", None)
        if context is not None and options.length >= context:
            raise HalaError(
                f"task.length: texts of {options.length} tokens do not fit a context of {context}",
                f"task.length={context - 1}, or a larger engine.max_model_len",
            )

    def plan(self, folder: Path, watch: Watch) -> Cut:
        """Raises HalaError for models that are not there, and tokenizers that do not agree on the texts."""
        found = {label: folder for label, (_, folder) in location.labelled(self._recipe.task.models).items()}
        base = self._recipe.task.base or next(iter(found))
        if len(found) < 2 or base not in found:
            raise HalaError(f"task.models: {', '.join(found)}", "two or more, and task.base one of them")
        notes: Counter[str] = Counter()
        texts = self._texts(folder, watch, notes)
        tokens = _agreed({label: tokens_of(model, texts, self._recipe.task.length) for label, model in found.items()})
        (folder / ASKED).parent.mkdir(exist_ok=True)
        files.write_durably(folder / ASKED, json.dumps(tokens).encode())
        items, read = [], []
        for label, model in found.items():
            watch.say(f"reading {label}")
            size = sum(path.stat().st_size for path in location.weights(model))
            digest = location.sound_digest(model, watch.weigh)
            asked = {"name": label, "model": str(model), "weights": digest, "bytes": size, "base": base}
            items.append(Planned(asked, model, sum(len(ids) - 1 for ids in tokens.values()), [digest, tokens]))
            read.append({"path": str(model), "original": label, "rows": 1, "bytes": size})
        cut = planned("compare", "benchmarks", items, read, texts=len(tokens), assembled=True)
        return replace(cut, facts=replace(cut.facts, notes=dict(notes)))

    def models_on_hub(self) -> list[Model]:
        """What ``hala prefetch`` has to fetch."""
        return [Model(one.name, one.revision) for one in self._recipe.task.models.values()]

    def data_on_hub(self) -> list[Data]:
        return []

    def checker(self, facts: Facts) -> CheckShard:
        def check(shard: Shard, path: Path) -> ShardReport:
            problems = tuple(_faults(facts.items[shard.id], shard, path))
            return ShardReport(done=0 if problems else 1, problems=problems)

        return check

    def open(self, run: RunDirectory, plan: Manifest) -> "Comparing":
        del plan
        return Comparing(self._recipe, run)

    def finish(self, run: RunDirectory, plan: Manifest) -> None:
        """Write RUN/final: the report, and its table for people."""
        items = plan.facts.items
        folders = {str(item["name"]): run.shard_output(shard) for shard, item in enumerate(items)}
        with suppress(FileExistsError), files.whole_directory(run.final) as made:
            report = distance.report(items[0]["base"], folders)
            (made / REPORT).write_text(json.dumps(report, indent=1) + "\n", "utf-8")
            (made / TABLE).write_text(distance.render(report), "utf-8")
            digests.write(made)

    def _texts(self, folder: Path, watch: Watch, notes: Counter[str]) -> dict[str, str]:
        data = self._recipe.data
        if not data.path and not data.hub:
            return dict(TEXTS)
        rows = self._rows(folder, watch, notes)
        texts = {f"row-{number}": text for number, text in zip(range(self._recipe.task.texts), rows, strict=False)}
        if not texts:
            raise HalaError("data: no row holds a text")
        return texts

    def _rows(self, folder: Path, watch: Watch, notes: Counter[str]) -> Iterator[str]:
        bad = BadRows(self._recipe.data.bad_rows, notes, folder, most=1)
        for source, chunk in sources.read(self._recipe.data, folder / "input", watch.say, bad):
            shape = shapes.shape_of(self._recipe.data, ["user", "assistant"], chunk.schema())
            for number, row in zip(chunk.numbers, chunk.rows, strict=True):
                try:
                    text = "\n\n".join(text for _, text in shape.texts(row))
                except HalaError as error:
                    bad.add(sources.where(source, number), error)
                    continue
                if text:
                    yield text


class Comparing:
    """One worker's work: an engine for each model, one after the other."""

    def __init__(self, recipe: Recipe, run: RunDirectory) -> None:
        self._recipe, self._run = recipe, run
        self._engine: TokenEngine | None = None

    def do(self, item: Item) -> dict[str, Any]:
        """Log-probabilities of the texts, then the throughput."""
        asked, model = item.asked, Path(item.asked["model"])
        item.tell("checking the weights")
        if location.digest(model, lambda _: item.check_stop()) != asked["weights"]:
            raise HalaError(f"{model} changed since the run was planned", "plan a new run")
        item.tell("loading")
        began = time.monotonic()
        engine = self._engine = self._start(model)
        loaded, version = time.monotonic() - began, engine.version
        tokens: dict[str, list[int]] = json.loads((self._run.path / ASKED).read_text("utf-8"))
        item.tell("log-probabilities")
        places = log_probabilities(engine, tokens, self._recipe.task.likely, item.check_stop)
        item.tell("throughput")
        speed = throughput(engine, tokens, self._recipe.task.throughput, item.check_stop)
        self.close()
        item.place.mkdir()
        distance.write(item.place / TOKENS, places)
        options = {key: value for key, value in asdict(self._recipe.engine).items() if value is not None}
        result = {key: asked[key] for key in ("name", "weights", "bytes")} | {
            "throughput": speed,
            "load_seconds": round(loaded, 3),
            "engine": {"version": version, **options},
        }
        (item.place / RESULT).write_text(json.dumps(result, indent=1) + "\n", "utf-8")
        return {"tokens": len(places), "output_tokens": speed["output_tokens"]}

    def close(self) -> None:
        """Free the device, for another model's engine may start in this process."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def _start(self, model: Path) -> TokenEngine:
        return engines.start_for_tokens(replace(self._recipe, model=Model(name=str(model))))


def create(recipe: Recipe) -> Compare:
    """The task of a recipe. Raises HalaError for options that cannot be."""
    return Compare(recipe)


def tokens_of(model: Path, texts: Mapping[str, str], length: int) -> dict[str, list[int]]:
    """The texts as a model's own tokenizer has them, special tokens included, each cut to ``length``.

    Raises HalaError for a model without ``tokenizer.json``.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    except Exception as error:  # it raises nothing more special
        raise HalaError(f"{model}: no tokenizer.json that can be read: {error}") from error
    tokenizer.no_truncation()
    return {name: list(tokenizer.encode(text).ids)[:length] for name, text in texts.items()}


def log_probabilities(
    engine: TokenEngine, tokens: Mapping[str, list[int]], likely: int, check_stop: Callable[[], None]
) -> list[Place]:
    """What the model expected at each token of each text after the first."""
    asked = {"max_tokens": 1, "detokenize": False, "prompt_logprobs": likely}
    outputs = _answers(engine, {name: (ids, asked) for name, ids in tokens.items()}, check_stop)
    places = []
    for name, ids in tokens.items():
        for position, told in enumerate(outputs[name].prompt_logprobs):
            if position:
                found = {int(token): float(each.logprob) for token, each in told.items()}
                places.append(Place(name, position, ids[position], found[ids[position]], found))
    return places


def throughput(
    engine: TokenEngine, tokens: Mapping[str, list[int]], asked: Throughput, check_stop: Callable[[], None]
) -> dict[str, Any]:
    """Output tokens a second, all prompts at once, none of which begins like another."""
    pool = [token for ids in tokens.values() for token in ids]
    room = max(1, min(asked.prompt_tokens, engine.context - asked.output_tokens))

    def prompts(count: int, length: int, shift: int) -> dict[str, tuple[list[int], dict[str, Any]]]:
        params = {"max_tokens": length, "min_tokens": length, "ignore_eos": True, "detokenize": False}
        starts = [(shift + number * 37) % len(pool) for number in range(count)]
        return {
            f"{shift}-{number}": ([pool[(start + at) % len(pool)] for at in range(room)], params)
            for number, start in enumerate(starts)
        }

    _answers(engine, prompts(min(4, asked.prompts), WARM_TOKENS, 1), check_stop)
    began = time.monotonic()
    outputs = _answers(engine, prompts(asked.prompts, asked.output_tokens, 0), check_stop)
    seconds = time.monotonic() - began
    written = sum(len(output.outputs[0].token_ids) for output in outputs.values())
    return {
        **asdict(asked),
        "prompt_tokens": room,
        "seconds": round(seconds, 4),
        "output_tokens": written,
        "output_tokens_per_second": written / seconds,
    }


def _answers(
    engine: TokenEngine, requests: Mapping[str, tuple[list[int], dict[str, Any]]], check_stop: Callable[[], None]
) -> dict[str, Any]:
    asked = [TokenRequest(name, *request) for name, request in requests.items()]
    return {output.request_id: output for output in outputs_of(engine, asked, check_stop)}


def _agreed(by_label: Mapping[str, dict[str, list[int]]]) -> dict[str, list[int]]:
    """The tokens that all models take. Raises HalaError where they differ."""
    (first, tokens), *others = by_label.items()
    for label, found in others:
        if differing := [name for name in tokens if tokens[name] != found[name]]:
            raise HalaError(
                f"task.models: {first} and {label} make different tokens of the same text ({differing[0]})",
                "only models of one tokenizer can be compared token by token",
            )
    kept = {name: ids for name, ids in tokens.items() if len(ids) > 1}
    if not kept:
        raise HalaError("data: no text has two tokens")
    return kept


def _faults(asked: dict[str, Any], shard: Shard, path: Path) -> Iterator[str]:
    """What contradicts the plan in a model's results."""
    import pyarrow as pa

    try:
        result = json.loads((path / RESULT).read_text("utf-8"))
        places = distance.read(path / TOKENS)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        yield f"cannot be read: {type(error).__name__}: {error}"
        return
    if result.get("weights") != asked["weights"]:
        yield "it was measured on other weights"
    if len(places) != shard.tokens:
        yield f"it has {len(places)} tokens, {shard.tokens} were planned"
    if wrong := [
        place for place in places if not (math.isfinite(place.log_probability) and place.log_probability <= 1e-6)
    ]:
        yield f"{len(wrong)} log-probabilities are not finite, the first in {wrong[0].text}"
