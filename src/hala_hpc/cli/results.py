"""``hala verify``, ``collect``, ``report`` and ``best``: the results of runs, proven, collected, shown, chosen from."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from hala_hpc.cli import common
from hala_hpc.cli.views import training
from hala_hpc.config.errors import HalaError, few, plural
from hala_hpc.data.outputs import collect
from hala_hpc.models import location
from hala_hpc.models.card import name_of
from hala_hpc.pipeline import lookup
from hala_hpc.report import write
from hala_hpc.run import digests, manifest, status
from hala_hpc.run.collect import collect_folders
from hala_hpc.run.files import write_durably
from hala_hpc.run.layout import PIPELINE
from hala_hpc.run.verify import Verdict, verify
from hala_hpc.tasks.evaluate import choose
from hala_hpc.tasks.evaluate.statistics import Mean
from hala_hpc.tasks.train import checkpoints
from hala_hpc.tasks.train.paths import CHECKPOINTS
from hala_hpc.worker import registry

PROVEN = {
    "rows": "proven: every row is there exactly once",
    "models": "proven: every file of the model is what was written, every weight a number",
    "checkpoints": "proven: every file of every model is what was written, every weight a number",
    "files": "proven: every tensor is there, and every file is as it was checked and written",
    "merges": "proven: every file of every model is what was written, every weight a number",
    "benchmarks": "proven: every result is what its samples say",
    "systems": "proven: every score is what its rows say",
    "runs": "all proven",
}
"""By what is counted."""


@dataclass(frozen=True)
class Verified:
    """A run, what came of it, and what it counts."""

    path: Path
    verdict: Verdict
    unit: str

    def as_json(self) -> dict[str, object]:
        return asdict(self.verdict) | {"proven": self.verdict.proven}


@click.command()
@common.run_argument
@common.as_json
def verify_command(run: str, json_: bool) -> None:
    r"""Prove that every input row is in the output or in quarantine, exactly once. Exit code 0: proven; 1: not.

    A training is proven where its model is whole and every row of its datasets was made into tokens; a damaged
    checkpoint is noted. A folder that `hala collect` made is proven where every byte of its data is what was written.

    \b
    hala verify translate-openorca
    hala verify data/openorca-ar
    """
    if collect.is_collected(Path(run)):
        _folder(collect.verify(Path(run)), json_)
    if models := digests.folders(Path(run)):
        _models(models, json_)
    group, paths = lookup.find_group(run), lookup.runs(run)
    left = _unfinished(group) if group and (group / PIPELINE).is_file() else []
    data = dict.fromkeys(path.resolve() for member in paths for path in training.data_runs(member).values())
    runs, datasets = [_verified(path) for path in paths], [_verified(path) for path in data]
    damaged = [note for run in runs if run.unit == "models" for note in _checkpoints(run.path)]
    proven = not left and all(run.verdict.proven for run in (*runs, *datasets))
    if group:
        by_name = {_name_in(group, run.path): run.as_json() for run in (*datasets, *runs)}
        kind = "pipeline" if (group / PIPELINE).is_file() else "grid"
        record: dict[str, object] = {kind: str(group), "proven": proven, "runs": by_name}
        record |= {"unfinished": left} if left else {}
    else:
        record = runs[0].as_json() | {"proven": proven}
        if datasets:
            record["datasets"] = {data.path.name: data.as_json() for data in datasets}
    lines: list[str] = [common.Problem(note) for note in damaged]
    lines += [line for data in datasets for line in _lines(data, group or paths[0], f"{data.path.name}: ")]
    lines += [line for run in runs for line in _lines(run, run.path, f"{_name_in(group, run.path)}: " if group else "")]
    lines += [common.Problem(f"not done: {few(left, 8)}")] if left else []
    last = PROVEN["runs" if group else runs[0].unit] if proven else "NOT proven"
    common.show(record | ({"checkpoints": damaged} if damaged else {}), json_, [*lines, last], proven)


def _name_in(group: Path, run: Path) -> str:
    """A run as people call it within a grid or a pipeline."""
    return str(run.relative_to(group)) if run.is_relative_to(group) else run.name


def _unfinished(pipeline: Path) -> list[str]:
    """The stages of a pipeline that are not done."""
    from hala_hpc.pipeline import stages
    from hala_hpc.pipeline.survey import SETTLED, survey

    statuses = survey(stages.load(pipeline)).stages.values()
    return [status.name for status in statuses if status.state not in SETTLED]


def _folder(verdict: collect.FolderVerdict, json_: bool) -> None:
    """Show the proof of a collected folder, and end."""
    files = plural(verdict.files, "file")
    lines: list[str] = [common.Problem(problem) for problem in verdict.problems]
    if verdict.unsealed:
        unsealed = f"{verdict.unsealed} of {verdict.files} files were written before there were seals"
        lines += [common.Problem(f"{unsealed}: a change in them cannot be seen (hala collect writes them anew)")]
    lines += [f"{plural(verdict.rows, 'row')}, {verdict.quarantined:,} in quarantine, {files}"]
    lines += ["proven: every byte of its data is what was written" if verdict.proven else "NOT proven"]
    common.show(asdict(verdict) | {"proven": verdict.proven}, json_, lines, verdict.proven)


def _models(folders: list[Path], json_: bool) -> None:
    """Show the proof of folders that were collected from a run, and end."""
    problems = [f"{folder.name}: {fault}" for folder in folders for fault in digests.faults(folder) or []]
    last = "NOT proven" if problems else "proven: every byte but the cards' is what was written"
    record = {"folders": len(folders), "problems": problems, "proven": not problems}
    common.show(record, json_, [*map(common.Problem, problems), last], not problems)


def _verified(path: Path) -> Verified:
    facts = manifest.read(path / "manifest.parquet").facts
    with common.counting(f"verifying {path.name}") as counted:
        verdict = verify(path, registry.create(lookup.thawed(path)).checker(facts), counted)
    return Verified(path, verdict, facts.unit)


def _checkpoints(path: Path) -> list[str]:
    """What is wrong with a training's checkpoints, which says nothing of its model."""
    return [
        f"note: {name} is damaged: {'; '.join(faults[:3])} (a resume does not use it; it may be removed)"
        for name, faults in checkpoints.faults(path / CHECKPOINTS).items()
    ]


