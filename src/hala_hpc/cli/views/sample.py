"""What ``hala sample`` shows: texts side by side, in a terminal that may show text from right to left, or may not.

Data reach the terminal as text only: control characters, which would move its cursor or colour it, and those that turn
the direction of what follows are shown by name. Each line of a text is isolated, so that it turns no other.
"""

import re
import unicodedata
from collections.abc import Iterator
from typing import Any, Final

import orjson
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from hala_hpc.config.errors import plural
from hala_hpc.data.outputs.chosen import Sample, SampledRow
from hala_hpc.data.outputs.judgements import FILTERED
from hala_hpc.data.outputs.pairs import pairs
from hala_hpc.data.schema import Row, plain
from hala_hpc.data.shards import ERROR, ROW
from hala_hpc.data.where import CHECKS, OURS
from hala_hpc.report.table import RIGHT_TO_LEFT

RIGHT_TO_LEFT_ISOLATE, FIRST_STRONG_ISOLATE, POP_ISOLATE = "\u2067", "\u2068", "\u2069"
LEAST_WIDTH: Final = 20
"""Cells of a column of texts, however narrow the terminal."""
BREAKS: Final = re.compile("\r\n|[\n\v\f\r\x1c-\x1e\x85\u2028\u2029]")
UNSEEN: Final = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufff9-\ufffb]")
"""Controls of terminals, and of the direction of text."""
ESCAPED: Final = re.compile("[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""What JSON leaves as it is and a terminal may not."""


def harmless(text: str) -> str:
    """A text whose lines end with a line feed alone, and in which nothing moves a cursor or turns other text."""
    return UNSEEN.sub(lambda match: f"<U+{ord(match[0]):04X}>", BREAKS.sub("\n", text).expandtabs(4))


def is_right_to_left(text: str) -> bool:
    """Whether most of its letters run from right to left."""
    kinds = [unicodedata.bidirectional(letter) for letter in text]
    return sum(kind in RIGHT_TO_LEFT for kind in kinds) > kinds.count("L")


def lines_of(text: str, width: int, console: Console) -> Text:
    """A text in lines of so many cells at most, each isolated; they stand at the right where it runs to the left."""
    safe = harmless(text)
    turned = is_right_to_left(safe)
    begin = RIGHT_TO_LEFT_ISOLATE if turned else FIRST_STRONG_ISOLATE
    lines = Text(safe).wrap(console, width, overflow="fold", no_wrap=False)
    isolated = (f"{begin}{line.plain.rstrip()}{POP_ISOLATE}" if line.plain.strip() else "" for line in lines)
    return Text("\n".join(isolated), justify="right" if turned else "left", no_wrap=True)


def shown(sample: Sample, suffix: str, console: Console) -> Iterator[object]:
    """The rows, each with where it is, what is known of it, and its texts beside their translations."""
    for sampled in sample.rows:
        yield Group(*row_lines(sampled, suffix, console))
    yield f"{plural(len(sample.rows), 'row')} of {sample.chosen:,} chosen among {sample.seen:,}"


def row_lines(sampled: SampledRow, suffix: str, console: Console) -> Iterator[Any]:
    """One row: where it is, what is known of it, and its texts beside their translations."""
    row = sampled.row
    head = Text(f"row {row[ROW]:,} (shard {sampled.shard})", style="bold")
    if row[ERROR] is not None:
        head.append(f"  {harmless(row[ERROR])}", style="red")
    if flags := (row.get(CHECKS) or {}).get("flags"):
        head.append(f"  {harmless(', '.join(flags))}", style="yellow")
    if rejected := row.get(FILTERED):
        head.append(f"  rejected: {harmless(rejected)}", style="yellow")
    yield head
    if numbers := harmless("  ".join(_numbers(row))):
        yield Text(numbers, style="dim")
    texts = list(pairs(row, sampled.table.schema, suffix))
    labels = [harmless(pair.role or pair.of) for pair in texts]
    named = min(max(map(len, labels), default=0), LEAST_WIDTH)
    width = max(LEAST_WIDTH, (console.width - named - 4) // 2)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(width=named, style="dim", overflow="fold")
    for _ in range(2):
        table.add_column(width=width, no_wrap=True)
    for label, pair in zip(labels, texts, strict=True):
        target = Text("–", style="red") if pair.target is None else lines_of(pair.target, width, console)
        table.add_row(label, lines_of(pair.source, width, console), target)
    yield table
    yield Text()


def _numbers(row: Row) -> Iterator[str]:
    """What tasks added of a row, but for its texts: the numbers of its checks, a judge's."""
    for name, value in row.items():
        if not name.startswith(OURS) or name in (ROW, ERROR):
            continue
        inner = value if isinstance(value, dict) else {name.removeprefix(OURS): value}
        for key, number in inner.items():
            if isinstance(number, int | float):
                yield f"{key} {number:.3g}" if isinstance(number, float) else f"{key} {number}"
            elif isinstance(number, str) and key == "rung":
                yield f"{key} {number}"


def as_line(sampled: SampledRow) -> str:
    """A row as a line of JSON; what a terminal may take for an order is escaped, which JSON knows."""
    content = {"shard": sampled.shard, "row": sampled.row}
    line = orjson.dumps(content, default=plain, option=orjson.OPT_NON_STR_KEYS).decode()
    return ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", line)
