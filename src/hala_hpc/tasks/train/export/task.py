"""Checkpoints of a training as models that anybody loads, to choose among them: a shard is one checkpoint.

The training need not have ended. Its last checkpoint gives the model that the training itself exported.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hala_hpc.config.compose import thaw
from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Model, Recipe, TaskOptions
from hala_hpc.data.chat import templates
from hala_hpc.data.cut import Cut, Watch
from hala_hpc.models import check, location
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.manifest import Facts, Manifest
from hala_hpc.run.verify import CheckShard
from hala_hpc.tasks.train import card, paths
from hala_hpc.tasks.train import task as train
from hala_hpc.tasks.train.checkpoint import checkpoints, export, zero
from hala_hpc.tasks.train.checkpoint.checkpoints import Saved
from hala_hpc.tasks.train.prepare import task as prepare
from hala_hpc.worker import registry
from hala_hpc.worker.items.task import Item, Planned
from hala_hpc.worker.items.task import cut as planned
from hala_hpc.worker.task import ITEMS


@dataclass
class Options(TaskOptions):
    """The recipe's ``task:`` section for ``kind: export``. The training is the recipe's ``model``: its run."""

    kind: str = "export"
    steps: list[int] = field(default_factory=list)  # empty: every checkpoint that is there


class Export:
    """See the module."""

    stage, loop, suffix = "work", ITEMS, ""

    def __init__(self, recipe: Recipe) -> None:
        self._run, self._steps = Path(recipe.model.name), list(recipe.task.steps)
        if not recipe.model.name:
            raise HalaError(
                "model.name is missing: the run of the training", "the run of a training, for example ../../runs/sft"
            )

    def plan(self, folder: Path, watch: Watch) -> Cut:
        """Raises HalaError for a run that is no training's, and for steps without a complete checkpoint."""
        del folder, watch
        trained = _trained(self._run)
        templates.model_config(trained.model)
        if any((path := Path(trained.model.name)).glob("*.safetensors*")):
            location.weights(path)
        found = {saved.step: saved for saved in checkpoints.complete(self._run / paths.CHECKPOINTS)}
        if not found:
            raise HalaError(f"{self._run}: no complete checkpoint yet", "task.save.steps and .keep of the training")
        if missing := set(self._steps) - found.keys():
            raise HalaError(
                f"task.steps: {self._run.name} has no checkpoint after step {min(missing)}",
                f"it has those after {', '.join(map(str, sorted(found)))}; the training's task.save.keep keeps more",
            )
        steps = sorted(set(self._steps) or found)
        width = len(str(steps[-1]))
        items = [
            Planned(
                {"name": f"step-{step:0{width}}", "run": str(self._run), "checkpoint": _told(found[step])}, self._run
            )
            for step in steps
        ]
        source = {"path": str(self._run), "original": str(self._run), "rows": len(items), "bytes": 0}
        return planned("export", "checkpoints", items, [source])

    def checker(self, facts: Facts) -> CheckShard:
        del facts
        return check.check_model

    def open(self, run: RunDirectory, plan: Manifest) -> "Exporting":
        del run, plan
        return Exporting()

    def finish(self, run: RunDirectory, plan: Manifest) -> None:
        """Each model stands by itself: nothing is left to do."""


class Exporting:
    """The worker's side: nothing is kept from checkpoint to checkpoint."""

    def do(self, item: Item) -> dict[str, Any]:
        """Raises HalaError where the checkpoint is gone, or what comes of it is not sound."""
        run, asked = Path(item.asked["run"]), item.asked["checkpoint"]
        there = checkpoints.complete(run / paths.CHECKPOINTS)
        saved = next((one for one in there if _told(one) == asked), None)
        if saved is None:
            raise HalaError(
                f"{run}: its checkpoint after step {asked['step']} is gone", "the training's task.save.keep keeps more"
            )
        item.tell("checking the checkpoint")
        if wrong := checkpoints.faults_of(saved.path):
            raise HalaError(f"{saved.path} is damaged: {'; '.join(wrong[:3])}", "export another step")
        trained = _trained(run)
        kept_tokenizer = train.prepare_runs(run, trained)[0] / prepare.TOKENIZER
        item.tell("reading the checkpoint")
        model, state = zero.consolidated(saved, trained.model, item.check_stop)
        item.tell("writing the model")
        tokenizer = templates.load_tokenizer(Model(name=str(kept_tokenizer)))
        export.save(model, state, tokenizer, item.place, card.provenance(run, saved.step))
        item.tell("loading it once more")
        export.check(item.place, None, check_stop=item.check_stop)
        return {"step": saved.step}

    def close(self) -> None:
        """There is nothing to let go of."""


def create(recipe: Recipe) -> Export:
    """The task of a recipe. Raises HalaError for options that cannot be."""
    return Export(recipe)


def _trained(run: Path) -> Recipe:
    """The frozen recipe of a training. Raises HalaError where there is none."""
    if not (run / "recipe.yaml").is_file():
        raise HalaError(
            f"model.name: {run} is no run", "the folder of a training's run is wanted: `hala runs` lists them"
        )
    recipe = thaw(run / "recipe.yaml", registry.options_of)
    if recipe.task.kind != "train":
        raise HalaError(
            f"model.name: {run} is a run of kind {recipe.task.kind}", "the folder of a training's run is wanted"
        )
    return recipe


def _told(saved: Saved) -> dict[str, Any]:
    """What its marker says: another checkpoint after the same step was made in another time."""
    return {key: value for key, value in asdict(saved).items() if key != "path"}