def _lines(run: Verified, path: Path, before: str) -> Iterator[str]:
    """A run's counts, and what is to be done about it; ``path`` is what `hala resume` takes."""
    verdict, shards = run.verdict, plural(run.verdict.shards, "shard")
    problems = list(verdict.problems)
    if verdict.missing_shards:
        problems += [f"{verdict.missing_shards} of {shards} not finished: hala resume {path}"]
    if verdict.damaged or verdict.damaged_final:
        which = f"{plural(len(verdict.damaged), 'shard')} damaged" if verdict.damaged else "final/ is damaged"
        problems += [f"{which}: hala resume {path} --damaged sets them aside and does them again"]
    if verdict.unassembled:
        problems += [f"its last step, which makes final/, is not done: hala resume {path}"]
    if verdict.unsealed:
        unsealed = f"{verdict.unsealed:,} of {verdict.shards:,} shards were written before there were seals"
        problems += [f"{unsealed}: of what was added to their rows a change cannot be seen"]
    yield from (common.Problem(f"{before}{problem}") for problem in problems)
    held = ", ".join(f"{count:,} {reason}" for reason, count in sorted(verdict.quarantined.items()))
    quarantine = f", {held or 'none'} in quarantine" if run.unit == "rows" else ""
    yield f"{before}{verdict.rows:,} {run.unit}: {verdict.done:,} done{quarantine}, {shards}"


