"""Quantize a model by LLM Compressor: a shard is one of its weights files, or all where the model has to run."""

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal, TypedDict, cast

from hala_hpc.config.errors import HalaError, within
from hala_hpc.config.schema import Recipe, TaskOptions
from hala_hpc.data.bad_rows import BadRows
from hala_hpc.data.cut import Cut, PlanWatch
from hala_hpc.models import location
from hala_hpc.models.folder import REPORT, describe, item_report, require_files, unsound, write_json
from hala_hpc.models.safetensors_file import Tensor, free_at_once, tensors_of
from hala_hpc.run import files
from hala_hpc.run.digests import digest_of, in_threads
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.manifest import Facts, Manifest, Shard
from hala_hpc.run.verify import FINAL, CheckShard, ShardReport
from hala_hpc.tasks.quantize import files as quant_files
from hala_hpc.tasks.quantize import schemes
from hala_hpc.tasks.quantize.files import Calibration, Weights
from hala_hpc.tasks.quantize.folder import PartReport, assemble, faults
from hala_hpc.tasks.quantize.schemes import Scheme
from hala_hpc.worker.items import Item, ItemTask, ItemWork, PlannedItem, cut_items

WHOLE: Final = "model"
"""Name of the only shard where the whole model is quantized at once."""
CALIBRATION: Final = "input/calibration.json"
"""In the run: the texts that the model is run on, as tokens."""
TYPES: Final = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
FREED_BYTES: Final = 1 << 24
"""Smaller than what a weight takes while it is quantized (see ``free_at_once``)."""


class QuantizeItem(TypedDict):
    """A shard's entry in the plan: tensors of some files of the source, and those files' digests."""

    name: str
    files: list[str]
    tensors: list[str]
    ignore: list[str]
    digests: dict[str, str]


@dataclass
class Options(TaskOptions):
    """The recipe's ``task:`` section for ``kind: quantize``. The model is the recipe's ``model``."""

    kind: str = "quantize"
    scheme: str = "FP8_DYNAMIC"  # paper
    ignore: list[str] | None = None  # modules left as they are (names, or patterns after re:); null: by architecture
    method: Literal["auto", "files", "whole"] = "auto"  # auto: file by file where nothing has to be calibrated
    rounding: Literal["nearest", "gptq"] = "nearest"
    calibration: Calibration = field(default_factory=Calibration)
    device: str | None = None  # of files: cpu, cuda, ...; null: a GPU where there is one


