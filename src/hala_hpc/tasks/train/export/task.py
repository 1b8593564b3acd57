"""Checkpoints of a training as models that anybody loads, to choose among them: a shard is one checkpoint.

The training need not have ended. Its last checkpoint gives the model that the training itself exported.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, cast

from hala_hpc.config.compose import thaw
from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Recipe, TaskOptions
from hala_hpc.data import templates
from hala_hpc.data.cut import Cut, PlanWatch
from hala_hpc.models import location
from hala_hpc.models.folder import check_model
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.manifest import Facts, Manifest
from hala_hpc.run.verify import CheckShard
from hala_hpc.tasks.train import card, checkpoints, paths, zero
from hala_hpc.tasks.train import task as train
from hala_hpc.tasks.train.export import model as export
from hala_hpc.tasks.train.prepare import task as prepare
from hala_hpc.worker import registry
from hala_hpc.worker.items import Item, ItemTask, ItemWork, PlannedItem, cut_items


@dataclass
class Options(TaskOptions):
    """The recipe's ``task:`` section for ``kind: export``. The training is the recipe's ``model``: its run."""

    kind: str = "export"
    steps: list[int] = field(default_factory=list)  # empty: every checkpoint that is there


class ExportItem(TypedDict):
    """A shard's entry in the plan: a checkpoint of a training's run, by its marker."""

    name: str
    run: str
    checkpoint: dict[str, int | float]


class Export(ItemTask):
    """See the module."""

    environment = "work"
    takes_run = True

    def __init__(self, recipe: Recipe) -> None:
        self._run, self._steps = Path(recipe.model.name), list(recipe.task.steps)
        if not recipe.model.name:
            raise HalaError("model.name is missing: the run of the training", "for example run:sft")

    def plan(self, folder: Path, watch: PlanWatch) -> Cut:
        """Raises HalaError for a run that is not a training's, and for steps without a complete checkpoint."""
        del folder, watch
        trained = _trained(self._run)
        templates.model_config(trained.model)
        if any((path := Path(trained.model.name)).glob("*.safetensors*")):
            location.weights(path)
        by_step = {saved.step: saved for saved in checkpoints.complete(self._run / paths.CHECKPOINTS)}
        if not by_step:
            raise HalaError(f"{self._run}: no complete checkpoint yet", "task.save.steps and .keep of the training")
        if missing := set(self._steps) - by_step.keys():
            raise HalaError(
                f"task.steps: {self._run.name} has no checkpoint after step {min(missing)}",
                f"it has those after {', '.join(map(str, sorted(by_step)))}; the training's task.save.keep keeps more",
            )
        steps = sorted(set(self._steps) or by_step)
        width = len(str(steps[-1]))
        items = []
        for step in steps:
            entry = ExportItem(name=f"step-{step:0{width}}", run=str(self._run), checkpoint=by_step[step].marker)
            items.append(PlannedItem(dict(entry), self._run))
        source = {"path": str(self._run), "original": str(self._run), "rows": len(items), "bytes": 0}
        return cut_items("export", "checkpoints", items, [source])

    def checker(self, facts: Facts) -> CheckShard:
        del facts
        return check_model

    def open(self, run: RunDirectory, plan: Manifest) -> "Exporting":
        del run, plan
        return Exporting()


class Exporting(ItemWork):
    """The worker's side: nothing is kept from checkpoint to checkpoint."""

    def do(self, item: Item) -> dict[str, Any]:
        """Raises HalaError where the checkpoint is gone, or the model made of it is not sound."""
        planned = cast(ExportItem, item.entry)
        run, marker = Path(planned["run"]), planned["checkpoint"]
        complete = checkpoints.complete(run / paths.CHECKPOINTS)
        saved = next((saved for saved in complete if saved.marker == marker), None)
        if saved is None:
            raise HalaError(
                f"{run}: its checkpoint after step {marker['step']} is gone", "the training's task.save.keep keeps more"
            )
        item.tell("checking the checkpoint")
        if faults := checkpoints.faults_of(saved.path):
            raise HalaError(f"{saved.path} is damaged: {'; '.join(faults[:3])}", "export another step")
        trained = _trained(run)
        item.tell("reading the checkpoint")
        model, state = zero.consolidated(saved, trained.model, item.check_stop)
        item.tell("writing the model")
        tokenizer = prepare.load_tokenizer(train.prepare_runs(run, trained)[0])
        export.save(model, state, tokenizer, item.place, card.provenance(run, saved.step))
        item.tell("loading it once more")
        export.check(item.place, None, check_stop=item.check_stop)
        return {"step": saved.step}


create = Export


def _trained(run: Path) -> Recipe:
    """The frozen recipe of a training. Raises HalaError where there is none."""
    if not (run / "recipe.yaml").is_file():
        raise HalaError(
            f"model.name: {run} is not a run", "give the folder of a training's run: `hala runs` lists them"
        )
    recipe = thaw(run / "recipe.yaml", registry.options_of)
    if recipe.task.kind != "train":
        raise HalaError(f"model.name: {run} is a run of kind {recipe.task.kind}", "give the folder of a training's run")
    return recipe
