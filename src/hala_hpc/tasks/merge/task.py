"""Merge models, by mergekit: a shard is one cell of a grid over models, filters and parameters, such as slerp's t."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, cast

from hala_hpc.config.errors import HalaError, refuse_odd_name, within
from hala_hpc.config.schema import Model, NamedModel, Recipe, TaskOptions
from hala_hpc.data.cut import Cut, PlanWatch
from hala_hpc.models import location
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.manifest import Facts, Manifest
from hala_hpc.run.verify import CheckShard
from hala_hpc.tasks.merge import inputs as merge_inputs
from hala_hpc.tasks.merge import merging, methods
from hala_hpc.tasks.merge.inputs import BASE, Input, MergeItem, ModelEntry, Vocabulary
from hala_hpc.tasks.merge.merging import MergeJob, cosines, merge
from hala_hpc.worker.items import Item, ItemTask, ItemWork, PlannedItem, cut_items

PAPER_T: Final = 0.5
Type = Literal["bfloat16", "float16", "float32"]


@dataclass
class MergedModel(NamedModel):
    """A model that is merged into the base. ``parameters``: mergekit's, for this model alone (weight, density, ...)."""

    licence: str | None = None  # as the hub names it, for publishing; null: what its card says
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass
class Options(TaskOptions):
    """The recipe's ``task:`` section for ``kind: merge``. The base is the recipe's ``model``.

    Each combination of a model (where the method takes one at a time), a set of filters, and values of ``t`` and
    ``grid`` is a merge of its own.
    """

    kind: str = "merge"
    method: str = "slerp"  # paper
    models: dict[str, MergedModel] = field(default_factory=dict)  # a label for each
    t: list[float] = field(default_factory=list)  # for methods that have it; neither t nor filters: 0.5 (paper)
    filters: dict[str, Any] = field(default_factory=dict)  # label: t as mergekit's list of {filter, value}
    grid: dict[str, Any] = field(default_factory=dict)  # other parameters to try: name: list of values
    parameters: dict[str, Any] = field(default_factory=dict)  # mergekit's, for all models and merges, as they stand
    base_parameters: dict[str, Any] = field(default_factory=dict)  # the base's, for methods that mix it like the others
    base_as_model: bool = False  # for methods whose base is optional: treat the recipe's model like the others
    dtype: Type = "bfloat16"  # of the merged weights
    compute_dtype: Type | None = None  # null: float32
    vocabulary: Literal["same", "shared"] = "same"  # shared: padded or added to at its end; see docs/models.md
    files_from: str | None = None  # label of the model whose tokenizer, template and generation config are kept
    device: str = "cpu"  # or cuda
    seed: int = 0  # for methods that draw at random