class Quantize(ItemTask):
    """See the module. Raises HalaError for invalid options; what cannot be quantized is refused by ``plan``."""

    environment = "work"

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        options: Options = recipe.task
        self._scheme = schemes.find(options.scheme)
        if not recipe.model.name:
            raise HalaError("model.name: nothing to quantize", "a folder, a finished run or a name on the hub")
        cause = self._scheme.name if self._scheme.calibrated else f"rounding by {options.rounding}"
        self._needs_texts = self._scheme.calibrated or options.rounding == "gptq"
        if self._needs_texts and options.method == "files":
            raise HalaError(
                f"task.method: {cause} has to see the model run",
                "task.method=whole, which loads all of it",
            )
        self._method = "whole" if self._needs_texts else options.method.replace("auto", "files")
        texts = options.calibration
        if self._needs_texts and not (texts.path or texts.hub):
            raise HalaError(
                f"task.calibration: {cause} needs texts to run the model on",
                "task.calibration.path=FILE or task.calibration.hub=ORG/NAME",
            )
        if not self._needs_texts and (texts.path or texts.hub):
            raise HalaError(f"task.calibration: {self._scheme.name} needs no texts", "leave it out")
        for key in ("samples", "length"):
            if getattr(texts, key) < 1:
                raise HalaError(f"task.calibration.{key}: must be at least 1")

    def plan(self, folder: Path, watch: PlanWatch) -> Cut:
        """Raises HalaError for a model that is quantized already, not whole, or does not fit the scheme."""
        with within("model.name"):
            source = location.locate_one(self._recipe.model.name, self._recipe.model.revision)
        config = location.config(source)
        if "quantization_config" in config or "quantization_config" in config.get("text_config", {}):
            raise HalaError(
                f"model.name: {self._recipe.model.name} is quantized already", "name the one it was made from"
            )
        require_files("model.name", source)
        files_of = location.weights(source)
        tensors = [tensor for of_file in files_of.values() for tensor in of_file]
        options: Options = self._recipe.task
        ignore = schemes.ignored(config) if options.ignore is None else list(options.ignore)
        self._refuse(tensors, ignore)
        notes: Counter[str] = Counter()
        if self._needs_texts:
            _write_calibration(self._recipe, folder, watch, notes)
        watch.say("reading weights")
        digests = dict(zip(files_of, in_threads(location.digest_of_weights, files_of), strict=True))
        items = list(plan_items(self._groups(tensors, config), source, ignore, digests))
        sources = [
            {"path": str(path), "original": path.name, "rows": 1, "bytes": path.stat().st_size} for path in files_of
        ]
        return cut_items("quantize", "files", items, sources, assembled=True, notes=notes)

    def checker(self, facts: Facts) -> CheckShard:
        def check_shard(shard: Shard, path: Path) -> ShardReport:
            item = cast(QuantizeItem, facts.items[shard.id])
            problems = faults(path, schemes.expected(item["tensors"], self._scheme, item["ignore"]))
            final = path.parents[2] / "final"
            if shard.id == 0 and final.is_dir():
                problems += [f"{FINAL}{problem}" for problem in unsound(final)]
            return item_report(problems)

        return check_shard

    def open(self, run: RunDirectory, plan: Manifest) -> "Quantizing":
        del plan
        return Quantizing(self._scheme, run, self._recipe.task)

    def finish(self, run: RunDirectory, plan: Manifest) -> None:
        """Put the whole model together in RUN/final."""
        shards = [run.shard_output(shard) for shard in range(len(plan))]
        with suppress(FileExistsError), files.whole_directory(run.final) as target:
            assemble(run.path, target, Path(plan[0].source), shards)

    def _refuse(self, tensors: list[Tensor], ignore: list[str]) -> None:
        if misfits := schemes.misfits(tensors, self._scheme, ignore):
            more = f" and {len(misfits) - 3} more" if len(misfits) > 3 else ""
            raise HalaError(
                f"task.scheme: {self._scheme.name} does not fit {'; '.join(misfits[:3])}{more}",
                "another scheme, or name such modules in task.ignore",
            )
        if not any(schemes.is_quantized(tensor.name, ignore) for tensor in tensors):
            raise HalaError("task.ignore leaves nothing to quantize")

    def _groups(self, tensors: list[Tensor], config: Mapping[str, Any]) -> dict[str, list[Tensor]]:
        """The tensors of each shard, by its name."""
        if self._method == "files":
            return by_file(tensors, self._scheme)
        if config.get("tie_word_embeddings") and any(tensor.name.endswith("embed_tokens.weight") for tensor in tensors):
            tensors = [tensor for tensor in tensors if tensor.name != "lm_head.weight"]  # a loaded model saves it once
        return {WHOLE: tensors}


