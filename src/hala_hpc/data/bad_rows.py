"""Rows that cannot be taken: all of them named at once where they are refused, left out and counted where set aside."""

import re
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Literal

import orjson

from hala_hpc.config.errors import HalaError, plural

SET_ASIDE = "set_aside.jsonl"
"""In the run's folder: a line for each row that was set aside, with where it lies and why."""
SET_ASIDE_NOTE = "rows set aside"
"""How notes on them begin (see ``Facts.notes``)."""
LEFT_OUT = "rows left out by data.where"
HINT = "data.bad_rows=set_aside leaves such rows out and counts them"
NAMED = 5
"""So many bad rows are named where they are refused; the others are counted."""
MOST = 1_000
"""After so many a refusal waits for no more."""
REASONS = 20
"""So many reasons are counted apart."""


class BadRows:
    """What to do with rows that are broken or of another form.

    Parameters
    ----------
    policy : as ``data.bad_rows`` says.
    notes : where rows that are set aside, or mended, are counted (see ``Facts.notes``).
    folder : the run in the making, which keeps a list of what was set aside; None: no list.
    most : after so many a refusal waits for no more; 1 for those who take only the first rows they need.
    """

    def __init__(
        self,
        policy: Literal["refuse", "set_aside"] = "refuse",
        notes: Counter[str] | None = None,
        folder: Path | None = None,
        most: int = MOST,
    ) -> None:
        self.notes: Counter[str] = Counter() if notes is None else notes
        self.is_refusing = policy == "refuse"
        self.count = 0
        self._most = most
        self.by_source: Counter[str] = Counter()
        self._first: list[HalaError] = []
        self._reasons: set[str] = set()
        self._list = folder / SET_ASIDE if folder is not None else None

    def add(self, where: str, error: HalaError, source: str = "", position: int | None = None) -> None:
        """A bad row. Raises HalaError where they are refused, and there are many.

        Parameters
        ----------
        where : file and row, for people.
        source, position : where a worker must pass over it; not given for a row that is in no file of the run's.
        """
        self.count += 1
        if len(self._first) < NAMED:
            self._first.append(HalaError(f"{where}: {error.message}", error.hint))
        if self.is_refusing:
            if self.count == self._most:
                self.conclude(taken=1)
            return
        reason = re.sub(r"(?<![\w-])\d+\b", "N", error.message.split(":", 1)[0])
        if reason in self._reasons or len(self._reasons) < REASONS:
            self._reasons.add(reason)
        else:
            reason = "of other reasons"
        self.notes[f"{SET_ASIDE_NOTE}: {reason}"] += 1
        self._pass_over(source, position, where, error.message)

    def leave_out(self, source: str, position: int) -> None:
        """A row that is good, and that ``data.where`` does not want."""
        self.notes[LEFT_OUT] += 1
        self._pass_over(source, position, "", LEFT_OUT)

    def _pass_over(self, source: str, position: int | None, where: str, why: str) -> None:
        if position is not None:
            self.by_source[source] += 1
        if self._list is not None:
            line = {"source": source, "position": position, "where": where, "why": why}
            with self._list.open("ab") as file:
                file.write(orjson.dumps(line) + b"\n")

    def conclude(self, taken: int) -> None:
        """Raises HalaError where there are bad rows and they are refused, or no row but them."""
        if not self.count or (taken and not self.is_refusing):
            return
        hints = [self._first[0].hint, HINT if taken and self.is_refusing else ""]
        if self.count == 1:
            raise HalaError(self._first[0].message, "; or ".join(filter(None, hints)))
        more = f"; and {self.count - NAMED:,} more" if self.count > NAMED else ""
        count = f"{self.count:,}{' or more' if self.is_refusing and self.count == self._most else ''}"
        named = "; ".join(error.message for error in self._first)
        raise HalaError(f"{count} bad rows: {named}{more}", "; or ".join(filter(None, hints)))


def positions(run: Path, source: str, count: int) -> frozenset[int]:
    """The positions in a source of a planned run at which ``count`` rows were set aside.

    Raises HalaError where the list of them is damaged.
    """
    path = run / SET_ASIDE
    try:
        places = _positions(path, path.stat().st_mtime_ns, source) if count else frozenset()
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise HalaError(f"{path}: not readable: {why}", "it says which rows the run passes over") from error
    if len(places) != count:
        raise HalaError(f"{path}: names {plural(len(places), 'row')} of {source}, not {count}", "it was changed")
    return places


@lru_cache(maxsize=8)
def _positions(path: Path, written: int, source: str) -> frozenset[int]:
    """``written``: when it was, so that another list of the same run is read anew."""
    del written
    rows = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    return frozenset(row["position"] for row in rows if row["source"] == source and row["position"] is not None)
