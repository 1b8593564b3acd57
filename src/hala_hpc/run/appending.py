"""Files of JSON lines that one writer appends to, so that a worker killed in the middle loses seconds.

A torn last line is a record to be made again, nothing more, and so is one whose checksum says that a disk changed it:
after the JSON, which has no tab of its own, come a tab and the CRC-32 of what is before it, eight hexadecimal digits.
Lines that were written before there were checksums have none. The rows of an unfinished shard stand in
``partial/<folder>/<shard>.<worker>.jsonl``, a file for each worker, so that there is never a second writer; whoever
takes the shard up reads all of them.
"""

import base64
import contextlib
import json
import os
import secrets
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime, timedelta
from datetime import time as time_of_day
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Required, TypedDict, cast

from hala_hpc.run import layout
from hala_hpc.run.files import fsync, make_again, remove
from hala_hpc.run.layout import RunDirectory


class Appender:
    """Appends lines to a file of its own; what ``flush`` returned for is on the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pending: list[bytes] = []
        self._descriptor: int | None = None

    def add_line(self, line: str) -> None:
        """Keep a line of JSON for the next flush."""
        data = line.encode()
        self._pending.append(b"%b\t%08x\n" % (data, zlib.crc32(data)))

    def flush(self) -> None:
        """Append what is pending and wait for the disk. Raises OSError; then the lines stay pending.

        All of them are then written again, into the file as it is opened anew: after an fsync that failed, another one
        says nothing of what the first should have written.
        """
        if not self._pending:
            return
        try:
            self._append()
        except OSError:
            self.close()
            raise
        self._pending.clear()

    def _append(self) -> None:
        is_first = self._descriptor is None
        if self._descriptor is None:
            self._prepare()
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        # A newline first: an append that broke off (full disk) must not swallow the first record after it.
        data = memoryview(b"\n" + b"".join(self._pending))
        while data:
            data = data[os.write(self._descriptor, data) :]
        os.fsync(self._descriptor)
        if is_first:
            fsync(self.path.parent)  # else a power cut takes the file's name, and with it all rows

    def close(self) -> None:
        """Let go of the file. What is pending is not written."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(OSError):  # what counts was fsynced
                os.close(descriptor)

    def _prepare(self) -> None:
        """Called before the file is opened."""


class Answers:
    """Answers of an engine, by key. Every process appends to a file of its own in ``folder``, and reads all at first.

    Without a folder they are kept in memory only. They are written every ``flush_seconds``: the most that a kill costs.
    """

    def __init__(self, folder: Path | None, flush_seconds: float = 2.0) -> None:
        self._answers: dict[str, Any] = {}
        for path in sorted(folder.glob("*.jsonl")) if folder else ():
            for pair in read_lines(path):
                with contextlib.suppress(ValueError, TypeError):
                    key, answer = pair
                    self._answers[key] = answer
        self._file = Appender(folder / f"answers.{secrets.token_hex(6)}.jsonl") if folder else None
        self._written, self._flush_seconds = time.monotonic(), flush_seconds

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> Any:
        return self._answers[key]

    def add(self, key: str, answer: Any) -> None:
        """Keep an answer; it is on the disk some seconds later."""
        self._answers[key] = answer
        if self._file is not None:
            self._file.add_line(json.dumps([key, answer]))
        if time.monotonic() - self._written >= self._flush_seconds:
            self.flush()

    def flush(self) -> None:
        """Have all answers on the disk. Raises OSError."""
        self._written = time.monotonic()
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Write what is pending and let go of the file."""
        try:
            self.flush()
        finally:
            if self._file is not None:
                self._file.close()


def read_lines(path: Path, decode: Callable[[dict[str, Any]], Any] | None = None) -> Iterator[Any]:
    """What the whole lines of a file hold; ``decode`` may replace each JSON object in them, as ``json.loads`` does.

    Yields nothing for a file that is gone, or that is a folder.
    """
    try:
        lines = path.read_bytes().splitlines()
    except (FileNotFoundError, IsADirectoryError):  # published this moment by another worker, or not a file of ours
        return
    for line in lines:
        data, tab, checksum = line.partition(b"\t")
        if tab and checksum != b"%08x" % zlib.crc32(data):
            continue
        with contextlib.suppress(ValueError, TypeError, KeyError, ArithmeticError):  # torn, or with a mark not ours
            yield json.loads(data, object_hook=decode)


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
        make_again(self.path.parent)  # a purge of scratch removes folders that are empty


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
    make_again(run.partial_folder(shard))
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
    time_of_day: (time_of_day.isoformat, time_of_day.fromisoformat),
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
