"""Rows that were judged, or made and held against filters: how many are kept, why others are not, and how well known
good and bad ones are told apart.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from hala_hpc.data.columns import reach
from hala_hpc.data.outputs.judgements import FILTERED, KEPT, REJECTED, SCORE, VERDICT, Judgements
from hala_hpc.data.outputs.pairs import pairs
from hala_hpc.data.schema import Row, to_rows
from hala_hpc.data.shards import ERROR, ROW, reason_of
from hala_hpc.report import table
from hala_hpc.report.runs import ReportedRun
from hala_hpc.report.table import Cell, Example, Section, isolated
from hala_hpc.tasks.judge.forms import FORMS

THRESHOLDS: Final = tuple(number / 10 for number in range(1, 10))
MOST_CHARACTERS: Final = 600


def section(run: ReportedRun, examples: int) -> Section | None:
    """The verdicts of a run; None for a run that judges and filters nothing, or has no shard done yet."""
    if run.kind not in ("judge", "generate"):
        return None
    judgements, damaged, shown = Judgements.of_run(run.path), 0, dict[str, list[Example]]()
    for path in (run.directory.shard_output(shard) for shard in range(run.status.shards)):
        if not path.is_file():
            continue
        try:
            file = pq.ParquetFile(path)
            judgements.add(file.read(columns=[*judgements.columns(file.schema_arrow), ERROR]))
        except (pa.ArrowException, OSError, ValueError):
            damaged += 1
            continue
        if not shown:
            shown = _examples(path, _columns(run), examples)
    if not judgements.reasons:
        return None
    note = "Of finished shards." + (f" {damaged} of them are damaged and not counted (hala verify)." if damaged else "")
    tables = (_verdicts(run.name, judgements, note), *_calibration(run.name, judgements))
    return Section(
        f"verdicts-{run.name}",
        f"Verdicts of {isolated(run.name)}",
        tables=tables,
        examples=tuple(example for own in shown.values() for example in own),
    )


def _columns(run: ReportedRun) -> Sequence[str]:
    """The columns with the texts that were judged."""
    task = run.recipe["task"]
    if run.kind == "generate":
        return [f"messages{task['suffix']}"]
    return run.recipe["data"].get("columns") or FORMS[task["rows"]].columns


def _verdicts(name: str, judgements: Judgements, note: str) -> table.Table:
    total = judgements.reasons.total()
    counts = [(why if why == KEPT else f"{REJECTED}{why}", count) for why, count in judgements.reasons.most_common()]
    counts += [(f"best: {column}", count) for column, count in judgements.chosen.most_common()]
    if judgements.scored:
        mean = judgements.mass / judgements.scored
        note = f"The model gave the verdicts {mean:.3f} of its probability, on average. {note}"
    rows: list[table.Row] = [[why, count, Cell(100 * count / total)] for why, count in counts]
    return table.of(f"verdicts-{name}", "Verdicts", ["verdict", "rows", "%"], rows, note)


def _calibration(name: str, judgements: Judgements) -> list[table.Table]:
    """How well labelled rows are told apart, and what other thresholds would do."""
    if judgements.auc is None:
        return []
    known = judgements.known
    good, bad = (known[kind, True] + known[kind, False] for kind in (True, False))
    row: table.Row = [
        good,
        bad,
        *(_share(share) for share in (judgements.auc, judgements.share(True), judgements.share(False))),
    ]
    columns = ["good rows", "bad rows", "AUC", "good kept", "bad rejected"]
    note = (
        f"By the labels in {judgements.label}. AUC: how likely a good row's score is above a bad one's, by ranks, "
        "ties counted half; rows that rules rejected are below all others."
    )
    tables = [table.of(f"calibration-{name}", "Calibration", columns, [row], note)]
    others = [(threshold, judgements.at(threshold)) for threshold in THRESHOLDS]
    rows = [[Cell(at, digits=1), _share(shares[0]), _share(shares[1])] for at, shares in others if shares is not None]
    columns = ["threshold", "good kept", "bad rejected"]
    return tables + ([table.of(f"thresholds-{name}", "Other thresholds", columns, rows)] if rows else [])


def _share(value: float | None) -> Cell:
    return Cell(value, digits=3)


def _examples(output: Path, columns: Sequence[str], each: int) -> dict[str, list[Example]]:
    """Some rows of a shard for each verdict."""
    found: dict[str, list[Example]] = {}
    with suppress(pa.ArrowException, OSError, ValueError):
        for row in to_rows(pq.read_table(output)):
            if row[ERROR] is not None:
                continue
            verdict = (row[VERDICT]["reason"] if VERDICT in row else reason_of(row[FILTERED] or "")) or KEPT
            if len(own := found.setdefault(verdict, [])) < each:
                own.append(Example(f"row {row[ROW]:,}: {verdict}", tuple(_texts(row, columns))))
    return found


def _texts(row: Row, columns: Sequence[str]) -> list[tuple[str, str]]:
    texts = [text for column in columns for text in _said(column, reach(row, column))]
    return texts + ([] if row.get(SCORE) is None else [(SCORE, f"{row[SCORE]:.3f}")])


def _said(column: str, value: Any) -> list[tuple[str, str]]:
    """A text, or the turns of a conversation, each by its place."""
    if not isinstance(value, list):
        return [(column, str(value or "")[:MOST_CHARACTERS])]
    return [
        (pair.of, pair.source[:MOST_CHARACTERS]) for pair in pairs({column: value}, pa.schema([(column, pa.string())]))
    ]
