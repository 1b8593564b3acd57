"""``hala plan``: what would run."""

import tempfile
from pathlib import Path
from typing import Any

import click

from hala_hpc.cli import common
from hala_hpc.config.words import plural


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
    from hala_hpc.cli import grid
    from hala_hpc.cli.planning import check, obstacles, plan_run

    if grid.is_grid(recipe):
        grid.plan(recipe, site, overrides, create, json_)
        return
    asked = common.load(recipe, site, overrides)
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


def summary_of(recipe: Any, planned: Path, target: Path, stage: str) -> dict[str, Any]:
    """What is shown, as plain data. ``planned`` is where the run is planned, ``target`` where it will be."""
    from hala_hpc.run import manifest
    from hala_hpc.slurm.submit import preview

    plan = manifest.read(planned / "manifest.parquet")
    tokens = plan.column("tokens")
    workers = min(recipe.run.workers, len(plan))
    training, ranks = None, None
    if plan.facts.unit == "models":
        from hala_hpc.cli import plan_training
        from hala_hpc.tasks import train

        training, ranks = plan_training.summary(recipe, planned), train.ranks_per_node(recipe.site)
    items = [str(item["name"]) for item in plan.facts.items]
    is_slurm = recipe.site.executor == "slurm"
    return {
        "run": str(target),
        "task": recipe.task.kind,
        "sources": [
            {"file": source["original"], "rows": source["rows"], "bytes": source["bytes"]}
            for source in plan.facts.sources
        ],
        "rows": plan.facts.rows,
        "texts": plan.facts.texts,
        "characters": plan.facts.characters,
        "estimated_tokens": plan.facts.tokens,
        "notes": plan.facts.notes,
        "shards": len(plan),
        "tokens_per_shard": {"least": min(tokens), "median": sorted(tokens)[len(tokens) // 2], "most": max(tokens)},
        "workers": workers,
        "site": recipe.site.name,
        "executor": recipe.site.executor,
        "sbatch": preview(recipe, target, stage, workers, ranks) if is_slurm else None,
    } | {key: value for key, value in (("training", training), ("items", items)) if value}


def _show(summary: dict[str, Any], created: bool) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    training = summary.get("training")
    if training:
        from hala_hpc.cli import plan_training

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
