"""``hala plan`` and ``hala submit``: what a recipe would run, and its start."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.markup import escape

from hala_hpc.cli import common
from hala_hpc.cli.views import mix, pipeline, training
from hala_hpc.cli.views.run import why
from hala_hpc.config import pipeline as pipeline_file
from hala_hpc.config.errors import HalaError, few, plural
from hala_hpc.pipeline import lookup, outlook, planning, steward, submitting
from hala_hpc.pipeline.taking import Take

if TYPE_CHECKING:
    from hala_hpc.pipeline.conductor import Begun


@click.command()
@common.recipe_argument
@common.overrides_argument
@common.site_option
@click.option("--create", is_flag=True, help="Make the run directory, to submit its workers by hand.")
@common.as_json
def plan_command(recipe: Path, overrides: tuple[str, ...], site: str, create: bool, json_: bool) -> None:
    r"""Show what a recipe would run: files, rows, shards, tokens, workers and the sbatch text. Submits nothing.

    A training's plan has its steps, each GPU's memory by part on several numbers of GPUs, and GPU-hours. A pipeline's
    has all stages, which of them are done already, and the plans of those that could start now.

    \b
    hala plan jobs/demo/translate.yaml --site local-cpu
    hala plan jobs/hala/translate-openorca.yaml --site mycluster run.workers=64
    hala plan jobs/hala/sft-1.2b.yaml --site mycluster
    """
    if pipeline_file.is_pipeline(recipe):
        _plan_pipeline(recipe, overrides, site, create, json_)
        return
    runs = planning.read(recipe, site, overrides)
    plans, warnings = outlook.summaries(runs, create)
    if runs.is_grid:
        cells, by_name = runs.records, {Path(plan["run"]).name: plan for plan in plans}
        listed = [cell | ({"plan": by_name[cell["name"]]} if cell["name"] in by_name else {}) for cell in cells]
        record = {"grid": str(runs.folder), "cells": listed} | ({"warnings": warnings} if warnings else {})
        common.show(record, json_, _grid_lines(runs.folder, cells, by_name, warnings, create))
        return
    (summary,) = plans
    if not create:
        summary["warnings"] = warnings
    common.show(summary, json_, _lines(summary, create))


def _plan_pipeline(recipe: Path, overrides: tuple[str, ...], site: str, create: bool, json_: bool) -> None:
    from hala_hpc.pipeline import conductor, forecast, stages
    from hala_hpc.pipeline.survey import survey

    if create:
        raise HalaError("--create is for a single run", "`hala submit` makes a pipeline")
    now = survey(stages.compose(pipeline_file.read(recipe), site, overrides))
    plans: dict[str, tuple[list[outlook.Summary], list[str]]] = {}
    for status in now.in_state("ready"):
        if not status.stage.command:
            runs = status.stage.runs(conductor.vacant(now, status), stages.opened(now.place))
            try:
                plans[status.name] = outlook.summaries(runs, create=False)
            except HalaError as error:  # the others are planned all the same
                plans[status.name] = [], [str(error)]
    so_far = forecast.forecasts(now, plans)
    common.show(pipeline.planned(now, plans, so_far), json_, pipeline.plan_lines(now, plans, so_far))


def _lines(summary: outlook.Summary, created: bool) -> Iterator[object]:
    if estimate := summary.get("training"):
        training.show_plan(estimate)
    facts = [] if estimate else _facts(summary)
    facts += [("[yellow]note[/]", f"{count:,} {escape(note)}") for note, count in summary["notes"].items()]
    facts += [("[yellow]warning[/]", escape(warning)) for warning in summary.get("warnings", ())]
    facts += [
        ("workers", f"{summary['workers']} on {summary['site']} ({summary['executor']})"),
        ("run", summary["run"]),
    ]
    if lines := summary.get("mix"):
        yield mix.table(lines)
    yield common.facts(facts)
    yield from map(_taken, summary.get("takes", ()))
    if summary["sbatch"]:
        yield f"\n{summary['sbatch']}"
    if created and estimate:
        yield f"made; start it with: hala resume {summary['run']}   (or by hand: sbatch/train_multinode.sbatch)"
    elif created:
        array = f"--array=0-{summary['workers'] - 1}"
        yield f"made; submit by hand: sbatch {array} sbatch/translate_array.sbatch {summary['run']}"


def _facts(summary: outlook.Summary) -> list[tuple[str, str]]:
    """The sources; then the rows and how they are cut, or the items."""
    sources, items, per = summary["sources"], summary.get("items"), summary["tokens_per_shard"]
    most = f"; {summary['most_asks']} times that at most, if all answers failed" if summary["most_asks"] > 1 else ""
    facts = []
    for source in sources[:10]:
        counted = "" if items else f"{source['rows']:,} rows, "
        facts.append(("source", f"{source['file']}  [dim]{counted}{source['bytes'] / 1e6:,.1f} MB[/]"))
    if len(sources) > 10:
        facts.append(("", f"… and {len(sources) - 10} more files"))
    if items:
        listed = few(items, 12, ", … and {} more")
        return [*facts, (summary["task"], f"{plural(len(items), 'shard')}: {listed}")]
    return [
        *facts,
        ("rows", f"{summary['rows']:,} with {plural(summary['texts'], 'text')}"),
        ("tokens", f"about {summary['estimated_tokens']:,} in, {summary['characters']:,} characters{most}"),
        ("shards", f"{summary['shards']:,} of {per['least']:,} to {per['most']:,} tokens (median {per['median']:,})"),
    ]


def _taken(take: Take) -> str:
    """What a plan takes of another run: where it is by now, and which plan of that run it is."""
    digest = f" (planned {take['planned_at']}, recipe {take['recipe_digest'][:8]})" if take.get("planned_at") else ""
    return f"takes {take['key']}: {take['address']} is {take['path']}{digest}"


def _grid_lines(
    folder: Path,
    cells: Sequence[lookup.CellRecord],
    plans: Mapping[str, outlook.Summary],
    warnings: Sequence[str],
    created: bool,
) -> Iterator[object]:
    """The cells of a grid; of trainings, the memory of the first in full."""
    table = common.table("cell", *cells[0]["values"], "rows", "tokens", "steps", "GPU-hours", "")
    for cell in cells:
        numbers = _planned(plans[cell["name"]]) if cell["name"] in plans else [""] * 4
        table.add_row(cell["name"], *cell["values"].values(), *numbers, why(cell))
    yield table
    trainings = [plan["training"] for plan in plans.values() if "training" in plan]
    hours = sum(plan.get("gpu_hours", 0.0) for plan in trainings)
    about = f", about {hours:,.0f} GPU-hours" if hours else ""
    yield f"{len(plans)} of {len(cells)} cells are runs{about}: {folder}"
    yield from (f"warning: {warning}" for warning in warnings)
    if trainings:
        yield "\nThe first of them:"
        training.show_plan(trainings[0])
    if created:
        yield f"made; start it with: hala resume {folder}"


def _planned(plan: outlook.Summary) -> list[str]:
    """Rows, tokens, steps and GPU-hours."""
    trained = plan.get("training")
    if not trained:
        return [f"{plan['rows']:,}", f"{plan['estimated_tokens']:,}", "", ""]
    numbers = (sum(data["rows"] for data in trained["datasets"]), trained["estimated_tokens_trained"])
    steps, hours = trained["estimated_steps"], trained.get("gpu_hours", 0.0)
    return [*(f"{number:,}" for number in (*numbers, steps)), f"{hours:,.1f}"]


@click.command()
@common.recipe_argument
@common.overrides_argument
@common.site_option
@common.as_json
def submit_command(recipe: Path, overrides: tuple[str, ...], site: str, json_: bool) -> None:
    r"""Plan a run and start its workers; then log out. Come back to `hala status`.

    \b
    hala submit jobs/demo/translate.yaml --site local-cpu name=again
    hala submit jobs/hala/translate-openorca.yaml --site hpc/sites/mycluster.yaml run.workers=64
    """
    if pipeline_file.is_pipeline(recipe):
        from hala_hpc.pipeline import conductor, stages

        composed = stages.compose(pipeline_file.read(recipe), site, overrides)
        show_begun(conductor.submit(composed, site), json_)
        return
    show_started(submitting.submit(planning.read(recipe, site, overrides), site), json_)


def show_begun(begun: "Begun", json_: bool) -> None:
    """How a pipeline stands that was started, and what to do next."""
    now = begun.survey
    record = pipeline.as_json(now) | {"problems": begun.problems} | ({"job": begun.job} if begun.job else {})
    lines: list[str] = [common.Problem(problem) for problem in begun.problems]
    executor = now.pipeline.recipe.site.executor
    follower = {
        "slurm": "a job follows each stage, and starts the next",
        "local": f"a process goes through the stages (local {begun.job})" if begun.job else "a process is at it",
    }
    if executor == "slurm" and not now.pipeline.recipe.site.jobs_submit:
        follower["slurm"] = f"jobs of this site may not submit jobs: hala steward {now.pipeline.folder} --watch"
    lines += [follower[executor]] if executor in follower and not now.finished else []
    lines.append("nothing to do: all of it is done" if now.finished else f"next: hala status {now.pipeline.folder}")
    common.show(record, json_, [pipeline.table(now), *lines])


def show_started(started: steward.Started, json_: bool) -> None:
    """The arrays of a run or a grid, and what to know and do next."""
    before, last = started.submissions[:-1], started.submissions[-1:]
    folder, runs = str(started.folder), [str(run.path) for run in started.runs]
    record: dict[str, object] = {"grid": folder, "runs": runs, "jobs": started.jobs}
    if runs == [folder]:
        record = {"run": folder, "jobs": started.jobs, "workers": last[0].workers}
    record |= {"steward": started.steward} if started.steward else {}
    purpose = f"for {folder if runs == [folder] else plural(len(runs), 'run')}"
    lines = [common.handed_in(submission, "to prepare the data first") for submission in before]
    lines += [common.handed_in(submission, purpose) for submission in last]
    loud = dict.fromkeys(line for run in started.runs for line in training.loud(run.path))
    lines += [click.style(line, fg="red", bold=True) for line in loud]
    lines += follower(started)
    nothing = f"nothing to start: all shards are done, or workers are at them (hala status {folder})"
    common.show(record, json_, [*lines, f"next: hala status {folder}" if runs else nothing])


def follower(started: steward.Started) -> list[str]:
    """The steward that follows some workers, or what a person does where none can."""
    recipe = started.runs[0].recipe if started.runs else None
    if recipe is None or recipe.site.executor != "slurm" or not recipe.run.steward:
        return []
    if started.steward:
        return [f"a steward follows them, and hands in what is missing then (slurm {started.steward})"]
    why = started.problem or "jobs of this site may not submit jobs (site.jobs_submit)"
    watch = f"hala steward {started.folder} --watch"
    return [f"no steward follows: {why}. Instead: {watch}, or by scrontab -e:", *steward.scrontab(started.folder)]
