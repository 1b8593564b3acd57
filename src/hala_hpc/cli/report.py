"""``hala report``: what runs came to, as tables, plots and one page."""

from pathlib import Path

import click

from hala_hpc.cli import common
from hala_hpc.pipeline import lookup
from hala_hpc.report import write


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
def command(
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
