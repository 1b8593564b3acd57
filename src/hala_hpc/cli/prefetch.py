"""``hala prefetch``: what compute nodes cannot download."""

from pathlib import Path

import click

from hala_hpc.cli import common
from hala_hpc.config.schema import Data
from hala_hpc.config.words import plural
from hala_hpc.data.files import hub
from hala_hpc.pipeline import planning
from hala_hpc.worker import registry
from hala_hpc.worker.task import NeedsHub


@click.command()
@common.recipe_argument
@common.overrides_argument
@common.site_option
@common.as_json
def command(recipe: Path, overrides: tuple[str, ...], site: str, json_: bool) -> None:
    r"""Download a recipe's model and datasets into the site's cache, here on the login node.

    \b
    hala prefetch jobs/hala/translate-openorca.yaml --site mycluster
    hala prefetch jobs/latxa/grid.yaml --site mycluster
    hala prefetch jobs/hala/evaluate-nano.yaml --site mycluster
    """
    recipes = planning.read(recipe, site, overrides).recipes
    hub.use_cache(recipes[0].site.cache)
    models, data = [], []
    for wanted in recipes:
        task = registry.create(wanted)
        models.append(wanted.model)
        data.append(wanted.data)
        if isinstance(task, NeedsHub):  # a mixture, benchmarks
            models += task.models_on_hub()
            data += task.data_on_hub()
    folders = list(dict.fromkeys(folder for model in models for folder in hub.fetch_model(model)))
    datasets = {repr(source): source for source in data if source.hub}
    rows = {_label(data): hub.fetch_dataset(data) for data in datasets.values()}
    fetched = {"models": folders, "dataset_rows": sum(rows.values()) if rows else None, "datasets": rows}
    lines = [f"model: {folder}" for folder in folders]
    lines += [f"dataset: {name}, {plural(count, 'row')}" for name, count in rows.items()]
    nothing = "nothing to download: the recipe names no model and no dataset on the hub"
    common.show(fetched, json_, lines or [nothing])


def _label(data: Data) -> str:
    """A dataset as a person names it; its parts apart."""
    split = "" if data.split in (None, "train") else f" ({data.split})"
    return "/".join(filter(None, (data.hub, data.hub_config))) + split