@click.command()
@common.run_argument
@click.option("--to", type=common.PathOption(), help="The folder to make. [RUN/final]")
@click.option("--partial", is_flag=True, help="Take what is finished so far.")
@common.as_json
def collect_command(run: str, to: Path | None, partial: bool, json_: bool) -> None:
    r"""Write the finished dataset as Parquet in source order, with a card; rows in quarantine apart, with their reason.

    For a training, the finished model is copied to --to.

    \b
    hala collect translate-openorca --to data/openorca-ar
    hala collect sft-1.2b --to models/sft-1.2b
    """
    path = lookup.find(run)
    target = (to or path / "final").resolve()
    suffix = manifest.read(path / "manifest.parquet").facts.suffix
    if suffix == ".parquet":
        with common.counting("collecting") as counted:
            data = collect.collect(path, target, partial, counted)
        what = f"{plural(data.rows, 'row')} in {plural(data.files, 'file')}"
        common.show(data, json_, [f"{what}, {sum(data.quarantined.values()):,} in quarantine: {data.path}"])
    elif suffix == "":
        models = collect_folders(path, target, partial)
        size = f"{models.bytes / 1e9:,.2f} GB ({models.linked} linked)"
        common.show(models, json_, [f"{plural(models.files, 'file')}, {size}: {target}"])
    else:
        raise HalaError(f"{path}: its shards are {suffix} files, for the training alone", "collect the training's run")


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@click.option("--to", type=common.PathOption(), help="The folder to make or renew. [./report-RUN]")
@click.option(
    "--format", "formats", type=click.Choice(write.FORMATS), multiple=True, help="Several may be given. [all]"
)
@click.option("--base", default="", help="Label of the model that others are compared with. [base, else the first]")
@click.option("--models", multiple=True, metavar="PATTERN", help="Only these models and the base.")
@click.option("--benchmarks", multiple=True, metavar="PATTERN", help="Only these benchmarks.")
@click.option(
    "--examples", type=click.IntRange(0), default=1, show_default=True, help="Texts to show of each kind; 0 for none."
)
@click.option("--title", default="", help="The title of the page. [the runs' names]")
@common.as_json
def report_command(
    runs: tuple[str, ...],
    to: Path | None,
    formats: tuple[str, ...],
    base: str,
    models: tuple[str, ...],
    benchmarks: tuple[str, ...],
    examples: int,
    title: str,
    json_: bool,
) -> None:
    r"""Write tables and plots of runs, finished or not: translations, trainings, merges, evaluations, or several.

    report.html is one page that needs no network; tables/ has LaTeX and CSV, plots/ PNG. A grid stands for its runs.

    \b
    hala report evaluate-nano
    hala report sft-1.2b merge evaluate-small --base base --to report --title "Hala 1.2B"
    hala report evaluate-nano --benchmarks 'arabic_*' --format md --json
    """
    paths = [path for run in runs for path in lookup.runs(run)]
    report = write.gather(paths, write.ReportOptions(base, models, benchmarks, examples, title))
    target = (to or Path(f"report-{paths[0].name}")).resolve()
    written = write.write(report, target, formats or write.FORMATS)
    lines = [str(path) for path in written if path.parent == target and path.name != write.RECORD]
    lines += [f"{len(report.tables)} tables and {len(report.plots)} plots in {target}"]
    common.show({**write.as_data(report), "files": [str(path) for path in written]}, json_, lines)


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
@click.option("--base", default="", help="Label of the base model. [base, else the first]")
@click.option("--with-base", is_flag=True, help="The base may be chosen too.")
@click.option("--models", multiple=True, metavar="PATTERN", help="Choose among these only.")
@click.option("--benchmarks", multiple=True, metavar="PATTERN", help="Choose by these only.")
@click.option("--to", type=common.PathOption(), help="Where the choice is written down. [RUN/best.json]")
@common.as_json
def best_command(
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
    evaluations = choose.evaluations(paths, base).only(models, benchmarks)
    choice = choose.choose(evaluations, rule, choose.Split(1.0 if split == "all" else share, seed), with_base)
    record: dict[str, object] = choose.as_json(choice) | {"runs": [path.name for path in paths]}
    folder = Path(choice.path)
    # Whoever goes on with the chosen folder must get what was evaluated. A folder that is gone harms nobody.
    if folder.is_dir() and location.digest(folder) != choice.weights:
        raise HalaError(f"{choice.model}: {folder} has changed since the evaluation", "evaluate it again, as a new run")
    target = to or paths[0] / location.CHOICE
    write_durably(target, json.dumps(record, ensure_ascii=False, indent=1, allow_nan=False).encode() + b"\n")
    common.show(record, json_, _choice_lines(choice, folder, target))


def _place(folder: Path) -> str:
    """A model's folder, and what people call it where that is a shard of a run."""
    name = name_of(folder)
    gone = "" if folder.is_dir() else ", deleted since"
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


def _choice_lines(choice: choose.Choice, folder: Path, target: Path) -> Iterator[object]:
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
