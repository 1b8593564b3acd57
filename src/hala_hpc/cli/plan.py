"""``hala plan``: what would run."""

import tempfile
from pathlib import Path
from typing import Any

import click

from hala_hpc.cli import common
from hala_hpc.config.words import plural
from hala_hpc.pipeline import lookup


@click.command()
@common.recipe_argument
@common.overrides_argument
@common.site_option
@click.option("--create", is_flag=True, help="Make the run directory, to submit its workers by hand.")
@common.as_json
def command(recipe: Path, overrides: tuple[str, ...], site: str, create: bool, json_: bool) -> None:
    r"""Show what a recipe would run: files, rows, shards, tokens, workers and the sbatch text. Submits nothing.

    Of a training: its steps, each GPU's memory by part, on several numbers of GPUs, and GPU-hours.

    \b
    hala plan jobs/demo/translate.yaml --site local-cpu
    hala plan jobs/hala/translate-openorca.yaml --site mycluster run.workers=64
    hala plan jobs/hala/sft-1.2b.yaml --site mycluster
    """
    from hala_hpc.cli.views import grid as views
    from hala_hpc.pipeline import grid
    from hala_hpc.pipeline.planning import check, obstacles, plan_run, summary_of

    if grid.is_grid(recipe):
        views.plan(*grid.plan(recipe, site, overrides, create), create, json_)
        return
    asked = lookup.load(recipe, site, overrides)
    task = check(asked)
    root = Path(asked.run.root).resolve()
    target = root / asked.name
    if create:
        summary = summary_of(asked, plan_run(asked, task, target).path, target, task.stage)
    else:
        with tempfile.TemporaryDirectory(prefix=".plan-", dir=root if root.is_dir() else None) as scratch:
            planned = plan_run(asked, task, Path(scratch) / asked.name)
            summary = summary_of(asked, planned.path, target, task.stage)
        summary["warnings"] = obstacles(asked, task, target)
    if json_:
        common.echo_json(summary)
    else:
        _show(summary, created=create)


def _show(summary: dict[str, Any], created: bool) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    training = summary.get("training")
    if training:
        from hala_hpc.cli.views import plan_training

        plan_training.show(training)
    elif items := summary.get("items"):
        _items(table, summary, items)
    else:
        _rows(table, summary)
    for note, count in summary["notes"].items():
        table.add_row("[yellow]note[/]", f"{count:,} {escape(note)}")
    for warning in summary.get("warnings", ()):
        table.add_row("[yellow]warning[/]", escape(warning))
    table.add_row("workers", f"{summary['workers']} on {summary['site']} ({summary['executor']})")
    table.add_row("run", summary["run"])
    common.show(table)
    if summary["sbatch"]:
        click.echo(f"\n{summary['sbatch']}")
    if created and training:
        click.echo(f"made; start it with: hala resume {summary['run']}   (or by hand: sbatch/train_multinode.sbatch)")
    elif created:
        array = f"--array=0-{summary['workers'] - 1}"
        click.echo(f"made; submit by hand: sbatch {array} sbatch/translate_array.sbatch {summary['run']}")


def _items(table: Any, summary: dict[str, Any], items: list[str]) -> None:
    _sources(table, summary, "")
    shown = ", ".join(items[:12]) + (f", … and {len(items) - 12} more" if len(items) > 12 else "")
    table.add_row(summary["task"], f"{plural(len(items), 'shard')}: {shown}")


def _rows(table: Any, summary: dict[str, Any]) -> None:
    _sources(table, summary, "rows")
    table.add_row("rows", f"{summary['rows']:,} with {plural(summary['texts'], 'text')}")
    table.add_row("tokens", f"about {summary['estimated_tokens']:,} in, {summary['characters']:,} characters")
    per = summary["tokens_per_shard"]
    table.add_row(
        "shards", f"{summary['shards']:,} of {per['least']:,} to {per['most']:,} tokens (median {per['median']:,})"
    )


def _sources(table: Any, summary: dict[str, Any], unit: str) -> None:
    for source in summary["sources"][:10]:
        counted = f"{source['rows']:,} {unit}, " if unit else ""
        table.add_row("source", f"{source['file']}  [dim]{counted}{source['bytes'] / 1e6:,.1f} MB[/]")
    if len(summary["sources"]) > 10:
        table.add_row("", f"… and {len(summary['sources']) - 10} more files")