class Merge(ItemTask):
    """See the module. Raises HalaError for invalid options; models that cannot be merged are refused by ``plan``."""

    environment = "work"

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        options: Options = recipe.task
        self._method = methods.method_of(options.method)
        if not recipe.model.name:
            raise HalaError("model.name: nothing to merge into", "a folder, a finished run or a name on the hub")
        if recipe.model.tokenizer:
            raise HalaError("model.tokenizer: a merge has the tokenizer of one of its models", "see task.files_from")
        for label, source in options.models.items():
            refuse_odd_name("task.models", label, "a label")
            if label == BASE:
                raise HalaError(f"task.models: '{BASE}' is what model.name is called", "choose another label")
            if not source.name:
                raise HalaError(f"task.models.{label}.name: no model", "a folder, a finished run or a name on the hub")
        needs_base = self._method.base == "required"
        self._has_base = needs_base or (self._method.base == "optional" and not options.base_as_model)
        _check_parameters(options, self._method, self._has_base)
        weights = options.t or ([PAPER_T] if "t" in self._method.known() and not options.filters else [])
        self._combinations = list(methods.combinations(weights, options.filters, options.grid, options.parameters))

    def plan(self, folder: Path, watch: PlanWatch) -> Cut:
        """Raises HalaError for quantized models, for unlike ones, and for files that are missing or cut short."""
        del folder
        models = self._located()
        inputs = {label: merge_inputs.read(label, Path(model["folder"])) for label, model in models.items()}
        for label, model in inputs.items():
            if label != BASE:
                merge_inputs.refuse_unlike(inputs[BASE], model, self._recipe.task.vocabulary == "same")
        for label, entry in models.items():
            watch.say(f"reading {label}")
            entry["digest"] = location.sound_digest(Path(entry["folder"]), watch.weigh)
        items = []
        for item in self._items(models, _donor(self._recipe.task.files_from, inputs)):
            mixed = {label: inputs[label] for label in item["models"]}
            if self._recipe.task.vocabulary == "shared":
                shared = merge_inputs.shared_vocabulary(mixed, item["files_from"])
                item |= {"vocabulary": asdict(shared)} if shared else {}
            *_, last = mixed.values()
            items.append(PlannedItem(dict(item), last.folder, sum(model.bytes() for model in mixed.values())))
        sources = [
            {"path": str(model.folder), "original": label, "rows": len(model.tensors), "bytes": model.bytes()}
            for label, model in inputs.items()
        ]
        return cut_items("merge", "merges", items, sources)

    def hub_needs(self) -> list[Model]:
        """The models besides the base, which is the recipe's model."""
        return [Model(model.name, model.revision) for model in self._recipe.task.models.values()]

    def checker(self, facts: Facts) -> CheckShard:
        del facts
        return merging.check_merge

    def open(self, run: RunDirectory, plan: Manifest) -> "Merging":
        del plan
        return Merging(run.path)

    def _located(self) -> dict[str, ModelEntry]:
        """The models by label, without digests; a run that holds several models gives several labels."""
        named = {BASE: self._recipe.model} | self._recipe.task.models
        with within("model.name"):
            base = location.locate_one(named[BASE].name, named[BASE].revision)
        located = {BASE: (BASE, base)} | location.labelled(self._recipe.task.models)
        entries: dict[str, ModelEntry] = {}
        for label, (key, folder) in located.items():
            if any(entry["folder"] == str(folder) for entry in entries.values()):
                raise HalaError(f"task.models: {folder} is given twice", "a model merged with itself is itself")
            name, revision = named[key].name, named[key].revision
            entries[label] = ModelEntry(folder=str(folder), name=name, revision=revision, of=key, digest="")
        return entries

    def _items(self, models: Mapping[str, ModelEntry], donor: str) -> Iterator[MergeItem]:
        """The plan's entries, one merge each."""
        options: Options = self._recipe.task
        labels = [label for label in models if label != BASE]
        takes_one = methods.most_others(self._method, self._has_base) == 1
        groups = [[label] for label in labels] if takes_one and labels else [labels]
        for others, combination in itertools.product(groups, self._combinations):
            methods.check_count(options.method, self._method, len(others), self._has_base)
            parts = [*(others if len(groups) > 1 else []), *filter(None, [combination.name])]
            mixed = {label: models[label] for label in [BASE, *others]}
            yield {
                "name": "-".join(parts) or options.method,
                "method": options.method,
                "cell": {"model": others[0] if takes_one and others else None, **combination.varied},
                "models": mixed,
                "config": self._config(mixed, combination.parameters),
                "files_from": donor,
                "device": options.device,
                "seed": options.seed,
            }

    def _config(self, models: Mapping[str, ModelEntry], parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        """The configuration for mergekit, with labels in the place of models."""
        options: Options = self._recipe.task
        own = {key: source.parameters for key, source in options.models.items()} | {BASE: options.base_parameters}
        listed = [
            {"model": label} | ({"parameters": mine} if (mine := own[model["of"]]) else {})
            for label, model in models.items()
        ]
        return {
            "merge_method": options.method,
            **({"base_model": BASE} if self._has_base else {}),
            "models": listed,
            **({"parameters": parameters} if parameters else {}),
            "dtype": options.compute_dtype or (None if self._method.is_exact else "float32"),
            "out_dtype": options.dtype,
        }


class Merging(ItemWork):
    """The worker's side. What is known of a pair of models is kept from merge to merge."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._inputs: dict[str, Input] = {}
        self._cosines: dict[tuple[str, str], dict[str, float | None]] = {}

    def do(self, item: Item) -> dict[str, Any]:
        """Raises HalaError where a model changed since the plan, or mergekit refuses, or the result is not sound."""
        planned = cast(MergeItem, item.entry)
        inputs = {label: self._input(label, entry, item) for label, entry in planned["models"].items()}
        donor = inputs[planned["files_from"]]
        vocabulary = Vocabulary(**planned["vocabulary"]) if planned.get("vocabulary") else None
        if vocabulary is not None:
            folder = item.kept / "cut"
            inputs = {label: merge_inputs.cut(model, vocabulary, folder / label) for label, model in inputs.items()}
        base, others = inputs[BASE], {label: model for label, model in inputs.items() if label != BASE}
        shared = merge_inputs.tensors_to_merge(base, others)
        tensors = {name: merge_inputs.merged_shape(tensor, vocabulary) for name, tensor in shared.items()}
        config = dict(planned["config"])
        dtype = config.pop("out_dtype")
        item.place.mkdir()
        job = MergeJob(config, inputs, tensors, dtype, planned["device"], planned["seed"], donor, vocabulary)
        parameters = merge(job, item.place, item.check_stop, lambda text: item.tell(f"merging: {text}"))
        rows = vocabulary.rows if vocabulary is not None else None
        merging.copy_files(base.folder, donor.folder, dtype, item.place, rows)
        item.tell("comparing the models")
        alike = {label: self._alike(base, model, list(parameters), item) for label, model in others.items()}
        item.tell("checking")
        merged = {name: tensors[name] for name in parameters}
        if faults := list(itertools.islice(merging.faults(item.place, donor.folder, merged, item.check_stop), 8)):
            raise HalaError(f"the merged model is not sound: {'; '.join(faults)}")
        report = merging.report_of(planned, tensors, parameters, alike)
        merging.finish(self._run, item.place, report, item.check_stop)
        return dict(report["summary"])

    def _input(self, label: str, model: ModelEntry, item: Item) -> Input:
        """A model, the same as when the run was planned. Raises HalaError where it changed since."""
        if label not in self._inputs:
            folder = Path(model["folder"])
            item.tell(f"reading {label}")
            location.refuse_changed(folder, model["digest"], item.check_stop)
            self._inputs[label] = merge_inputs.read(label, folder)
        return self._inputs[label]

    def _alike(self, base: Input, other: Input, names: list[str], item: Item) -> dict[str, float | None]:
        pair = (base.label, other.label)
        if pair not in self._cosines:
            self._cosines[pair] = cosines(base, other, names, item.check_stop)
        return self._cosines[pair]


create = Merge


def _check_parameters(options: Options, method: methods.Method, has_base: bool) -> None:
    """Raises HalaError for parameters that the method does not have, and for those that it lacks."""
    name, known = options.method, method.known()
    if options.base_as_model and method.base != "optional":
        raise HalaError(f"task.base_as_model: the base of {name} is {method.base}", "leave it out")
    mixes_base = method.with_base or not has_base
    methods.check_parameters("task.parameters", options.parameters, known)
    methods.check_parameters("task.grid", options.grid, known)
    for label, source in options.models.items():
        methods.check_parameters(f"task.models.{label}.parameters", source.parameters, method.each)
    methods.check_parameters("task.base_parameters", options.base_parameters, method.each if mixes_base else ())
    if "t" in options.parameters or "t" in options.grid:
        raise HalaError("task: t is not among the other parameters", "give task.t, a list, or task.filters")
    if "t" not in known and (options.t or options.filters):
        raise HalaError(f"task.{'t' if options.t else 'filters'}: {name} has no t", "see task.parameters and task.grid")
    own = [source.parameters for source in options.models.values()] + [options.base_parameters] * mixes_base
    for key in method.needed:
        if key not in ("t", *options.parameters, *options.grid) and not all(key in parameters for parameters in own):
            raise HalaError(f"task.parameters.{key}: {name} needs it", f"or task.models.LABEL.parameters.{key}")


def _donor(label: str | None, inputs: Mapping[str, Input]) -> str:
    """The model that gives tokenizer, template and generation settings: the base, where it has a template."""
    if label is not None:
        if label not in inputs:
            raise HalaError(f"task.files_from: no model '{label}'", f"valid: {', '.join(inputs)}")
        return label
    has_template = (label for label, model in inputs.items() if merging.template_of(model.folder) is not None)
    return next(has_template, BASE)
