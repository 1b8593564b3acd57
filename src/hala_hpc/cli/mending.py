"""``hala sample`` and ``hala redo``: rows of a run, looked at and done again."""

import click

from hala_hpc.cli import common
from hala_hpc.config.errors import HalaError, plural
from hala_hpc.data.chosen import Choice
from hala_hpc.pipeline import lookup, redo, starting
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
    (submission,) = starting.start(planned.planned.path, [planned.planned])
    started = common.handed_in(submission, f"for {planned.planned.path}")
    next_ = f"next: hala status {planned.planned.path.name}"
    common.show(record | {"jobs": submission.jobs, "workers": submission.workers}, json_, [*lines, started, next_])


def _facts(planned: PlannedRedo) -> list[tuple[str, str]]:
    from rich.markup import escape

    facts, redo, chosen = planned.plan.facts, planned.redo, planned.chosen
    return [
        ("redo", escape(lineage.chosen(redo))),
        ("changed", escape(lineage.changes(redo)) or "nothing"),
        ("stay", f"{plural(facts.rows - chosen.rows, 'row')} of {facts.rows:,}, byte for byte"),
        ("tokens", f"about {chosen.tokens:,} in, of {plural(chosen.texts, 'text')}"),
        ("run", str(planned.planned.path)),
    ]
