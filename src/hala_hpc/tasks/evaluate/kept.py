"""Answers that an engine has given, kept line by line, so that a worker killed in the middle loses seconds."""

import json
import os
import secrets
import time
from pathlib import Path
from typing import Any, Final

SECONDS: Final = 2.0
"""Between two writes to the disk: the most that a kill costs."""


class Kept:
    """Answers by key. Every process appends to a file of its own in ``folder`` and reads those of all before it.

    Without a folder they are kept in memory only.
    """

    def __init__(self, folder: Path | None) -> None:
        self._answers: dict[str, Any] = {}
        for path in sorted(folder.glob("*.jsonl")) if folder else ():
            for line in path.read_bytes().splitlines():
                try:
                    key, answer = json.loads(line)
                    self._answers[key] = answer
                except (ValueError, TypeError):  # a torn line is an answer to be asked for again
                    continue
        self._path = folder / f"answers.{secrets.token_hex(6)}.jsonl" if folder else None
        self._pending: list[bytes] = []
        self._descriptor: int | None = None
        self._written = time.monotonic()

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> Any:
        return self._answers[key]

    def add(self, key: str, answer: Any) -> None:
        """Keep an answer; it is on the disk some seconds later."""
        self._answers[key] = answer
        self._pending.append(json.dumps([key, answer]).encode() + b"\n")
        if time.monotonic() - self._written > SECONDS:
            self.flush()

    def flush(self) -> None:
        """Have all answers on the disk. Raises OSError."""
        self._written = time.monotonic()
        if not self._pending or self._path is None:
            self._pending.clear()
            return
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        data = memoryview(b"\n" + b"".join(self._pending))  # a newline first: the last append may have broken off
        while data:
            data = data[os.write(self._descriptor, data) :]
        os.fsync(self._descriptor)
        self._pending.clear()

    def close(self) -> None:
        """Write what is pending and let go of the file."""
        try:
            self.flush()
        finally:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None