class Quantizing(ItemWork):
    """One worker's work: nothing is kept from file to file."""

    def __init__(self, scheme: Scheme, run: RunDirectory, options: Options) -> None:
        self._scheme, self._run, self._options = scheme, run, options

    def do(self, item: Item) -> dict[str, Any]:
        """Quantize, then check the result and that the source is the one that was planned with."""
        began = time.monotonic()
        free_at_once(FREED_BYTES)
        planned, source = cast(QuantizeItem, item.entry), Path(item.shard.source)
        paths = [source / name for name in planned["files"]]
        weights = Weights(paths, planned["tensors"], self._scheme, planned["ignore"])
        item.place.mkdir()
        item.tell("quantizing")
        is_whole = planned["name"] == WHOLE
        if is_whole:
            config = self._whole(item, weights)
        else:
            target = item.place / planned["name"]
            config = quant_files.quantize_file(weights, target, self._options.device, item.check_stop)
        item.tell("checking")
        for path in paths:
            if digest_of(path, item.check_stop) != planned["digests"][path.name]:
                raise location.changed(path)
        written = sorted(item.place.glob("*.safetensors"))
        tensors = quant_files.measure_errors(weights, written, config, item.check_stop)
        report: PartReport = {
            "files": {path.name: describe(path) for path in written},
            "quantization_config": config,
            "source_bytes": item.shard.tokens,
            "scheme": self._scheme.name,
            "ignore": planned["ignore"],
            "method": "whole" if is_whole else "files",
            "rounding": self._options.rounding,
            "seconds": round(time.monotonic() - began, 3),
            "llmcompressor": metadata.version("llmcompressor"),
            "tensors": tensors,
        }
        write_json(item.place / REPORT, report)
        size = sum(facts["bytes"] for facts in report["files"].values())
        return {"bytes": size, "source_bytes": item.shard.tokens}

    def _whole(self, item: Item, weights: Weights) -> Mapping[str, Any]:
        texts = self._run.path / CALIBRATION
        job = quant_files.Oneshot(
            source=item.shard.source,
            dtype=TYPES[_type_of(weights)],
            scheme=self._scheme.name,
            ignore=list(weights.ignore),
            rounding=self._options.rounding,
            calibration=str(texts) if texts.is_file() else None,
        )
        config = quant_files.quantize_model(job, item.place, item.kept, item.check_stop)
        for path in item.place.iterdir():  # the source's own are taken
            if path.suffix != ".safetensors":
                path.unlink()
        return config


create = Quantize


def by_file(tensors: Sequence[Tensor], scheme: Scheme) -> dict[str, list[Tensor]]:
    """The tensors of each shard, by its file. Weights that share a scale go into the file of the first of them."""
    place = {tensor.name: tensor.path.name for tensor in tensors}
    first = {other: name for name in place for other in schemes.partners(name, scheme) if other in place}
    groups: dict[str, list[Tensor]] = {file: [] for file in place.values()}
    for tensor in tensors:
        groups[place[first.get(tensor.name, tensor.name)]].append(tensor)
    return {file: some for file, some in groups.items() if some}  # all of a file's tensors may have gone to others


def plan_items(
    groups: Mapping[str, Sequence[Tensor]], source: Path, ignore: list[str], digests: Mapping[Path, str]
) -> Iterator[PlannedItem]:
    """An item of the plan for each group of tensors, with the files that hold them."""
    for name, tensors in groups.items():
        paths = sorted(digests if name == WHOLE else {tensor.path for tensor in tensors})
        of_files, names = {path.name: digests[path] for path in paths}, [tensor.name for tensor in tensors]
        item = QuantizeItem(name=name, files=[*of_files], tensors=names, ignore=ignore, digests=of_files)
        yield PlannedItem(dict(item), source, sum(tensor.size for tensor in tensors))


def _write_calibration(recipe: Recipe, folder: Path, watch: PlanWatch, notes: Counter[str]) -> None:
    """The texts that the model is run on, as tokens, into the run. Raises HalaError where there are none."""
    options: Calibration = recipe.task.calibration
    target = folder / CALIBRATION
    with within("task.calibration"):
        bad = BadRows(options.bad_rows, notes, folder, most=1)
        ids = quant_files.samples(recipe.model, options, target.parent, watch, bad)
    target.parent.mkdir(exist_ok=True)
    files.write_durably(target, json.dumps(ids).encode())


def _type_of(weights: Weights) -> str:
    """The type of the weights that are quantized: the model is loaded in it."""
    types = {
        tensor.dtype
        for path in weights.files
        for tensor in tensors_of(path)
        if schemes.is_quantized(tensor.name, weights.ignore)
    }
    if len(types) > 1:
        raise HalaError(f"weights of several types, {', '.join(sorted(types))}, cannot be loaded as one model")
    return types.pop()
