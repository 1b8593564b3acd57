"""Train a model on a mixture of datasets. One shard: the finished model. Tokens come from runs of kind ``prepare``."""

import hashlib
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hala_hpc.config.compose import freeze
from hala_hpc.config.errors import HalaError, within
from hala_hpc.config.schema import Data, Recipe, Site
from hala_hpc.data import templates
from hala_hpc.data.cut import Cut, PlanWatch
from hala_hpc.data.files import sources as data_files
from hala_hpc.models import location
from hala_hpc.models.folder import check_model
from hala_hpc.run import manifest
from hala_hpc.run.manifest import Facts, Shard
from hala_hpc.run.verify import CheckShard
from hala_hpc.tasks.train import metrics
from hala_hpc.tasks.train.options import KERNEL, Options, attention_of, can_pack, layout
from hala_hpc.tasks.train.prepare import expected
from hala_hpc.tasks.train.prepare import task as prepare
from hala_hpc.worker.task import Task

NAME = re.compile(r"[\w-]{1,60}")
"""The name of a dataset in the mixture: it becomes a folder."""


class Train(Task):
    """A training. What can be refused is refused here, before a GPU is allocated."""

    environment = "work"
    loop = "hala_hpc.tasks.train.launch.launcher"
    suffix = ""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        options: Options = recipe.task
        if not recipe.model.name:
            raise HalaError("model.name: nothing to train", "a folder or a name on the hub")
        if not options.datasets:
            raise HalaError("task.datasets: nothing to train on", "for example task.datasets.mine.path=data.jsonl")
        for name, dataset in options.datasets.items():
            if not NAME.fullmatch(name):
                raise HalaError(f"task.datasets: {name!r} cannot be a dataset's name", "letters, digits, - and _")
            if dataset.weight <= 0:
                raise HalaError(f"task.datasets.{name}.weight: must be more than 0")
        for key in ("sequence_length", "epochs", "tokens"):
            if (value := getattr(options, key)) is not None and value <= 0:
                raise HalaError(f"task.{key}: must be more than 0")
        metrics.check(options.report_to)
        if len(options.optimizer.betas) != 2:
            raise HalaError("task.optimizer.betas: must be two numbers", "for example [0.9, 0.95]")
        layout(options, recipe.site.slurm.nodes_per_worker * ranks_per_node(recipe.site))

    def plan(self, folder: Path, watch: PlanWatch) -> Cut:
        """Plan the preparation of each dataset too; those that another run shares and has planned are left alone."""
        recipe, options = self._recipe, self._recipe.task
        config = templates.model_config(recipe.model)
        if any((path := Path(recipe.model.name)).glob("*.safetensors*")):
            location.weights(path)  # cut short, or not all there
        attention_of(config, options.attention)
        if options.packing and not can_pack(config, recipe.site.slurm.gpus_per_worker > 0, has_kernel=True):
            raise HalaError(
                f"task.packing: {config.get('model_type')} mixes neighbouring tokens in convolutions, and cannot keep "
                f"packed documents apart without a GPU and {KERNEL}",
                "leave task.packing out: then sequences of like length share a batch",
            )
        tokenizer = templates.load_tokenizer(recipe.model, options.chat_template)
        templates.check(tokenizer, {dataset.kind for dataset in options.datasets.values()})
        targets = zip(options.datasets, prepare_runs(folder, recipe), strict=True)
        plans = {name: self._plan_dataset(name, target, watch) for name, target in targets}
        digests = (part for name, plan in plans.items() for part in (name, *map(str, plan.column("digest"))))
        digest = hashlib.blake2b("".join(digests).encode(), digest_size=16).hexdigest()
        facts = {name: plan.facts for name, plan in plans.items()}
        rows = sum(part.rows for part in facts.values())
        characters = sum(part.characters for part in facts.values())
        tokens = sum(expected.of(part).tokens for part in facts.values())
        sources = [source | {"dataset": name} for name, part in facts.items() for source in part.sources]
        notes = {f"{note} ({name})": count for name, part in facts.items() for note, count in part.notes.items()}
        shard = Shard(0, "train", recipe.model.name, 0, 0, 1, characters, tokens, digest)
        return Cut([shard], Facts("", 1, rows, characters, tokens, sources, unit="models", notes=notes))

    def checker(self, facts: Facts) -> CheckShard:
        del facts
        return check_model

    def hub_needs(self) -> list[Data]:
        """The mixture."""
        return list(self._recipe.task.datasets.values())

    def _plan_dataset(self, name: str, target: Path, watch: PlanWatch) -> manifest.Manifest:
        if self._recipe.task.prepared:
            target.parent.mkdir(exist_ok=True)
            target.symlink_to(_shared(self._recipe, name))
            target = target.readlink()
        if not target.exists():
            nested = prepare.recipe_for(self._recipe, name, self._recipe.task.datasets[name])

            def fill(folder: Path) -> tuple[list[Shard], Facts]:
                cut = prepare.create(nested).plan(folder, watch)
                return cut.shards, cut.facts

            with within(f"task.datasets.{name}"):
                manifest.create(target, freeze(nested), fill)
        return manifest.read(target / "manifest.parquet")


create = Train


def ranks_per_node(site: Site) -> int:
    """Processes of a training on each node: one a GPU, unless the site says otherwise."""
    return site.slurm.ranks_per_node or max(1, site.slurm.gpus_per_worker)


def prepare_runs(run: Path, recipe: Recipe) -> list[Path]:
    """The runs that hold each dataset's tokens, in the order of the recipe; elsewhere where trainings share them."""
    places = [run / "prepare" / name for name in recipe.task.datasets]
    return [place.readlink() if place.is_symlink() else place for place in places]


def _shared(recipe: Recipe, name: str) -> Path:
    """Where trainings share a dataset's tokens: the name is a digest of what they are made from, contents included."""
    nested = prepare.recipe_for(recipe, name, recipe.task.datasets[name])
    parts: list[Any] = [asdict(nested.task), asdict(nested.data), asdict(nested.model)]
    for section in parts:
        section.pop("licence", None)  # it changes no token
    read = data_files.resolve(nested.data)
    read += [Path(nested.task.chat_template)] if nested.task.chat_template else []
    read += sorted(Path(nested.model.tokenizer or nested.model.name).glob("tokenizer*"))
    parts += [(str(file), stat.st_size, stat.st_mtime_ns) for file in read for stat in [file.stat()]]
    # A model on the hub has no file above: its tokenizer counts as it is now in the cache, whatever its name.
    tokenizer = templates.load_tokenizer(recipe.model)
    parts += [tokenizer.backend_tokenizer.to_str(), str(tokenizer.chat_template)]
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=6).hexdigest()
    return Path(recipe.task.prepared) / f"{name}-{digest}"
