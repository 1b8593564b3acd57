"""What the two ends of each ledger say: of a thousand workers over days nobody reads all that is between.

A line of a ledger is only parsed where its first bytes, which our own writer made, say that it is wanted.
"""

import contextlib
import os
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from hala_hpc.run import ledger
from hala_hpc.run.ledger import Event

TAIL_BYTES: Final = 64 * 1024
"""How much of each ledger's end is read: enough for some minutes of progress and the last errors."""
ERRORS: Final = ("failed", "crashed", "unreachable")
SHARDS, ERRONEOUS = "published_shards", "published_errors"
"""Keys of a worker's sums over the shards that it published: how many, and the rows in quarantine in them."""
_ERRORS: Final = tuple(f'{{"event": "{name}", '.encode() for name in ERRORS)
_PUBLISHED: Final = re.compile(rb'{"event": "published", "time": ([0-9.]+), "shard": ([0-9]+),[^\n]*"errors": ([0-9]+)')
_PUBLISHED_LINE: Final = b'{"event": "published", '
SIDE_BY_SIDE: Final = 4
"""Lines that two threads of a worker may have written in another order than they counted."""
_TIME: Final = re.compile(rb'"time": ([0-9.]+)')
_COUNTS, _SUM = b'"output_tokens": ', f'"{ERRONEOUS}": '.encode()


@dataclass(frozen=True)
class Ending:
    """One ledger. ``opening`` is empty where it is no worker's.

    ``last`` holds the worker's last sums, and ``since`` the first ones within the window before (or the opening).
    ``published``: how many shards and how many rows in quarantine it published in all; None where it does not say.
    """

    file: Path
    opening: Event
    since: Event = field(default_factory=Event)
    last: Event = field(default_factory=Event)
    errors: Sequence[Event] = ()
    published: tuple[int, int] | None = None


def read(folder: Path, window: float) -> Iterator[Ending]:
    """All ledgers of a folder by name; ``window``: seconds before a worker's last sums."""
    return (_ending(path, window) for path in sorted(folder.glob("*.jsonl")))


def published(file: Path) -> Iterator[tuple[int, float, int]]:
    """Shard, time and rows in quarantine of all that one ledger says was published: it is read whole."""
    with contextlib.suppress(FileNotFoundError, IsADirectoryError):
        for match in _PUBLISHED.finditer(file.read_bytes()):  # other lines are not parsed
            yield int(match[2]), float(match[1]), int(match[3])


def _ending(file: Path, window: float) -> Ending:
    opening, lines, is_whole = _ends(file)
    counts = [line for line in lines if _COUNTS in line and line.endswith(b"}\n")]
    last = next(ledger.parsed(counts[-1:]), Event())
    since = opening
    if last:
        first = bisect_left(counts, float(last["time"]) - window, key=_time)
        since = next(ledger.parsed(counts[first : first + 1] if first < len(counts) - 1 else ()), opening)
    sums = ledger.parsed([line for line in lines if _SUM in line][-SIDE_BY_SIDE:])
    known: list[tuple[int, int]] = [
        (event.get("published_shards", 0), event.get("published_errors", 0)) for event in sums
    ]
    if "host" not in opening or (is_whole and not any(line.startswith(_PUBLISHED_LINE) for line in lines)):
        known.append((0, 0))
    return Ending(
        file=file,
        opening=opening if "host" in opening else Event(),
        since=since,
        last=last,
        errors=tuple(ledger.parsed(line for line in lines if line.startswith(_ERRORS))),
        published=max(known, default=None),
    )


def _ends(file: Path) -> tuple[Event, list[bytes], bool]:
    """The first event and the last lines of a ledger, and whether these are all."""
    with contextlib.suppress(FileNotFoundError, IsADirectoryError), file.open("rb") as content:
        opening_line = content.readline()
        size = os.fstat(content.fileno()).st_size
        if size > TAIL_BYTES:
            content.seek(size - TAIL_BYTES)
            content.readline()
        opening = next(ledger.parsed([opening_line]), Event())
        first = [] if opening or size > TAIL_BYTES else [opening_line]
        return opening, first + content.readlines(), size <= TAIL_BYTES
    return Event(), [], True


def _time(line: bytes) -> float:
    return float(time[1]) if (time := _TIME.search(line)) else 0.0
