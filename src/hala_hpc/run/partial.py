"""Rows finished in an unfinished shard: what a killed worker leaves to the next.

Each worker appends to a file of its own, ``partial/<folder>/<shard>.<worker>.jsonl``, so there is never a second
writer; whoever takes the shard up reads all of them. A torn last line is a row to be done again, nothing more.
"""

import base64
import json
import os
from collections.abc import Callable, Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from hala_hpc.run import layout
from hala_hpc.run.files import remove
from hala_hpc.run.layout import RunDirectory

ROW = "row"
"""Key of every record: the row's number in the run."""
TYPE = "hala:type"
"""Key of an object that stands for a value that JSON has no word for, named by its Python type, with ``value``."""


class PartialFile:
    """Appends finished rows of one shard; what ``flush`` returned for is on the disk."""

    def __init__(self, run: RunDirectory, shard: int, worker: str) -> None:
        self.path = run.partial_folder(shard) / f"{shard:06d}.{worker}.jsonl"
        self._pending: list[bytes] = []
        self._descriptor: int | None = None

    def add(self, record: dict[str, Any]) -> None:
        """Keep a record for the next flush."""
        self._pending.append(json.dumps(_marked(record), ensure_ascii=False, default=_tagged).encode() + b"\n")

    def flush(self) -> None:
        """Append what is pending and wait for the disk. Raises OSError; then the records stay pending."""
        if not self._pending:
            return
        if self._descriptor is None:
            layout.make_again(self.path.parent)  # a purge of scratch removes folders that are empty
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        # A newline first: an append that broke off (full disk) must not swallow the first record after it.
        data = memoryview(b"\n" + b"".join(self._pending))
        while data:
            data = data[os.write(self._descriptor, data) :]
        os.fsync(self._descriptor)
        self._pending.clear()

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def read(run: RunDirectory, shard: int) -> dict[int, list[dict[str, Any]]]:
    """Records of all workers that were at this shard, by row."""
    found: dict[int, list[dict[str, Any]]] = {}
    for path in _files(run, shard, ".jsonl"):
        for record in _records(path):
            found.setdefault(record[ROW], []).append(record)
    return found


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


def _records(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_bytes().splitlines()
    except (FileNotFoundError, IsADirectoryError):  # published this moment by another worker, or none of ours
        return
    for line in lines:
        try:
            record = json.loads(line, object_hook=_untagged)
        except (ValueError, TypeError, KeyError, ArithmeticError):  # torn, or with a mark that is none of ours
            continue
        if isinstance(record, dict) and isinstance(record.get(ROW), int):
            yield record


_TYPES: dict[type, tuple[Callable[[Any], str], Callable[[str], Any]]] = {
    datetime: (datetime.isoformat, datetime.fromisoformat),  # before date, of which it is a kind
    date: (date.isoformat, date.fromisoformat),
    time: (time.isoformat, time.fromisoformat),
    timedelta: (
        lambda value: str(value // timedelta(microseconds=1)),
        lambda text: timedelta(microseconds=int(text)),
    ),
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


def _untagged(found: dict[str, Any]) -> Any:
    return _BY_NAME[found[TYPE]](found["value"]) if found.get(TYPE) in _BY_NAME else found
