"""The history: one append-only JSONL file per worker. Losing it loses no finished work."""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

_PROGRESS = b'{"event": "progress", '


class Event(TypedDict, total=False):
    """One line of a ledger. Each has an event and a time; the first says who wrote it, the rest depends on it."""

    event: str
    time: float
    host: str
    job: str
    executor: str
    pid: int
    part_of: str  # the worker of which the writer is a process
    shard: int
    shards: list[int]
    error: str
    node: str
    outcome: str
    rows: int  # this and the next: sums since the worker's start
    quarantined: int
    prompt_tokens: int
    output_tokens: int
    busy: float  # seconds since the worker's start in which it had work: requests with the engine, or an item
    working_on: dict[str, int]
    doing: str
    attempt: int  # this and the next: of a shard; rows that stood when it was claimed, and when that ended
    taken_up: int
    done: int
    errors: int
    published_shards: int  # this and the next: sums over what the worker published
    published_errors: int
    gpus_given: int  # this and the next two: of an opening, what Slurm gave the job on each node, and since when
    nodes_given: int
    allocated: float
    life: int  # of an opening: which worker in its job's allocation the writer is, where killed ones start again
    token: str  # this and the next: of a submission
    runs: list[str]
    minutes: int | None
    jobs: list[str]
    workers: int
    on: str
    gpus: list[list[int]]
    by: str  # this and the next: of who decided about workers (see ``run.decisions``)
    action: str
    reason: str
    hint: str
    changes: list[str]
    after: list[str]
    standing: dict[str, int]
    arrays: int
    stage: str  # this and the next three: of a pipeline's stage, see ``pipeline.survey.Version``
    key: dict[str, Any]
    version: str
    answer: dict[str, Any]


Tell = Callable[[str, Mapping[str, Any]], None]


class Ledger:
    """Appends events of one worker. Safe to call from its threads; never fsynced, for the output is the truth."""

    def __init__(self, path: Path, *, tell: Tell | None = None, **constants: Any) -> None:
        """``constants`` (host, job, pid, …) are written once, with the first event. ``tell`` hears of each event."""
        self._tell = tell
        path.parent.mkdir(exist_ok=True)
        self._file = path.open("ab", buffering=0)
        self._lock = threading.Lock()
        self.write("started", **constants)

    def write(self, event: str, **fields: Any) -> None:
        """Append one event. ``time`` is the writer's own clock: never compared with another host's."""
        # A full disk must not keep a worker from giving its shards back: the history may have a gap.
        with self._lock, contextlib.suppress(OSError):
            self._file.write(line(event, fields))
        if self._tell is not None:
            self._tell(event, fields)

    def close(self) -> None:
        self._file.close()


def line(event: str, fields: Mapping[str, Any]) -> bytes:
    """An event as it stands in a ledger."""
    content = {"event": event, "time": round(time.time(), 3), **fields}
    return json.dumps(content, ensure_ascii=False).encode() + b"\n"


def read(path: Path, tail: int | None = None, only: Sequence[str] = ()) -> Iterator[Event]:
    """Events of one file, oldest first; a torn line is passed over. ``tail``: only about the last so many bytes.

    ``only``: events of these names; the lines of others are not parsed. Yields nothing for a file that is gone, or that
    is a folder.
    """
    with contextlib.suppress(FileNotFoundError, IsADirectoryError), path.open("rb") as file:
        if tail is not None and (size := os.fstat(file.fileno()).st_size) > tail:
            file.seek(size - tail)
            file.readline()
        wanted = tuple(f'{{"event": "{name}", '.encode() for name in only)
        yield from parsed(file if not only else (content for content in file if content.startswith(wanted)))


def parsed(lines: Iterable[bytes]) -> Iterator[Event]:
    """The events in lines of a ledger; torn lines are passed over."""
    for content in lines:
        with contextlib.suppress(ValueError):
            event = json.loads(content)
            whole = isinstance(event, dict) and isinstance(event.get("event"), str)
            if whole and isinstance(event.get("time"), int | float):
                yield cast("Event", event)


def landmarks(path: Path) -> Iterator[Event]:
    """Events of one file, oldest first, but of its many ``progress`` only the last, which comes at the end."""
    last = b""
    with contextlib.suppress(FileNotFoundError, IsADirectoryError), path.open("rb") as file:
        for content in file:
            if not content.startswith(_PROGRESS):
                yield from parsed([content])
            elif content.endswith(b"}\n"):
                last = content
    yield from parsed([last])


def first(path: Path) -> Event:
    """The opening event of a file: who wrote it. Empty where even that is torn."""
    with contextlib.suppress(ValueError, FileNotFoundError, IsADirectoryError), path.open("rb") as file:
        event = json.loads(file.readline())
        return cast("Event", event) if isinstance(event, dict) else {}
    return {}


def openings(folder: Path) -> Iterator[tuple[Path, Event]]:
    """The ledgers of workers in a folder, each with its opening event; other ledgers are passed over."""
    files = ((path, first(path)) for path in sorted(folder.glob("*.jsonl")))
    return ((path, opening) for path, opening in files if "host" in opening)


def counts(events: Iterable[Event]) -> list[Event]:
    """Those of a worker's events that hold its sums."""
    return [event for event in events if "rows" in event and "output_tokens" in event]


def tokens(event: Event) -> int:
    """All tokens that a worker had worked on by then."""
    return event.get("prompt_tokens", 0) + event.get("output_tokens", 0)
