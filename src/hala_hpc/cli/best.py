"""``hala best``: which of several models, by a rule and a split that are stated."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hala_hpc.cli import common
from hala_hpc.config.words import plural
from hala_hpc.pipeline import lookup

if TYPE_CHECKING:
    from hala_hpc.tasks.evaluate.choose import Choice, Lead
    from hala_hpc.tasks.evaluate.statistics import Mean

RULES = ("average", "one-se", "no-loss")


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@click.option("--rule", type=click.Choice(RULES), default="average", show_default=True, help="How the model is picked.")
@click.option(
    "--split", type=click.Choice(("half", "all")), default="half", show_default=True, help="Questions to choose by."
)
@click.option(
    "--share", type=click.FloatRange(0, 1, True, True), default=0.5, show_default=True, help="Of --split half."
)
@click.option("--seed", default=0, show_default=True, help="Of the split.")
@click.option("--base", default="", help="Label of the model it all started from. [base, else the first]")
@click.option("--with-base", is_flag=True, help="The base may be chosen too.")
@click.option("--models", multiple=True, metavar="PATTERN", help="Choose among these only.")
@click.option("--benchmarks", multiple=True, metavar="PATTERN", help="Choose by these only.")
@click.option("--to", type=common.Place(path_type=Path), help="Where the choice is written down. [RUN/best.json]")
@common.as_json
def command(
    runs: tuple[str, ...],
    rule: str,
    split: str,
    share: float,
    seed: int,
    base: str,
    with_base: bool,
    models: tuple[str, ...],
    benchmarks: tuple[str, ...],
    to: Path | None,
    json_: bool,
) -> None:
    r"""Pick a merge weight or a checkpoint from evaluations, and write down the choice and the table it came from.

    With --split half one part of the questions chooses; the other, which had no say, tells what the choice is worth.
    Rules: average, the highest average of benchmarks; one-se, the first in the recipe within one standard error of it;
    no-loss, the highest average among models that are below the base on no benchmark by a 95 % interval.

    \b
    hala best evaluate-merges
    hala best evaluate-merges --rule one-se --models 'merged-*' --json | jq -r .path
    """
    from hala_hpc.report.sections.evaluations import RECORD
    from hala_hpc.run.files import write_durably
    from hala_hpc.tasks.evaluate import choose, scores

    paths = [lookup.find(run) for run in runs]
    _refuse_unfinished(paths)
    evaluations = scores.read(paths, base).only(models, benchmarks)
    asked = choose.Split(1.0 if split == "all" else share, seed)
    choice = choose.choose(evaluations, rule, asked, with_base)
    record: dict[str, Any] = choose.as_json(choice) | {"runs": [path.name for path in paths]}
    _refuse_other_weights(choice)
    target = to or paths[0] / RECORD
    write_durably(target, json.dumps(record, ensure_ascii=False, indent=1, allow_nan=False).encode() + b"\n")
    if json_:
        common.echo_json(record)
        return
    _show(choice)
    click.echo(f"{choice.model}: {_place(Path(choice.path))}")
    if choice.lead is not None:
        click.echo(_worth(choice.lead))
    click.echo(f"written down in {target}")


def _refuse_other_weights(choice: "Choice") -> None:
    """Whoever goes on with the chosen folder must get what was evaluated. A folder that is gone harms nobody."""
    from hala_hpc.config.errors import HalaError
    from hala_hpc.models import location

    folder = Path(choice.path)
    if folder.is_dir() and location.digest(folder) != choice.weights:
        raise HalaError(f"{choice.model}: {folder} is not what was evaluated", "evaluate it again, as a new run")


def _place(folder: Path) -> str:
    """A model's folder, and what people call it where that is a shard of a run."""
    from hala_hpc.models.card import name_of

    name = name_of(folder)
    gone = "" if folder.is_dir() else ", not there any more"
    return f"{folder}" + (f" ({name}{gone})" if name != folder.name or gone else "")


def _refuse_unfinished(paths: list[Path]) -> None:
    from hala_hpc.config.errors import HalaError
    from hala_hpc.run import status

    for path in paths:
        if missing := status.missing(path):
            raise HalaError(f"{path}: {plural(len(missing), 'shard')} not finished", f"`hala resume {path}`")


def _worth(lead: "Lead") -> str:
    """What the choice is worth, in a sentence."""
    gap, where = lead.fair, "on the questions held out" if lead.held_out else "on the questions that chose it"
    ahead = f"{abs(gap.value) * 100:.2f} points {'ahead of' if gap.value >= 0 else 'behind'} {lead.over} {where}"
    low, high = gap.interval
    if math.isnan(low):
        return f"it is {ahead}; how much of that is chance is unknown, since a task has a single question"
    chance = ": chance alone may have chosen it" if low <= 0 <= high else ""
    return f"it is {ahead}, 95 % interval {low * 100:+.2f} to {high * 100:+.2f}{chance}"


def _show(choice: "Choice") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "chosen by", "held out", "fits", box=None, pad_edge=False)
    for one in choice.candidates:
        means = [_percent(mean) for mean in (one.chosen_by, one.held_out)]
        style = "bold" if one.model == choice.model else None
        table.add_row(one.model, *means, "yes" if one.fits else "no", style=style)
    Console().print(table)


def _percent(mean: "Mean | None") -> str:
    """The standard error is left out where it is unknown."""
    if mean is None:
        return "–"
    return f"{mean.value:.2%}" + ("" if math.isnan(mean.error) else f" ± {mean.error:.2%}")
