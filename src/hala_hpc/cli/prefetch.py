"""``hala prefetch``: what compute nodes cannot download."""

from pathlib import Path

import click

from hala_hpc.cli import common


@click.command()
@common.recipe_argument
@common.overrides_argument
@common.site_option
@common.as_json
def command(recipe: Path, overrides: tuple[str, ...], site: str, json_: bool) -> None:
    r"""Download a recipe's model and dataset into the site's cache, here on the login node.

    \b
    hala prefetch jobs/hala/translate-openorca.yaml --site mycluster
    """
    from hala_hpc.data import hub

    asked = common.load(recipe, site, overrides)
    hub.use_cache(asked.site.cache)
    models = hub.fetch_model(asked.model)
    rows = hub.fetch_dataset(asked.data) if asked.data.hub else None
    if json_:
        common.echo_json({"models": models, "dataset_rows": rows})
        return
    for folder in models:
        click.echo(f"model: {folder}")
    if rows is not None:
        click.echo(f"dataset: {asked.data.hub}, {rows:,} rows")
    if not models and rows is None:
        click.echo("nothing to download: the recipe names no model and no dataset on the hub")
