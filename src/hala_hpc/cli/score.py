"""``hala score``: how near translations in files, or in runs, are to references."""

import functools
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click

from hala_hpc.cli import common
from hala_hpc.config import places
from hala_hpc.config.errors import HalaError, did_you_mean, first_twice, plural
from hala_hpc.data.cut import PlanWatch
from hala_hpc.pipeline import lookup
from hala_hpc.tasks.score import scores, texts
from hala_hpc.tasks.score.scores import Scores, System
from hala_hpc.tasks.score.texts import Column, Rows, Texts
from hala_hpc.text import metrics
from hala_hpc.text.metrics import DEFAULT, KINDS, RESAMPLES


@click.command()
@click.argument("references")
@click.argument("systems", nargs=-1, required=True, metavar="SYSTEM...")
@click.option(
    "--metrics", "wanted", default=",".join(DEFAULT), show_default=True, help=f"Of {', '.join(KINDS)}, or all."
)
@click.option("--column", help="The column of the systems, and of the references: of files that have some, of runs.")
@click.option("--reference-column", help="That of the references. [--column]")
@click.option("--source", help="The texts that were translated: TreeSim is to their structure then.")
@click.option("--source-column", help="That of --source. [--reference-column]")
@click.option("--confidence", is_flag=True, help="95 % intervals over 1,000 choices of rows.")
@click.option("--paired", is_flag=True, help="The same, and paired tests against --baseline.")
@click.option("--baseline", help="The system that others are tested against. [the first]")
@common.as_json
def score_command(
    references: str,
    systems: tuple[str, ...],
    wanted: str,
    column: str | None,
    reference_column: str | None,
    source: str | None,
    source_column: str | None,
    confidence: bool,
    paired: bool,
    baseline: str | None,
    json_: bool,
) -> None:
    r"""Score translations against references: BLEU, chrF++, ROUGE-L, and how much of the texts' structure is left.

    Each is a text file, line by line, or a column of Parquet, JSON lines, CSV, a collected dataset, or run:NAME.
    BLEU, chrF++, their intervals and tests are sacrebleu's, to the last digit.

    \b
    hala score references.ar base.ar tuned.ar --paired
    hala score data/mmlu.parquet run:translate-mmlu --reference-column human_ar --column question_ar --metrics all
    """
    chosen = _metrics(wanted)
    if twice := first_twice(systems):
        raise HalaError(f"{twice} is named twice", "name each system once")
    if baseline is not None and not paired:
        raise HalaError("--baseline is for paired tests", "add --paired")
    if paired and len(systems) < 2:
        raise HalaError("--paired tests systems against each other", "name two or more; --confidence does with one")
    against = (baseline or systems[0]) if paired else None
    if against is not None and against not in systems:
        raise HalaError(f"--baseline {against} is none of the systems", did_you_mean(against, systems))
    notes: Counter[str] = Counter()
    named = [_Side("references", references, reference_column or column)]
    named += [_Side("systems", system, column) for system in systems]
    if source is not None:
        named.append(_Side("--source", source, source_column or reference_column or column))
    for option, value, of in (
        ("--column", column, named),
        ("--reference-column", reference_column, [side for side in named if side.what != "systems"]),
        ("--source-column", source_column, [side for side in named if side.what == "--source"]),
    ):
        if value is not None and all(texts.is_text(side.path) for side in of):
            raise HalaError(f"{option}: no side has columns: a text file's lines are its texts", "leave it out")
    with tempfile.TemporaryDirectory() as folder:
        read = [_texts(side, Path(folder) / str(number), notes) for number, side in enumerate(named)]
    outputs = dict(zip(systems, read[1:], strict=False))
    rows = texts.together(read[0], read[-1] if source is not None else None, outputs, None, "empty")
    result = _scored(rows, chosen, RESAMPLES if confidence or paired else 0, against)
    result = replace(result, notes=dict(notes + rows.notes))
    common.show(result.as_json(), json_, _lines(result))


def _metrics(wanted: str) -> list[str]:
    names = list(KINDS) if wanted == "all" else [name.strip() for name in wanted.split(",") if name.strip()]
    if odd := next((name for name in names if name not in KINDS), None):
        raise HalaError(f"--metrics: no metric '{odd}'", did_you_mean(odd, KINDS))
    if not names:
        raise HalaError("--metrics: is empty", f"one or more of {', '.join(KINDS)}")
    return list(dict.fromkeys(names))


@dataclass(frozen=True)
class _Side:
    """Texts as the command line names them; ``column`` is not looked at for a text file."""

    what: str
    name: str
    column: str | None

    @functools.cached_property
    def path(self) -> Path:
        """Raises HalaError for an empty name, and a run that is not there."""
        if not self.name.strip():
            raise HalaError(f"{self.what}: is empty", "give a file or run:NAME; a variable that is not set is empty")
        if self.name.startswith(places.RUN):
            return lookup.find(self.name)
        return Path(places.expanded(self.name, self.what))


def _texts(side: _Side, copies: Path, notes: Counter[str]) -> Texts:
    column = None if texts.is_text(side.path) else side.column
    return texts.read(Column(path=[str(side.path)], column=column), None, copies, PlanWatch(), notes)


def _scored(rows: Rows, chosen: Sequence[str], resamples: int, baseline: str | None) -> Scores:
    scored: dict[str, dict[str, metrics.Scored]] = {name: {} for name in rows.systems}
    signatures = {}
    for kind in chosen:
        metric = KINDS[kind].make(rows.references, rows.sources)
        for name, hypotheses in rows.systems.items():
            scored[name][kind] = metrics.scored(metric, metrics.statistics(metric, hypotheses), resamples)
        signatures[kind] = metrics.signature(metric, resamples)
    tested = scores.tested(scored, baseline)
    systems = {name: System(rows.missing[name], rows.empty(name), tested[name]) for name in rows.systems}
    return Scores(len(rows.references), resamples, baseline, signatures, systems)


def _lines(result: Scores) -> Iterator[object]:
    table = common.table("metric", "system", "score", "±", "p", right=("score", "±", "p"))
    table.columns[1].no_wrap, table.columns[1].overflow = False, "fold"
    for metric in result.signatures:
        for name, system in result.systems.items():
            table.add_row(KINDS[metric].label, name, *system.scores[metric].cells(metric))
    yield table
    yield from (f"{KINDS[metric].label}: {signature}" for metric, signature in result.signatures.items())
    for name, system in result.systems.items():
        if system.empty or system.missing:
            yield f"{name}: {plural(system.empty, 'empty text')}, {system.missing:,} of them missing in the data"
    against = f"; {scores.MARK} differs from {result.baseline} (p < {scores.SIGNIFICANT})" if result.baseline else ""
    yield f"{plural(result.rows, 'row')}{against}"
    yield from (f"note: {count:,} {note}" for note, count in result.notes.items())
