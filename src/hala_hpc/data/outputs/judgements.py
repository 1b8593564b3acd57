"""What judged rows add up to: verdicts by reason, and where good and bad rows are known, how well they are told apart.

A worker adds these columns to each row that it judges (``tasks.judge``), or a reason to each that it made and holds
against filters (``tasks.generate``); reports and cards count them.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from hala_hpc.config import frozen
from hala_hpc.config.errors import HalaError
from hala_hpc.data.columns import reach
from hala_hpc.data.schema import Row, to_rows
from hala_hpc.data.shards import ERROR, reason_of

SCORE: Final = "hala_judge"
"""Column: the score that a model gave a row, 0 to 1; null where none was asked, as for rows that rules rejected."""
VERDICT: Final = "hala_verdict"
"""Column: whether to ``keep`` the row, the ``reason`` if not, and what that rests on."""
FILTERED: Final = "hala_rejected"
"""Column: why filters reject the row, as ``reason: detail``; null where they do not."""
KEPT: Final = "kept"
REJECTED: Final = "rejected: "
"""Begins the names under which rows that are not kept are counted, before the reason."""
SCORED: Final = "score"
"""The reason of rows whose score is below the threshold; any other is the name of a rule."""


def label_of(row: Row, column: str) -> bool | None:
    """Whether a row is known to be good: true or 1, false or 0, None where nothing is known. Raises HalaError."""
    value = reach(row, column)
    if value is None or value in (0, 1):
        return None if value is None else bool(value)
    raise HalaError(
        f"task.label: column '{column}' holds {value!r}", "true or 1 for good rows, false or 0 for bad ones"
    )


def auc(good: Sequence[float], bad: Sequence[float]) -> float | None:
    """How likely a good row's score is above a bad one's, ties counted half; None where one of the two is missing.

    The area under the ROC curve by ranks, as the Mann-Whitney U (Hanley and McNeil, Radiology 143:29, 1982).
    """
    import numpy as np

    if not good or not bad:
        return None
    _, places, counts = np.unique(np.array([*good, *bad]), return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2  # ranks from 1 on; equal scores share the mean of theirs
    ranks = middle[places][: len(good)].sum()
    return float((ranks - len(good) * (len(good) + 1) / 2) / (len(good) * len(bad)))


@dataclass
class Judgements:
    """Counts over judged rows; ``label`` is the column that says which of them are known to be good or bad.

    ``reasons`` counts verdicts (``kept``, or why not), ``chosen`` the columns that had the best of several candidates,
    ``known`` the labelled rows as (good, kept), ``scored`` those that a model was asked about, ``mass`` the sum
    of the probabilities that it gave to verdicts.
    """

    label: str | None = None
    reasons: Counter[str] = field(default_factory=Counter)
    chosen: Counter[str] = field(default_factory=Counter)
    known: Counter[tuple[bool, bool]] = field(default_factory=Counter)
    scored: int = 0
    mass: float = 0.0
    _scores: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})

    @classmethod
    def of_run(cls, run: Path) -> "Judgements":
        """None yet, of the run at ``run``, whose recipe names the label. Raises HalaError."""
        return cls((frozen.read(run).get("task") or {}).get("label"))

    def add(self, table: pa.Table) -> None:
        """Count the rows of a table that are done; nothing where no run judged them."""
        if not self.columns(table.schema):
            return
        if ERROR in table.column_names:
            table = table.filter(pc.is_null(table[ERROR]))
        if VERDICT not in table.column_names:
            reasons: list[Any] = table[FILTERED].to_pylist()
            self.reasons.update(KEPT if reason is None else reason_of(reason) for reason in reasons)
            return
        for row in to_rows(table.select(self.columns(table.schema))):
            verdict: dict[str, Any] = row[VERDICT]
            self.reasons[KEPT if verdict["keep"] else verdict["reason"]] += 1
            if row[SCORE] is not None:
                self.scored += 1
                self.mass += verdict["mass"]
            self.chosen.update(filter(None, [verdict.get("chosen")]))
            good = label_of(row, self.label) if self.label else None
            if good is not None:
                self.known[good, verdict["keep"]] += 1
                # Below all scores where a rule rejected it; else, where no model was asked, above those.
                unscored = 0.0 if verdict["keep"] else -1.0
                self._scores[good].append(unscored if row[SCORE] is None else row[SCORE])

    def columns(self, schema: pa.Schema) -> list[str]:
        """The columns that are read of a table of this schema; none where no run judged its rows."""
        if VERDICT not in schema.names:
            return [FILTERED] if FILTERED in schema.names else []
        label = self.label and (self.label if self.label in schema.names else self.label.split(".")[0])
        return [SCORE, VERDICT, *([label] if label else [])]

    @property
    def auc(self) -> float | None:
        """Of the labelled rows, see ``auc``; rows that rules rejected are below all others."""
        return auc(self._scores[True], self._scores[False])

    def share(self, good: bool) -> float | None:
        """Of labelled rows: good ones that are kept, or bad ones that are rejected; None where there are none."""
        total = self.known[good, True] + self.known[good, False]
        return self.known[good, good] / total if total else None

    def at(self, threshold: float) -> tuple[float, float] | None:
        """Shares of good rows kept and of bad rows rejected, if that were the threshold.

        None where there are no good, no bad or no scored rows.
        """
        good, bad = self._scores[True], self._scores[False]
        if not (good and bad and self.scored):
            return None
        return sum(score >= threshold for score in good) / len(good), sum(score < threshold for score in bad) / len(bad)

    def facts(self) -> Iterator[tuple[str, str]]:
        """All of it in words, with its value."""
        if not self.reasons:
            return
        yield "kept", f"{self.reasons[KEPT]:,} of {self.reasons.total():,}"
        yield from ((f"{REJECTED}{why}", f"{count:,}") for why, count in self.reasons.most_common() if why != KEPT)
        yield from ((f"best: {column}", f"{count:,}") for column, count in self.chosen.most_common())
        if self.scored:
            yield "probability of a verdict, mean", f"{self.mass / self.scored:.4f} of {self.scored:,} rows"
        if self.known:
            good, bad = (sum(self.known[kind, keep] for keep in (True, False)) for kind in (True, False))
            yield "AUC", f"{_shown(self.auc)} ({good:,} good and {bad:,} bad rows, by `{self.label}`)"
            yield "good rows kept", _shown(self.share(good=True))
            yield "bad rows rejected", _shown(self.share(good=False))


def _shown(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.4f}"
