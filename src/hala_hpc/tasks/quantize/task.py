"""Quantize a model by LLM Compressor: a shard is one of its weights files, or all where the model has to run."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Data, Recipe, TaskOptions
from hala_hpc.data.bad_rows import BadRows
from hala_hpc.data.chat.documents import Kind
from hala_hpc.data.cut import Cut, Watch
from hala_hpc.models import check, location
from hala_hpc.models.location import digest_of_weights
from hala_hpc.models.malloc import free_at_once
from hala_hpc.models.safetensors_file import Tensor, tensors_of
from hala_hpc.run import files
from hala_hpc.run.digests import digest_of
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.manifest import Facts, Manifest, Shard
from hala_hpc.run.verify import FINAL, CheckShard, ShardReport
from hala_hpc.tasks.quantize import calibration, errors, schemes, whole
from hala_hpc.tasks.quantize import files as quant_files
from hala_hpc.tasks.quantize import folder as quant_folder
from hala_hpc.tasks.quantize.schemes import Scheme
from hala_hpc.worker.items.task import Item, Planned
from hala_hpc.worker.items.task import cut as planned
from hala_hpc.worker.task import ITEMS

WHOLE: Final = "model"
"""Name of the only shard where the whole model is quantized at once."""
CALIBRATION: Final = "input/calibration.json"
"""In the run: the texts that the model is run on, as tokens."""
TYPES: Final = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
FREED_BYTES: Final = 1 << 24
"""Smaller than what a weight takes while it is quantized (see ``free_at_once``)."""
READERS: Final = 8
"""Files hashed at once while a run is planned."""


@dataclass
class Calibration(Data):
    """Texts that the model is run on, for schemes and methods that need it: the first ``samples`` rows of a dataset."""

    kind: Kind = "chat"
    samples: int = 512  # as LLM Compressor's examples have it
    length: int = 2048  # tokens of each at most, as there


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


class Quantize:
    """See the module. What cannot be quantized is refused when the run is planned."""

    stage = "work"
    loop = ITEMS
    suffix = ""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        options: Options = recipe.task
        self._scheme = schemes.find(options.scheme)
        if not recipe.model.name:
            raise HalaError("model.name: nothing to quantize", "a folder, a finished run or a name on the hub")
        needs_texts = self._scheme.calibrated or options.rounding == "gptq"
        if needs_texts and options.method == "files":
            raise HalaError(
                f"task.method: {self._why(options)} has to see the model run",
                "task.method=whole, which loads all of it",
            )
        self._method = "whole" if needs_texts else options.method.replace("auto", "files")
        given = options.calibration
        if needs_texts and not (given.path or given.hub):
            raise HalaError(
                f"task.calibration: {self._why(options)} needs texts to run the model on",
                "task.calibration.path=FILE or task.calibration.hub=ORG/NAME",
            )
        if not needs_texts and (given.path or given.hub):
            raise HalaError(f"task.calibration: {self._scheme.name} needs no texts", "leave it out")
        for key in ("samples", "length"):
            if getattr(given, key) < 1:
                raise HalaError(f"task.calibration.{key}: must be at least 1")

    def plan(self, folder: Path, watch: Watch) -> Cut:
        """Raises HalaError for a model that is quantized already, not whole, or does not fit the scheme."""
        source = source_of(self._recipe)
        config = location.config(source)
        if "quantization_config" in config or "quantization_config" in config.get("text_config", {}):
            raise HalaError(
                f"model.name: {self._recipe.model.name} is quantized already", "name the one it was made from"
            )
        check.require_files("model.name", source)
        stored = {path: tensors_of(path) for path in location.weights(source)}
        ignore = self._ignored(config)
        self._refuse(stored, ignore)
        notes: Counter[str] = Counter()
        if self._scheme.calibrated or self._recipe.task.rounding == "gptq":
            _write_calibration(self._recipe, folder, watch, notes)
        watch.say("reading weights")
        with ThreadPoolExecutor(READERS) as threads:
            digests = {
                path.name: found for path, found in zip(stored, threads.map(digest_of_weights, stored), strict=True)
            }
        items = self._whole(stored, config) if self._method == "whole" else _by_file(stored, self._scheme)
        parts = [_planned(item | {"ignore": ignore, "digests": digests}, source, stored) for item in items]
        read = [{"path": str(path), "original": path.name, "rows": 1, "bytes": path.stat().st_size} for path in stored]
        cut = planned("quantize", "files", parts, read, assembled=True)
        return replace(cut, facts=replace(cut.facts, notes=dict(notes)))

    def checker(self, facts: Facts) -> CheckShard:
        def report(shard: Shard, path: Path) -> ShardReport:
            asked = facts.items[shard.id]
            problems = quant_folder.faults(path, schemes.expected(asked["tensors"], self._scheme, asked["ignore"]))
            final = path.parents[2] / "final"
            if shard.id == 0 and final.is_dir():
                problems += [f"{FINAL}{problem}" for problem in check.unsound(final)]
            return ShardReport(done=0 if problems else 1, problems=tuple(problems))

        return report

    def open(self, run: RunDirectory, plan: Manifest) -> "Quantizing":
        del plan
        return Quantizing(self, run, self._recipe.task)

    def finish(self, run: RunDirectory, plan: Manifest) -> None:
        """Put the whole model together in RUN/final."""
        shards = [run.shard_output(shard) for shard in range(len(plan))]
        with suppress(FileExistsError), files.whole_directory(run.final) as made:
            quant_folder.assemble(run.path, made, Path(plan[0].source), self._scheme, shards)

    @property
    def scheme(self) -> Scheme:
        return self._scheme

    def _ignored(self, config: dict[str, Any]) -> list[str]:
        given: list[str] | None = self._recipe.task.ignore
        return schemes.ignored(config) if given is None else list(given)

    def _refuse(self, stored: dict[Path, list[Tensor]], ignore: list[str]) -> None:
        tensors = [tensor for found in stored.values() for tensor in found]
        if misfits := schemes.misfits(tensors, self._scheme, ignore):
            more = f" and {len(misfits) - 3} more" if len(misfits) > 3 else ""
            raise HalaError(
                f"task.scheme: {self._scheme.name} does not fit {'; '.join(misfits[:3])}{more}",
                "another scheme, or name such modules in task.ignore",
            )
        if not any(schemes.is_quantized(tensor.name, ignore) for tensor in tensors):
            raise HalaError("task.ignore: it leaves nothing to quantize")

    def _whole(self, stored: dict[Path, list[Tensor]], config: dict[str, Any]) -> list[dict[str, Any]]:
        names = [tensor.name for found in stored.values() for tensor in found]
        if config.get("tie_word_embeddings") and any(name.endswith("embed_tokens.weight") for name in names):
            names = [name for name in names if name != "lm_head.weight"]  # stored twice; a loaded model saves it once
        return [{"name": WHOLE, "files": [path.name for path in stored], "tensors": names}]

    def _why(self, options: Options) -> str:
        return self._scheme.name if self._scheme.calibrated else f"rounding by {options.rounding}"


class Quantizing:
    """One worker's work: nothing is kept from file to file."""

    def __init__(self, task: Quantize, run: RunDirectory, options: Options) -> None:
        self._task, self._run, self._options = task, run, options

    def do(self, item: Item) -> dict[str, Any]:
        """Quantize, then check the result and that the source is the one that was planned with."""
        began = time.monotonic()
        free_at_once(FREED_BYTES)
        asked, source = item.asked, Path(item.shard.source)
        item.place.mkdir()
        item.tell("quantizing")
        is_whole = asked["name"] == WHOLE
        config = self._all(item, source) if is_whole else self._file(item, source)
        item.tell("checking")
        for name in asked["files"]:
            if digest_of(source / name, item.check_stop) != asked["digests"][name]:
                raise HalaError(f"{source / name} changed since the run was planned", "plan a new run")
        read, written = [source / name for name in asked["files"]], sorted(item.place.glob("*.safetensors"))
        what = (asked["tensors"], self._task.scheme, asked["ignore"])
        reports = errors.compare(read, written, *what, config, item.check_stop)
        if faults := [f"{report.name}: {report.problem}" for report in reports if report.problem]:
            raise RuntimeError(f"{len(faults)} tensors are not what they should be: {'; '.join(faults[:3])}")
        numbers = {
            "source_bytes": item.shard.tokens,
            "scheme": self._task.scheme.name,
            "ignore": asked["ignore"],
            "method": "whole" if is_whole else "files",
            "rounding": self._options.rounding,
            "seconds": round(time.monotonic() - began, 3),
            "llmcompressor": metadata.version("llmcompressor"),
        }
        report = quant_folder.write_report(item.place, reports, config, numbers)
        return {
            "bytes": sum(each["bytes"] for each in report["files"].values()),
            "source_bytes": item.shard.tokens,
        }

    def close(self) -> None:
        """Nothing is held."""

    def _file(self, item: Item, source: Path) -> dict[str, Any]:
        asked = item.asked
        return quant_files.quantize_file(
            [source / name for name in asked["files"]],
            asked["tensors"],
            item.place / asked["name"],
            self._task.scheme,
            asked["ignore"],
            self._options.device or _device(),
            item.check_stop,
        )

    def _all(self, item: Item, source: Path) -> dict[str, Any]:
        texts = self._run.path / CALIBRATION
        asked = {
            "source": str(source),
            "dtype": TYPES[_type_of(source, item.asked)],
            "scheme": self._task.scheme.name,
            "ignore": item.asked["ignore"],
            "rounding": self._options.rounding,
            "calibration": str(texts) if texts.is_file() else None,
        }
        config = whole.quantize_model(asked, item.place, item.kept, item.check_stop)
        for path in item.place.iterdir():  # the source's own are taken
            if path.suffix != ".safetensors":
                path.unlink()
        return config


