"""The table of a mix: its sources, and what became of their rows."""

from collections.abc import Sequence

from rich.table import Table

from hala_hpc.cli import common
from hala_hpc.tasks.mix import counts
from hala_hpc.tasks.mix.counts import Line


def table(lines: Sequence[Line]) -> Table:
    """A line for each source, and their sums."""
    names = counts.columns(lines)
    shown = common.table(*names)
    for line in [*lines, counts.total(lines)]:
        values = (line.get(name, 0) for name in names)
        shown.add_row(*(value if isinstance(value, str) else f"{value:,}" for value in values))
    return shown
