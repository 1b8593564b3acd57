"""``hala plan``: what would run."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hala_hpc.cli import common
from hala_hpc.config.words import plural

if TYPE_CHECKING:
    from rich.table import Table

    from hala_hpc.pipeline.planning import Summary


@click.command()
@common.recipe_argument
@common.overrides_argument
@common.site_option
@click.option("--create", is_flag=True, help="Make the run directory, to submit its workers by hand.")
@common.as_json
def command(recipe: Path, overrides: tuple[str, ...], site: str, create: bool, json_: bool) -> None:
    r"""Show what a recipe would run: files, rows, shards, tokens, workers and the sbatch text. Submits nothing.

    A training's plan has its steps, each GPU's memory by part on several numbers of GPUs, and GPU-hours.

    \b
    hala plan jobs/demo/translate.yaml --site local-cpu
    hala plan jobs/hala/translate-openorca.yaml --site mycluster run.workers=64
    hala plan jobs/hala/sft-1.2b.yaml --site mycluster
    """
    from hala_hpc.cli.views import grid
    from hala_hpc.pipeline import planning

    runs = planning.read(recipe, site, overrides)
    plans, warnings = planning.summaries(runs, create)
    if runs.is_grid:
        grid.show_plan(runs, plans, warnings, create, json_)
        return
    (summary,) = plans
    if not create:
        summary["warnings"] = warnings
    common.show(summary, json_, _lines(summary, create))


def _lines(summary: "Summary", created: bool) -> Iterator[object]:
    from rich.markup import escape
    from rich.table import Table

    from hala_hpc.cli.views import training as views

    table = Table(show_header=False, box=None, pad_edge=False)
    if training := summary.get("training"):
        views.show_plan(training)
    else:
        _rows(table, summary)
    for note, count in summary["notes"].items():
        table.add_row("[yellow]note[/]", f"{count:,} {escape(note)}")
    for warning in summary.get("warnings", ()):
        table.add_row("[yellow]warning[/]", escape(warning))
    table.add_row("workers", f"{summary['workers']} on {summary['site']} ({summary['executor']})")
    table.add_row("run", summary["run"])
    yield table
    if summary["sbatch"]:
        yield f"\n{summary['sbatch']}"
    if created and training:
        yield f"made; start it with: hala resume {summary['run']}   (or by hand: sbatch/train_multinode.sbatch)"
    elif created:
        array = f"--array=0-{summary['workers'] - 1}"
        yield f"made; submit by hand: sbatch {array} sbatch/translate_array.sbatch {summary['run']}"


def _rows(table: "Table", summary: "Summary") -> None:
    """The sources; then the rows and how they are cut, or the items."""
    items = summary.get("items")
    for source in summary["sources"][:10]:
        counted = "" if items else f"{source['rows']:,} rows, "
        table.add_row("source", f"{source['file']}  [dim]{counted}{source['bytes'] / 1e6:,.1f} MB[/]")
    if len(summary["sources"]) > 10:
        table.add_row("", f"… and {len(summary['sources']) - 10} more files")
    if items:
        listed = common.few(items, 12, f"… and {len(items) - 12} more")
        table.add_row(summary["task"], f"{plural(len(items), 'shard')}: {listed}")
        return
    table.add_row("rows", f"{summary['rows']:,} with {plural(summary['texts'], 'text')}")
    table.add_row("tokens", f"about {summary['estimated_tokens']:,} in, {summary['characters']:,} characters")
    per = summary["tokens_per_shard"]
    table.add_row(
        "shards", f"{summary['shards']:,} of {per['least']:,} to {per['most']:,} tokens (median {per['median']:,})"
    )
