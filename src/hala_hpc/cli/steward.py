"""``hala steward``: decide what a run needs, now or until its end."""

from pathlib import Path

import click

from hala_hpc.cli import common
from hala_hpc.config.errors import HalaError
from hala_hpc.pipeline import lookup, steward
from hala_hpc.pipeline.decision import Decision

WATCH_SECONDS = 60.0
"""Between two looks of ``--watch``."""


@click.command()
@common.run_argument
@click.option("--watch", is_flag=True, help="Look every minute until the run is done or stopped, on a login node too.")
@click.option("--dry-run", is_flag=True, help="Say what would be decided; do nothing.")
@common.as_json
def steward_command(run: str, watch: bool, dry_run: bool, json_: bool) -> None:
    r"""Decide what a run needs, and do it: nothing, wait, workers for what is missing, or stop and say why.

    With Slurm a small job does so after the workers (run.steward). Exit code 1: it stopped, and a person must look.

    \b
    hala steward translate-openorca --dry-run
    hala steward translate-openorca --watch
    """
    if watch and dry_run:
        raise HalaError("--watch and --dry-run do not go together", "--dry-run looks once")
    if pipeline := lookup.find_pipeline(run):
        _conduct(pipeline, watch, dry_run, json_)
        return
    folder = lookup.find_grid(run) or lookup.find(run)
    if (owner := common.owner_of_closed(folder / "logs")) is not None and not dry_run:
        raise HalaError(f"this run is {owner}'s, and only they start its workers (logs/ is closed)", "--dry-run works")
    if dry_run:
        _, now, decision = steward.look(folder)
        common.show(
            {"run": str(folder), **decision.as_event(), "idle": now.idle, "ends": dict(now.ends)},
            json_,
            _lines(decision),
        )
        return
    if watch:
        decision = Decision("wait", "")
        for decision in steward.tend(folder, watch=WATCH_SECONDS):
            if not json_:
                click.echo(f"{decision.action}: {decision}")
        common.show({"run": str(folder), **decision.as_event()}, json_, (), decision.action == "done")
    decision, _ = steward.once(folder)
    try:
        job, problem = steward.follow(folder, decision), ""
    except HalaError as error:
        job, problem = "", str(error)
    lines = [*_lines(decision), *([f"a steward follows (slurm {job})"] if job else [])]
    is_slurm = lookup.thawed(lookup.runs(run)[0]).site.executor == "slurm"
    if not (job or decision.is_end) and is_slurm:
        why = f" ({problem})" if problem else ""
        lines += [
            f"no steward follows{why}: hala steward {folder} --watch, or by scrontab -e:",
            *steward.scrontab(folder),
        ]
    record = {"run": str(folder), **decision.as_event(), "steward": job, "scrontab": steward.scrontab(folder)}
    common.show(record, json_, lines, decision.action != "stop")


def _conduct(folder: Path, watch: bool, dry_run: bool, json_: bool) -> None:
    """A pipeline has a conductor in place of a steward."""
    from hala_hpc.cli.views import pipeline as views
    from hala_hpc.pipeline import conductor, stages
    from hala_hpc.pipeline.survey import survey

    problems: list[str] = []
    if watch:
        for line in conductor.tend(folder, watch=WATCH_SECONDS):
            if not json_:
                click.echo(line)
    elif not dry_run:
        problems = conductor.conduct(folder)[1]
    now = survey(stages.load(folder))
    lines = [views.table(now), *map(common.Problem, problems), views.summary(now)]
    common.show(views.as_json(now) | {"problems": problems}, json_, lines, not now.is_halted)


def _lines(decision: Decision) -> list[str]:
    changes = [f"with {' '.join(decision.changes)}"] if decision.changes else []
    return [f"{decision.action}: {decision}", *changes]
