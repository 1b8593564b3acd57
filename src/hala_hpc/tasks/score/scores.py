"""Scores of several systems on the same rows, with intervals and paired tests: as data, and as lines for people."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from hala_hpc.data.files.runs import SCORED
from hala_hpc.models.folder import write_json
from hala_hpc.run import digests
from hala_hpc.text import metrics
from hala_hpc.text.metrics import KINDS, Scored, Statistics

RESULT: Final = "result.json"
"""Of one system: the score of each metric, and its signature."""
ROWS: Final = SCORED
"""Of one system: a row's score by each metric, and the statistics that it comes from (``METRIC_statistics``)."""
RESAMPLED: Final = "resampled.parquet"
"""Of one system: the scores over choices of rows, a column a metric, as precise as they were computed."""
SCORES: Final = "scores.json"
"""Of a finished run: ``Scores``."""
SIGNIFICANT: Final = 0.05
MARK: Final = "*"


@dataclass(frozen=True)
class Score:
    """A system by one metric. ``mean`` and ``half`` (of the 95 % interval around it) are over choices of rows.

    ``p`` is of the difference to the baseline.
    """

    score: float
    mean: float | None = None
    half: float | None = None
    p: float | None = None

    def cells(self, metric: str) -> tuple[str, str, str]:
        """Score, half of the interval and p-value for people; a mark where it differs from the baseline."""
        digits = KINDS[metric].digits
        half = "" if self.half is None else f"{self.half:.{digits}f}"
        p = "" if self.p is None else f"{self.p:.4f}{self.mark or ' '}"
        return f"{self.score:.{digits}f}", half, p

    def shown(self, metric: str) -> str:
        """The same in one cell, without the p-value."""
        score, half, _ = self.cells(metric)
        return f"{score} ± {half}{self.mark}" if half else score

    @property
    def mark(self) -> str:
        """Of a system that differs from the baseline."""
        return MARK if self.p is not None and self.p < SIGNIFICANT else ""


@dataclass(frozen=True)
class System:
    """Its scores by metric. ``missing`` rows stand as empty texts where they were not left out; ``empty`` counts both.

    ``run`` is how fast the run made its texts, where it is one of ours (see ``tasks.score.speed``).
    """

    missing: int
    empty: int
    scores: dict[str, Score]
    run: dict[str, Any] | None = None


