"""The table of a mix: for each source its rows, those left out by reason, and what was written of the others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from hala_hpc.run.files import read_json
from hala_hpc.run.manifest import Facts

REPORT: Final = "report.json"
"""In RUN/final: the table and what it was made with."""
EXAMPLES: Final = "examples"
"""Column, in a plan: rows that give an example, before duplicates and sampling."""
Line = Mapping[str, str | int]
"""A source's line, by column."""


@dataclass(frozen=True)
class Counts:
    """Of one source. ``left`` counts rows that gave no example, by reason; ``taken`` examples, ``written`` rows."""

    source: str
    rows: int
    left: Mapping[str, int] = field(default_factory=dict)
    exact_duplicates: int = 0
    near_duplicates: int = 0
    not_drawn: int = 0
    taken: int = 0
    written: int = 0

    def line(self) -> dict[str, str | int]:
        """As the table has it."""
        return {
            "source": self.source,
            "rows": self.rows,
            **self.left,
            "exact duplicates": self.exact_duplicates,
            "near duplicates": self.near_duplicates,
            "not drawn": self.not_drawn,
            "taken": self.taken,
            "written": self.written,
        }


def columns(lines: Sequence[Line]) -> list[str]:
    """All columns, those of reasons after the rows."""
    names = dict.fromkeys(name for line in lines for name in line)
    ends = [name for name in (*Counts("", 0).line(), EXAMPLES) if name in names]
    return [*ends[:2], *(name for name in names if name not in ends), *ends[2:]]


def total(lines: Sequence[Line]) -> dict[str, str | int]:
    """The sums of all sources."""
    sums: dict[str, str | int] = {
        name: sum(int(line.get(name, 0)) for line in lines) for name in columns(lines) if name != "source"
    }
    return {"source": "all", **sums}


def read(folder: Path) -> list[Line]:
    """The table of a mix in its folder (RUN/final, or what was collected of it); empty where there is none."""
    report = read_json(folder / REPORT)
    return list(report["sources"]) if report.get("kind") == "mix" else []


def planned(facts: Facts) -> list[Line]:
    """What is known of each source before anything is done: its rows, those that give no example, and the examples."""
    sources = facts.expected["sources"].items()
    return [
        {"source": name, "rows": known["rows"], **known["left"], EXAMPLES: known["rows"] - sum(known["left"].values())}
        for name, known in sources
    ]
