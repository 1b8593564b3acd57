"""What the rows of a dataset will come to, counted while they are planned: which are used, dropped and why; tokens."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypedDict

if TYPE_CHECKING:  # status reads this too, and has no need of what they import
    from hala_hpc.run.manifest import Facts
    from hala_hpc.tasks.train.prepare.tokens import Tokens

FIRST, EVERY = 500, 50
"""Rows that are tokenized for the estimate of tokens alone: so many at the start, then one in so many (ours)."""
LOUD: Final = 0.2
"""A plan says in red that a training leaves out more than this share of a dataset's rows (ours)."""


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

    def add(self, most: int, pieces: "list[Tokens] | None" = None) -> None:
        """A row by its bound of tokens, and by its pieces where it was tokenized."""
        if pieces is None:
            self._unmeasured += most
            return
        tokens = sum(len(piece.ids) for piece in pieces)
        self._measured += tokens
        self._truncated += any(piece.truncated for piece in pieces)
        if self.is_sample:
            self._sampled[0] += tokens
            self._sampled[1] += most

    def expected(self) -> Expected:
        """The sum."""
        rate = self._sampled[0] / self._sampled[1] if self._sampled[1] else 0.25
        tokens = self._measured + round(rate * self._unmeasured)
        return Expected(self.rows, dict(self.dropped), self._truncated, tokens, not self._unmeasured)


def of(facts: "Facts") -> Expected:
    """What a manifest expects; for a run planned before manifests held it, the next best."""
    if facts.expected:
        return Expected(**facts.expected)
    return Expected(facts.rows, tokens=facts.tokens, is_exact=False)


class ExpectedDataset(TypedDict):
    """One dataset of a training: the fields of ``Expected``, and where its rows come from."""

    name: str
    rows: int
    dropped: dict[str, int]
    truncated: int
    tokens: int
    is_exact: bool
    used: int
    is_loud: bool
    sources: list[str]


def of_runs(runs: Iterable[tuple[str, Path]]) -> list[ExpectedDataset]:
    """What the datasets will come to, each given by its name and the run that makes its tokens."""
    from hala_hpc.run import manifest

    datasets: list[ExpectedDataset] = []
    for name, run in runs:
        facts = manifest.read(run / "manifest.parquet").facts
        rows = of(facts)
        sources = [source["original"] for source in facts.sources]
        more = {"used": rows.used, "is_loud": rows.is_loud, "sources": sources}
        datasets.append({"name": name, **asdict(rows), **more})  # type: ignore[typeddict-item]
    return datasets


def loud(datasets: Sequence[ExpectedDataset]) -> list[str]:
    """A line for each dataset of which a large part is dropped."""
    return [
        f"dataset {rows['name']}: only {rows['used']:,} of {rows['rows']:,} rows are used ({reasons(rows)})"
        for rows in datasets
        if rows["is_loud"]
    ]


def reasons(dataset: Mapping[str, Any]) -> str:
    """Why rows of a dataset are dropped or cut, with counts."""
    parts = [f"{count:,} {reason}" for reason, count in sorted(dataset["dropped"].items())]
    return ", ".join([*parts, *([f"{dataset['truncated']:,} truncated"] if dataset["truncated"] else [])])