@dataclass(frozen=True)
class Scores:
    """All of it, as it stands in ``final/scores.json``. ``baseline`` is the system that others are tested against."""

    rows: int
    resamples: int
    baseline: str | None
    signatures: dict[str, str]
    systems: dict[str, System]
    notes: dict[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def from_json(record: Mapping[str, Any]) -> Scores:
    """What ``as_json`` gave. Raises KeyError or TypeError for something else."""
    systems = {
        name: System(**{**system, "scores": {metric: Score(**score) for metric, score in system["scores"].items()}})
        for name, system in record["systems"].items()
    }
    return Scores(**{**record, "systems": systems})


def tested(systems: Mapping[str, Mapping[str, Scored]], baseline: str | None) -> dict[str, dict[str, Score]]:
    """Scores with their intervals, and the p-values against the baseline, where there is one, by system and metric."""
    result: dict[str, dict[str, Score]] = {}
    for name, by_metric in systems.items():
        result[name] = {}
        for metric, scored in by_metric.items():
            mean, half = scored.interval(baseline is not None) or (None, None)
            against = systems[baseline][metric] if baseline is not None and name != baseline else None
            result[name][metric] = Score(scored.score, mean, half, scored.p_value(against) if against else None)
    return result


def write(
    folder: Path,
    digest: str,
    scored: Mapping[str, Scored],
    rows: Mapping[str, Sequence[Statistics]],
    signatures: Mapping[str, str],
) -> None:
    """The results of one system; ``digest`` is that of its texts."""
    columns: dict[str, Any] = {}
    for name, statistics in rows.items():
        columns[name] = metrics.row_scores(KINDS[name].make([""], None), statistics)
        columns[f"{name}_statistics"] = statistics
    digests.write_table(pa.table(columns), folder / ROWS)
    digests.write_table(pa.table({name: one.resampled for name, one in scored.items()}), folder / RESAMPLED)
    totals = {name: one.score for name, one in scored.items()}
    write_json(folder / RESULT, {"digest": digest, "scores": totals, "signatures": dict(signatures)})


def read(folder: Path) -> dict[str, Scored]:
    """What ``write`` wrote, by metric. Raises OSError, ValueError, KeyError or Damaged where it is not whole."""
    table, _ = digests.read(folder / RESAMPLED, must_be_sealed=True)
    totals: dict[str, float] = json.loads((folder / RESULT).read_text("utf-8"))["scores"]
    return {name: Scored(total, table[name].to_numpy()) for name, total in totals.items()}


def signatures_of(folder: Path) -> dict[str, str]:
    """The signatures of one system's scores, by metric."""
    signatures: dict[str, str] = json.loads((folder / RESULT).read_text("utf-8"))["signatures"]
    return signatures


def faults(folder: Path, digest: str, rows: int, resamples: int) -> Iterator[str]:
    """What contradicts the plan, or itself, in the results of one system: scores are computed again from their rows."""
    try:
        result = json.loads((folder / RESULT).read_text("utf-8"))
        scored, (table, _) = read(folder), digests.read(folder / ROWS, must_be_sealed=True)
        statistics: dict[str, Any] = {name: table[f"{name}_statistics"].to_pylist() for name in scored}
        alone = {name: table[name].to_pylist() for name in scored}
    except (OSError, ValueError, KeyError, digests.Damaged) as error:
        yield f"cannot be read: {type(error).__name__}: {error}"
        return
    if result.get("digest") != digest:
        yield "it is of other texts"
    if table.num_rows != rows:
        yield f"it has {table.num_rows} rows, {rows} were planned"
        return
    for name, one in scored.items():
        metric = KINDS[name].make([""], None)
        if not math.isclose(metrics.scored(metric, statistics[name]).score, one.score, rel_tol=1e-9):
            yield f"{name}: {one.score} is not what its rows say"
        if metrics.row_scores(metric, statistics[name]) != alone[name]:
            yield f"{name}: its rows' scores are not what their statistics say"
        if len(one.resampled) != resamples or not all(map(math.isfinite, one.resampled)):
            yield f"{name}: {len(one.resampled)} of {resamples} scores over choices of rows, or some are not numbers"


def markdown(result: Scores) -> str:
    """The scores as a table for people, with signatures and counts."""
    labels = [KINDS[metric].label for metric in result.signatures]
    lines = [f"| system | {' | '.join(labels)} | missing | empty | output tokens/s |", "|---" * (len(labels) + 4) + "|"]
    for name, system in result.systems.items():
        cells = [score.shown(metric) for metric, score in system.scores.items()]
        speed = (system.run or {}).get("output_tokens_per_second")
        cells += [f"{system.missing:,}", f"{system.empty:,}", "" if speed is None else f"{speed:,.1f}"]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    lines += ["", f"{result.rows:,} rows. {said(result)}", ""]
    lines += [f"- {KINDS[metric].label}: `{signature}`" for metric, signature in result.signatures.items()]
    lines += [f"- {count:,} {note}" for note, count in result.notes.items()]
    return "\n".join([*lines, ""])


def said(result: Scores) -> str:
    """How intervals and marks are to be read."""
    if not result.resamples:
        return ""
    text = f"±: 95 % interval over {result.resamples:,} choices of rows, the same for all systems."
    if result.baseline is None:
        return text
    return f"{text} {MARK} differs from {result.baseline} (paired bootstrap test, p < {SIGNIFICANT})."
