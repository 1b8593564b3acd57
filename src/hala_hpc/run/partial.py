"""Rows finished in an unfinished shard: what a killed worker leaves to the next.

Each worker appends to a file of its own, ``partial/<folder>/<shard>.<worker>.jsonl``, so there is never a second
writer; whoever takes the shard up reads all of them (see ``appending``).
"""

import base64
import json
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Required, TypedDict, cast

from hala_hpc.run import layout
from hala_hpc.run.appending import Appender, read_lines
from hala_hpc.run.files import remove
from hala_hpc.run.layout import RunDirectory

ROW: Final = "row"
"""Key of every record: the row's number in the run."""
TYPE = "hala:type"
"""Key of an object that stands for a value that JSON has no word for, named by its Python type, with ``value``."""


class Record(TypedDict, total=False):
    """What is kept of a row: its number, and what became of it."""

    row: Required[int]
    new: dict[str, Any]
    error: str
    begun: bool


class PartialFile(Appender):
    """Appends finished rows of one shard; what ``flush`` returned for is on the disk."""

    def __init__(self, run: RunDirectory, shard: int, worker: str) -> None:
        super().__init__(run.partial_folder(shard) / f"{shard:06d}.{worker}.jsonl")

    def add(self, record: Mapping[str, Any]) -> None:
        """Keep a record (see ``Record``) for the next flush."""
        self.add_line(json.dumps(_marked(record), ensure_ascii=False, default=_tagged))

    def _prepare(self) -> None:
        layout.make_again(self.path.parent)  # a purge of scratch removes folders that are empty


def read(run: RunDirectory, shard: int) -> dict[int, list[Record]]:
    """Records of all workers that were at this shard, by row."""
    by_row: dict[int, list[Record]] = {}
    for path in _files(run, shard, ".jsonl"):
        for record in read_lines(path, _untagged):
            if isinstance(record, dict) and isinstance(record.get(ROW), int):
                by_row.setdefault(record[ROW], []).append(cast("Record", record))
    return by_row


def drop(run: RunDirectory, shard: int) -> None:
    """Remove everything that was kept for a shard, unfinished outputs of dead workers included."""
    for path in _files(run, shard, ""):
        remove(path)


def temporary_output(run: RunDirectory, shard: int, worker: str) -> Path:
    """Where a worker builds a shard's output before it is published; swept away with the partial rows.

    The folder is made where it is gone, as a purge of scratch leaves it.
    """
    layout.make_again(run.partial_folder(shard))
    return run.partial_folder(shard) / f"{shard:06d}.{worker}.tmp{run.suffix}"


def kept_folder(run: RunDirectory, shard: int) -> Path:
    """What an attempt at an item leaves to the next; made by whoever holds the shard, dropped with its partial rows."""
    return run.partial_folder(shard) / f"{shard:06d}.kept"


def _files(run: RunDirectory, shard: int, suffix: str) -> list[Path]:
    prefix, folder = f"{shard:06d}.", run.partial_folder(shard)
    return sorted(folder / n for n in layout.listing(folder) if n.startswith(prefix) and n.endswith(suffix))


MICROSECOND: Final = timedelta(microseconds=1)
_TYPES: dict[type, tuple[Callable[[Any], str], Callable[[str], Any]]] = {
    datetime: (datetime.isoformat, datetime.fromisoformat),  # before date, of which it is a kind
    date: (date.isoformat, date.fromisoformat),
    time: (time.isoformat, time.fromisoformat),
    timedelta: (lambda value: str(value // MICROSECOND), lambda text: int(text) * MICROSECOND),
    Decimal: (str, Decimal),
    bytes: (lambda value: base64.b64encode(value).decode(), base64.b64decode),
}
_BY_NAME: dict[str, Callable[[Any], Any]] = {kind.__name__: decode for kind, (_, decode) in _TYPES.items()}
_BY_NAME |= {"tuple": tuple, "dict": dict}


def _marked(value: Any) -> Any:
    """A value with what JSON would take for something else marked: entries of maps, a row's own key ``hala:type``."""
    if isinstance(value, dict):
        inner = {key: _marked(part) for key, part in value.items()}
        return {TYPE: "dict", "value": list(inner.items())} if TYPE in inner else inner
    if isinstance(value, list):
        return [_marked(part) for part in value]
    if isinstance(value, tuple):  # pyarrow takes an entry of a map as a tuple only
        return {TYPE: "tuple", "value": [_marked(part) for part in value]}
    return value


def _tagged(value: Any) -> dict[str, str]:
    for kind, (encode, _) in _TYPES.items():
        if isinstance(value, kind):
            return {TYPE: kind.__name__, "value": encode(value)}
    raise TypeError(f"a {type(value).__name__} cannot be kept with a finished row")


def _untagged(value: Mapping[str, Any]) -> Any:
    return _BY_NAME[value[TYPE]](value["value"]) if value.get(TYPE) in _BY_NAME else value
