"""``hala submit``: plan a run and start its workers."""

from pathlib import Path

import click

from hala_hpc.cli import common
from hala_hpc.cli.views import training
from hala_hpc.config.words import plural
from hala_hpc.pipeline import planning, starting


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
    show_started(starting.submit(planning.read(recipe, site, overrides), site), json_)


def show_started(started: starting.Started, json_: bool) -> None:
    """The arrays of a run or a grid, and what to know and do next."""
    *before, workers = started.submissions
    folder, runs = str(started.folder), [str(run.path) for run in started.runs]
    record: dict[str, object] = {"run": folder, "jobs": started.jobs, "workers": workers.workers}
    if runs != [folder]:
        record = {"grid": folder, "runs": runs, "jobs": started.jobs}
    lines = [common.handed_in(submission, "to prepare the data first") for submission in before]
    lines.append(common.handed_in(workers, f"for {folder if runs == [folder] else plural(len(runs), 'run')}"))
    loud = dict.fromkeys(line for run in started.runs for line in training.loud(run.path))
    lines += [click.style(line, fg="red", bold=True) for line in loud]
    common.show(record, json_, [*lines, f"next: hala status {folder}"])