def create(recipe: Recipe) -> Quantize:
    """The task of a recipe. Raises HalaError for options that cannot be."""
    return Quantize(recipe)


def source_of(recipe: Recipe) -> Path:
    """The folder of the model to quantize. Raises HalaError where there is none, or more than one."""
    found = location.locate(recipe.model.name, recipe.model.revision)
    if len(found) != 1:
        raise HalaError(f"model.name: {recipe.model.name} holds {len(found)} models: {', '.join(found)}", "name one")
    return next(iter(found.values()))


def _by_file(stored: dict[Path, list[Tensor]], scheme: Scheme) -> Iterator[dict[str, Any]]:
    """An item a file. Weights that share a scale go into the file of the first of them."""
    place = {tensor.name: path for path, found in stored.items() for tensor in found}
    first = {other: name for name in place for other in schemes.partners(name, scheme) if other in place}
    for path in stored:
        names = [name for name in place if place[first.get(name, name)] == path]
        if names:  # else all of its tensors have gone to others
            yield {"name": path.name, "files": sorted({place[name].name for name in names}), "tensors": names}


def _planned(item: dict[str, Any], source: Path, stored: dict[Path, list[Tensor]]) -> Planned:
    sizes = {tensor.name: tensor.end - tensor.begin for found in stored.values() for tensor in found}
    digests = {name: item["digests"][name] for name in item["files"]}
    return Planned(item | {"digests": digests}, source, sum(sizes[name] for name in item["tensors"]))


def _write_calibration(recipe: Recipe, folder: Path, watch: Watch, notes: Counter[str]) -> None:
    """The texts that the model is run on, as tokens, into the run. Raises HalaError where there are none."""
    given: Calibration = recipe.task.calibration
    target = folder / CALIBRATION
    try:
        bad = BadRows(given.bad_rows, notes, folder, most=1)
        asked = (given.kind, given.samples, given.length)
        found = calibration.samples(recipe.model, given, *asked, target.parent, watch, bad)
    except HalaError as error:
        raise HalaError(f"task.calibration: {error.message}", error.hint) from error
    target.parent.mkdir(exist_ok=True)
    files.write_durably(target, json.dumps(found).encode())


def _type_of(source: Path, asked: dict[str, Any]) -> str:
    """Of the weights that are quantized: the model is loaded in it."""
    found = {
        tensor.dtype
        for name in asked["files"]
        for tensor in tensors_of(source / name)
        if schemes.is_quantized(tensor.name, asked["ignore"])
    }
    if len(found) > 1:
        raise HalaError(f"weights of several types, {', '.join(sorted(found))}, cannot be loaded as one model")
    return found.pop()


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
