"""What the rows of a dataset will come to, counted while they are planned: which are used, dropped and why; tokens."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:  # status reads this too, and has no need of what they import
    from hala_hpc.run.manifest import Facts
    from hala_hpc.tasks.train.prepare.token_file import Tokens

FIRST, EVERY = 500, 50
"""Rows that are tokenized for the estimate of tokens alone: the first of them, then each so-and-so-many-th (ours)."""
LOUD: Final = 0.2
"""A training that leaves out more than this share of a dataset's rows is told of so in red (ours)."""


@dataclass
class Expected:
    """Counts of rows are exact; ``tokens`` are where ``is_exact``. ``dropped`` is by reason."""

    rows: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    truncated: int = 0
    tokens: int = 0
    is_exact: bool = True

    @property
    def used(self) -> int:
        """Rows that the training will see."""
        return self.rows - sum(self.dropped.values())

    @property
    def is_loud(self) -> bool:
        """Whether so much is dropped that nobody should overlook it."""
        return self.used < (1 - LOUD) * self.rows


class Tally:
    """Counts rows as they are read. ``most`` is a row's upper bound of tokens: what is not measured goes by it."""

    def __init__(self) -> None:
        self.rows = 0
        self.dropped: Counter[str] = Counter()
        self._truncated = self._measured = 0
        self._sampled = [0, 0]  # tokens and bounds of rows that stand for the others
        self._unmeasured = 0  # bounds of the others

    @property
    def is_sample(self) -> bool:
        """Whether the row that was counted last is to be measured for the estimate."""
        return self.rows <= FIRST or self.rows % EVERY == 0

    def measured(self, pieces: "list[Tokens]", most: int) -> None:
        """A row that was tokenized."""
        tokens = sum(len(piece.ids) for piece in pieces)
        self._measured += tokens
        self._truncated += any(piece.truncated for piece in pieces)
        if self.is_sample:
            self._sampled[0] += tokens
            self._sampled[1] += most

    def unmeasured(self, most: int) -> None:
        """A row that was not."""
        self._unmeasured += most

    def expected(self) -> Expected:
        """The sum."""
        rate = self._sampled[0] / self._sampled[1] if self._sampled[1] else 0.25
        tokens = self._measured + round(rate * self._unmeasured)
        return Expected(self.rows, dict(self.dropped), self._truncated, tokens, not self._unmeasured)


def of(facts: "Facts") -> Expected:
    """As a manifest keeps it; of a run that was planned before it did, what it tells instead."""
    if facts.expected:
        return Expected(**facts.expected)
    return Expected(facts.rows, tokens=facts.tokens, is_exact=False)


def of_runs(runs: Iterable[tuple[str, Path]]) -> list[dict[str, Any]]:
    """Of each dataset, given with the run that makes its tokens: name, rows, and what they will come to."""
    from hala_hpc.run import manifest

    found = []
    for name, run in runs:
        facts = manifest.read(run / "manifest.parquet").facts
        one = of(facts)
        sources = [source["original"] for source in facts.sources]
        found.append({"name": name, **asdict(one), "used": one.used, "is_loud": one.is_loud, "sources": sources})
    return found


def loud(datasets: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each dataset of which a large part is dropped."""
    return [
        f"dataset {each['name']}: only {each['used']:,} of {each['rows']:,} rows are used ({reasons(each)})"
        for each in datasets
        if each["is_loud"]
    ]


def reasons(each: Mapping[str, Any]) -> str:
    """Why rows of a dataset are dropped or cut, with counts."""
    parts = [f"{count:,} {reason}" for reason, count in sorted(each["dropped"].items())]
    return ", ".join([*parts, *([f"{each['truncated']:,} truncated"] if each["truncated"] else [])])
