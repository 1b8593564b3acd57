"""``hala submit``: plan a run and start its workers."""

from pathlib import Path

import click

from hala_hpc.cli import common
from hala_hpc.pipeline import lookup


@click.command()
@common.recipe_argument
@common.overrides_argument
@common.site_option
@common.as_json
def command(recipe: Path, overrides: tuple[str, ...], site: str, json_: bool) -> None:
    r"""Plan a run and start its workers; then log out. Come back to `hala status`.

    \b
    hala submit jobs/demo/translate.yaml --site local-cpu name=again
    hala submit jobs/hala/translate-openorca.yaml --site hpc/sites/mycluster.yaml run.workers=64
    """
    from hala_hpc.cli.views import grid as views
    from hala_hpc.cli.views import training
    from hala_hpc.pipeline import grid
    from hala_hpc.pipeline.planning import check, plan_run, refuse_missing_environment
    from hala_hpc.pipeline.starting import start
    from hala_hpc.run import manifest
    from hala_hpc.slurm.limits import limits

    if grid.is_grid(recipe):
        started = grid.submit(recipe, site, overrides)
        views.show_started(started, str(started.folder), json_)
        return
    asked = lookup.load(recipe, site, overrides)
    lookup.refuse_forgotten_site(site, asked.site.executor)
    task = check(asked)
    refuse_missing_environment(asked, task)
    if asked.site.executor == "slurm":
        limits(asked.site.slurm)  # a Slurm that is not there is told before all the data is read
    run = plan_run(asked, task, Path(asked.run.root).resolve() / asked.name)
    workers = min(asked.run.workers, len(manifest.read(run.manifest)))
    *before, submission = start(asked, task, run.path, workers)  # where Slurm refuses, the planned run stays
    jobs = [job for one in (*before, submission) for job in one.jobs]
    if json_:
        common.echo_json({"run": str(run.path), "jobs": jobs, "workers": submission.workers})
    else:
        for one in before:
            click.echo(common.handed_in(one, "to prepare its data first"))
        click.echo(common.handed_in(submission, f"for {run.path}"))
        for line in training.loud(run.path) if asked.task.kind == "train" else ():
            click.secho(line, fg="red", bold=True)
        click.echo(f"next: hala status {run.path}")
