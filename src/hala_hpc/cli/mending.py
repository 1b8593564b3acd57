"""``hala sample``, ``hala explain`` and ``hala redo``: rows of a run, looked at and done again."""

import click
from rich.console import Console
from rich.markup import escape

from hala_hpc.cli import common
from hala_hpc.cli.plan import follower
from hala_hpc.cli.views import explain as explain_view
from hala_hpc.cli.views import sample as view
from hala_hpc.config import frozen
from hala_hpc.config.errors import HalaError, plural
from hala_hpc.data.outputs import chosen
from hala_hpc.data.outputs.chosen import Choice
from hala_hpc.models import location
from hala_hpc.pipeline import explain, lookup, redo, submitting
from hala_hpc.pipeline.redo import PlannedRedo
from hala_hpc.run import lineage

where_option = click.option("--where", metavar="CONDITION", help="A condition on rows: \"'loops' in flags\".")
quarantine_option = click.option(
    "--quarantine",
    is_flag=False,
    flag_value="",
    metavar="[REASON]",
    help="Rows in quarantine: those of one reason, or all.",
)


@click.command()
@common.run_argument
@where_option
@quarantine_option
@click.option("-n", "--rows", type=click.IntRange(min=1), default=20, show_default=True, help="How many at most.")
@click.option("--seed", default=0, show_default=True, help="Another one shows other rows.")
@common.as_json
def sample_command(run: str, where: str | None, quarantine: str | None, rows: int, seed: int, json_: bool) -> None:
    r"""Show some rows of a run, finished or not, each text beside its translation. --json: a line for each row.

    With a condition or --quarantine, some of those that `hala redo` would do again.

    \b
    hala sample translate-openorca
    hala sample translate-openorca --where "'loops' in flags or length > 4" -n 5
    hala sample translate-openorca --quarantine truncated --json | jq .row.hala_error
    """
    path = lookup.find(run)
    with common.counting(f"reading {path.name}") as counted:
        sample = chosen.sample(path, Choice(where, quarantine), rows, seed, counted)
    if sample.damaged:
        which = f"{plural(len(sample.damaged), 'damaged shard')} left out, the first is {sample.damaged[0]}"
        click.echo(f"{which} (hala verify {path})", err=True)
    if sample.missing:
        click.echo(f"{plural(sample.missing, 'shard')} not finished yet, and not looked at", err=True)
    if json_:
        for row in sample.rows:
            click.echo(view.as_line(row))
        return
    console = Console()
    suffix = str(frozen.read(path)["task"].get("suffix", ""))
    common.show(None, False, view.shown(sample, suffix, console))


@click.command()
@common.run_argument
@click.argument("row", type=int)
@click.option("--digest", is_flag=True, help="The digest of the model's folder too, which reads all of it.")
@common.as_json
def explain_command(run: str, row: int, digest: bool, json_: bool) -> None:
    r"""Show how one row came to be: its texts, and each request as it was sent, and its answer's fate.

    \b
    hala explain translate-openorca 1234
    hala explain translate-openorca 1234 --json | jq .requests[].outcome
    """
    explained = explain.explain(lookup.find(run), row)
    model = explained.recipe.model
    of_model = location.digest(location.locate_one(model.name, model.revision)) if digest and model.name else ""
    suffix = str(getattr(explained.recipe.task, "suffix", ""))
    lines = explain_view.shown(explained, suffix, of_model, Console())
    common.show(explain_view.as_json(explained, of_model), json_, lines)


@click.command()
@common.run_argument
@common.overrides_argument
@where_option
@quarantine_option
@click.option("--name", default="", help="The name of the new run. [RUN-v2, or the next free number]")
@click.option("--dry-run", is_flag=True, help="Show what would be done; make and start nothing.")
@common.as_json
def redo_command(
    run: str,
    overrides: tuple[str, ...],
    where: str | None,
    quarantine: str | None,
    name: str,
    dry_run: bool,
    json_: bool,
) -> None:
    r"""Do some rows of a finished run again, as a new version of it; all other rows stay as they are, byte for byte.

    --where chooses among the rows that are done, --quarantine those that are not. Which they are shows `hala sample`.

    \b
    hala redo translate-openorca --where "'loops' in flags or length > 4" sampling.temperature=0.5 --dry-run
    hala redo translate-openorca --where "judge < 0.5" model.name=org/larger-model
    hala redo translate-openorca --quarantine truncated sampling.max_tokens=8192
    """
    if where is None and quarantine is None:
        raise HalaError("which rows?", "--where \"'loops' in flags\", or --quarantine, or both")
    path = lookup.find(run)
    with common.counting(f"reading {path.name}") as counted:
        planned = redo.plan(path, Choice(where, quarantine), overrides, name, counted)
    record: dict[str, object] = {
        "run": str(planned.planned.path),
        "redo": planned.redo,
        "of_rows": planned.plan.facts.rows,
        "of_shards": len(planned.plan),
        "texts": planned.chosen.texts,
        "estimated_tokens": planned.chosen.tokens,
        "warnings": planned.warnings,
    }
    lines: list[object] = [common.facts(_facts(planned)), *map(common.Problem, planned.warnings)]
    if dry_run:
        common.show(record, json_, lines)
        return
    planned.make()
    started = submitting.start(planned.planned.path, [planned.planned])
    (submission,) = started.submissions
    lines += [common.handed_in(submission, f"for {planned.planned.path}"), *follower(started)]
    record |= {"jobs": submission.jobs, "workers": submission.workers}
    record |= {"steward": started.steward} if started.steward else {}
    common.show(record, json_, [*lines, f"next: hala status {planned.planned.path.name}"])


def _facts(planned: PlannedRedo) -> list[tuple[str, str]]:
    facts, rows = planned.plan.facts, planned.chosen
    return [
        ("redo", escape(lineage.chosen(planned.redo))),
        ("changed", escape(lineage.changes(planned.redo)) or "nothing"),
        ("stay", f"{plural(facts.rows - rows.rows, 'row')} of {facts.rows:,}, byte for byte"),
        ("tokens", f"about {rows.tokens:,} in, of {plural(rows.texts, 'text')}"),
        ("run", str(planned.planned.path)),
    ]
