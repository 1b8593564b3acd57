"""``hala best``: which of several models, by a rule and a split that are stated."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import click

from hala_hpc.cli import common
from hala_hpc.config.errors import HalaError
from hala_hpc.config.words import plural
from hala_hpc.models import location
from hala_hpc.models.card import name_of
from hala_hpc.pipeline import lookup
from hala_hpc.report.sections.evaluations import RECORD
from hala_hpc.run import status
from hala_hpc.run.files import write_durably
from hala_hpc.tasks.evaluate import choose, scores
from hala_hpc.tasks.evaluate.statistics import Mean


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@click.option(
    "--rule",
    type=click.Choice(list(choose.RULES)),
    default="average",
    show_default=True,
    help="How the model is picked.",
)
@click.option(
    "--split", type=click.Choice(("half", "all")), default="half", show_default=True, help="Questions to choose by."
)
@click.option(
    "--share",
    type=click.FloatRange(0, 1, True, True),
    default=0.5,
    show_default=True,
    help="How much of the questions --split half takes.",
)
@click.option("--seed", default=0, show_default=True, help="The seed of the split.")
@click.option("--base", default="", help="Label of the model it all started from. [base, else the first]")
@click.option("--with-base", is_flag=True, help="The base may be chosen too.")
@click.option("--models", multiple=True, metavar="PATTERN", help="Choose among these only.")
@click.option("--benchmarks", multiple=True, metavar="PATTERN", help="Choose by these only.")
@click.option("--to", type=common.PathOption(), help="Where the choice is written down. [RUN/best.json]")
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

    With --split half one part of the questions chooses; the other, which had no say, shows what the choice is worth.
    Rules: average, the highest average of benchmarks; one-se, the first in the recipe within one standard error of it;
    no-loss, the highest average among models that are below the base on no benchmark by a 95 % interval.

    \b
    hala best evaluate-merges
    hala best evaluate-merges --rule one-se --models 'merged-*' --json | jq -r .path
    """
    paths = [lookup.find(run) for run in runs]
    for path in paths:
        if missing := status.missing(path):
            raise HalaError(f"{path}: {plural(len(missing), 'shard')} not finished", f"`hala resume {path}`")
    evaluations = scores.read(paths, base).only(models, benchmarks)
    choice = choose.choose(evaluations, rule, choose.Split(1.0 if split == "all" else share, seed), with_base)
    record: dict[str, object] = choose.as_json(choice) | {"runs": [path.name for path in paths]}
    folder = Path(choice.path)
    # Whoever goes on with the chosen folder must get what was evaluated. A folder that is gone harms nobody.
    if folder.is_dir() and location.digest(folder) != choice.weights:
        raise HalaError(f"{choice.model}: {folder} is not what was evaluated", "evaluate it again, as a new run")
    target = to or paths[0] / RECORD
    write_durably(target, json.dumps(record, ensure_ascii=False, indent=1, allow_nan=False).encode() + b"\n")
    common.show(record, json_, _lines(choice, folder, target))


def _place(folder: Path) -> str:
    """A model's folder, and what people call it where that is a shard of a run."""
    name = name_of(folder)
    gone = "" if folder.is_dir() else ", not there any more"
    return f"{folder}" + (f" ({name}{gone})" if name != folder.name or gone else "")


def _worth(lead: choose.Lead) -> str:
    """What the choice is worth, in a sentence."""
    gap, where = lead.fair, "on the questions held out" if lead.held_out else "on the questions that chose it"
    ahead = f"{abs(gap.value) * 100:.2f} points {'ahead of' if gap.value >= 0 else 'behind'} {lead.over} {where}"
    low, high = gap.interval
    if math.isnan(low):
        return f"it is {ahead}; how much of that is chance is unknown, since a task has a single question"
    chance = ": chance alone may have chosen it" if low <= 0 <= high else ""
    return f"it is {ahead}, 95 % interval {low * 100:+.2f} to {high * 100:+.2f}{chance}"


def _lines(choice: choose.Choice, folder: Path, target: Path) -> Iterator[object]:
    table = common.table("model", "chosen by", "held out", "fits")
    for candidate in choice.candidates:
        means = [_percent(mean) for mean in (candidate.chosen_by, candidate.held_out)]
        style = "bold" if candidate.model == choice.model else None
        table.add_row(candidate.model, *means, "yes" if candidate.fits else "no", style=style)
    yield table
    yield f"{choice.model}: {_place(folder)}"
    if choice.lead is not None:
        yield _worth(choice.lead)
    yield f"written down in {target}"


def _percent(mean: Mean | None) -> str:
    """The standard error is left out where it is unknown."""
    if mean is None:
        return "–"
    return f"{mean.value:.2%}" + ("" if math.isnan(mean.error) else f" ± {mean.error:.2%}")
