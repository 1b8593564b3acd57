"""Scores of translations: systems by metrics, with intervals, paired tests and signatures, and what they cost."""

from collections.abc import Iterator
from typing import Any, Final

import pyarrow.compute as pc

from hala_hpc.config.errors import plural
from hala_hpc.report import table
from hala_hpc.report.runs import ReportedRun
from hala_hpc.report.table import Cell, Example, Section, Table, isolated
from hala_hpc.run import digests
from hala_hpc.run.digests import Damaged
from hala_hpc.run.files import read_json
from hala_hpc.tasks.score import scores
from hala_hpc.tasks.score.scores import Scores
from hala_hpc.text.metrics import KINDS

MOST_CHARACTERS: Final = 600


def section(run: ReportedRun, examples: int) -> Section | None:
    """The scores of a run; None for a run of another kind, and where its record is not there or cannot be read.

    ``examples`` rows are shown of each system, those with its lowest scores.
    """
    if run.kind != "score":
        return None
    try:
        result = scores.from_json(read_json(run.path / "final" / scores.SCORES))
    except (KeyError, TypeError):
        return None
    name = f"scores-{run.name}"
    tables = (_scores(result, name), _tests(result, name), _signatures(result, name), _speeds(result, name))
    said = (f"{plural(len(result.systems), 'system')} on {plural(result.rows, 'row')}. {scores.said(result)}",)
    return Section(
        name,
        f"Translations scored in {isolated(run.name)}",
        (*said, *_notes(result)),
        tuple(one for one in tables if one.rows),
        examples=tuple(_lowest(run, result, examples)),
    )


def _notes(result: Scores) -> Iterator[str]:
    for name, count in result.notes.items():
        yield f"{count:,} {name}."
    for name, system in result.systems.items():
        if system.empty or system.missing:
            yield f"{isolated(name)}: {system.missing:,} texts missing in the data, {system.empty:,} empty ones in all."


def _scores(result: Scores, name: str) -> Table:
    best = {
        metric: max(system.scores[metric].score for system in result.systems.values()) for metric in result.signatures
    }
    rows: list[table.Row] = [
        [
            label,
            *(
                Cell(score.score, digits=KINDS[metric].digits, best=score.score == best[metric], mark=score.mark)
                for metric, score in system.scores.items()
            ),
            system.missing,
            system.empty,
        ]
        for label, system in result.systems.items()
    ]
    return table.of(name, "Scores", ["system", *(KINDS[metric].label for metric in best), "missing", "empty"], rows)


def _tests(result: Scores, name: str) -> Table:
    rows: list[table.Row] = [
        [
            KINDS[metric].label,
            label,
            *(Cell(value, digits=KINDS[metric].digits) for value in (score.score, score.mean, score.half)),
            Cell(score.p, digits=4),
        ]
        for metric in result.signatures
        for label, system in result.systems.items()
        if (score := system.scores[metric]).mean is not None
    ]
    columns = ["metric", "system", "score", "mean", "±", "p"]
    note = "Mean and 95 % interval around it over choices of rows; p is of the difference to the baseline."
    return table.of(f"{name}-tests", "Intervals and paired tests", columns, rows, note)


def _signatures(result: Scores, name: str) -> Table:
    rows = [[KINDS[metric].label, signature] for metric, signature in result.signatures.items()]
    return table.of(f"{name}-signatures", "Signatures", ["metric", "signature"], rows)


def _speeds(result: Scores, name: str) -> Table:
    """What the runs took that made the texts; a table without rows where none is a run of this toolkit."""
    runs = {label: system.run for label, system in result.systems.items() if system.run}
    base = (runs.get(result.baseline or next(iter(runs), "")) or {}).get("output_tokens_per_second")
    rows: list[table.Row] = []
    for label, run in runs.items():
        rate = run["output_tokens_per_second"]
        gpus = f"{run['gpus_per_worker']} {run['gpu_type'] or ''}".strip()
        rows.append(
            [
                *(label, run["name"], run["model"], run["dtype"], gpus, run["workers"], run["output_tokens"]),
                *(Cell(value, digits=1) for value in (rate, run["of_gpu"])),
                Cell(rate / base if rate and base else None),
                run["gpu_hours"] or None,
            ]
        )
    columns = ["system", "run", "model", "dtype", "GPUs of a worker", "workers", "output tokens"]
    columns += ["output tokens/s", "of a GPU", "to the baseline's", "GPU-hours"]
    note = "Tokens/s are those of one worker, on average, without the time in which it loaded the model."
    return table.of(f"{name}-runs", "What they cost", columns, rows, note)


def _lowest(run: ReportedRun, result: Scores, count: int) -> Iterator[Example]:
    """The rows with the lowest scores of each system, by chrF++ where it is there: it tells short texts apart best."""
    metric = "chrf" if "chrf" in result.signatures else next(iter(result.signatures))
    try:
        rows, _ = digests.read(run.path / "final" / scores.ROWS)
    except Damaged:  # `hala verify` names it
        return
    for label in result.systems:
        order = pc.sort_indices(pc.struct_field(rows[label], metric))
        for row in rows.take(order[:count]).to_pylist():
            yield Example(f"Lowest {KINDS[metric].label} of {isolated(label)}", tuple(_texts(row, result)))


def _texts(row: dict[str, Any], result: Scores) -> Iterator[tuple[str, str]]:
    texts = [(name, row[name]) for name in ("source", "reference") if name in row]
    for name, text in (*texts, *((label, row[label]["text"]) for label in result.systems)):
        yield name, text[:MOST_CHARACTERS] + ("…" if len(text) > MOST_CHARACTERS else "")
