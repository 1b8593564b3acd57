"""Scores of several systems on the same rows, with intervals and paired tests: as data, and as lines for people."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from hala_hpc.text import metrics
from hala_hpc.text.metrics import KINDS, Scored

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
        p = "" if self.p is None else f"{self.p:.4f}{MARK if self.p < SIGNIFICANT else ' '}"
        return f"{self.score:.{digits}f}", half, p


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


def signatures(wanted: Sequence[str], resamples: int, has_sources: bool) -> dict[str, str]:
    """What the scores depend on besides the texts, by metric."""
    made = {name: KINDS[name].make([""], [""] if has_sources else None) for name in wanted}
    return {name: metrics.signature(metric, resamples) for name, metric in made.items()}
