"""The history: one append-only JSONL file per worker. Losing it loses no finished work."""

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Ledger:
    """Appends events of one worker. Safe to call from its threads; never fsynced, for the output is the truth."""

    def __init__(self, path: Path, **constants: Any) -> None:
        """``constants`` (host, job, pid, …) are written once, with the first event."""
        path.parent.mkdir(exist_ok=True)
        self._file = path.open("ab", buffering=0)
        self._lock = threading.Lock()
        self.write("started", **constants)

    def write(self, event: str, **fields: Any) -> None:
        """Append one event. ``time`` is the writer's own clock: never compared with another host's."""
        line = json.dumps({"event": event, "time": round(time.time(), 3), **fields}, ensure_ascii=False)
        # A full disk must not keep a worker from giving its shards back: the history may have a gap.
        with self._lock, contextlib.suppress(OSError):
            self._file.write(line.encode() + b"\n")

    def close(self) -> None:
        self._file.close()


def read(path: Path, tail: int | None = None) -> Iterator[dict[str, Any]]:
    """Events of one file, oldest first; a torn line is passed over. ``tail``: only about the last so many bytes.

    None of a file that is gone, or that is a folder.
    """
    with contextlib.suppress(FileNotFoundError, IsADirectoryError), path.open("rb") as file:
        if tail is not None and (size := os.fstat(file.fileno()).st_size) > tail:
            file.seek(size - tail)
            file.readline()
        for line in file:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and isinstance(event.get("event"), str) and _is_time(event.get("time")):
                yield event


def first(path: Path) -> dict[str, Any]:
    """The opening event of a file: who wrote it. Empty where even that is torn."""
    try:
        with path.open("rb") as file:
            event = json.loads(file.readline())
    except (ValueError, FileNotFoundError, IsADirectoryError):
        return {}
    return event if isinstance(event, dict) else {}


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float)
