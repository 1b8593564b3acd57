"""What a report is made of, before it is written in any format."""

import unicodedata
from dataclasses import dataclass, field
from typing import Final

from hala_hpc.report.page.plots import Plot
from hala_hpc.report.page.table import Table

RIGHT_TO_LEFT: Final = ("R", "AL", "AN")
"""Unicode's classes of letters and digits that run from right to left."""


def isolated(name: str) -> str:
    """A name in a sentence: one from right to left does not turn the sentence's own direction (Unicode's isolates)."""
    is_turned = any(unicodedata.bidirectional(letter) in RIGHT_TO_LEFT for letter in name)
    return f"\u2068{name}\u2069" if is_turned else name


@dataclass(frozen=True)
class Example:
    """Something shown as it is: named texts, each in the direction of its own script."""

    title: str
    texts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Section:
    """One part of the page. ``name`` is unique, and safe as a file's name and an anchor."""

    name: str
    title: str
    text: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True)
class Report:
    """The whole. ``made`` says when and by which version."""

    title: str
    made: str
    sections: tuple[Section, ...] = field(default=())

    @property
    def tables(self) -> list[Table]:
        return [table for section in self.sections for table in section.tables]

    @property
    def plots(self) -> list[Plot]:
        return [plot for section in self.sections for plot in section.plots]
