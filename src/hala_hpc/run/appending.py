"""Files of JSON lines that one writer appends to, so that a worker killed in the middle loses seconds.

A torn last line is a record to be made again, nothing more.
"""

import contextlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

SECONDS: Final = 2.0
"""Between two writes of ``Answers`` to the disk: the most that a kill costs."""


class Appender:
    """Appends lines to a file of its own; what ``flush`` returned for is on the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pending: list[bytes] = []
        self._descriptor: int | None = None

    def add_line(self, line: str) -> None:
        """Keep a line for the next flush."""
        self._pending.append(line.encode() + b"\n")

    def flush(self) -> None:
        """Append what is pending and wait for the disk. Raises OSError; then the lines stay pending."""
        if not self._pending:
            return
        if self._descriptor is None:
            self._prepare()
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        # A newline first: an append that broke off (full disk) must not swallow the first record after it.
        data = memoryview(b"\n" + b"".join(self._pending))
        while data:
            data = data[os.write(self._descriptor, data) :]
        os.fsync(self._descriptor)
        self._pending.clear()

    def close(self) -> None:
        """Let go of the file. What is pending is not written."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _prepare(self) -> None:
        """Called before the file is opened."""


class Answers:
    """Answers of an engine, by key. Every process appends to a file of its own in ``folder``, and reads all at first.

    Without a folder they are kept in memory only.
    """

    def __init__(self, folder: Path | None) -> None:
        self._answers: dict[str, Any] = {}
        for path in sorted(folder.glob("*.jsonl")) if folder else ():
            for pair in read_lines(path):
                with contextlib.suppress(ValueError, TypeError):
                    key, answer = pair
                    self._answers[key] = answer
        self._file = Appender(folder / f"answers.{secrets.token_hex(6)}.jsonl") if folder else None
        self._written = time.monotonic()

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> Any:
        return self._answers[key]

    def add(self, key: str, answer: Any) -> None:
        """Keep an answer; it is on the disk some seconds later."""
        self._answers[key] = answer
        if self._file is not None:
            self._file.add_line(json.dumps([key, answer]))
        if time.monotonic() - self._written > SECONDS:
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
        with contextlib.suppress(ValueError, TypeError, KeyError, ArithmeticError):  # torn, or with a mark not ours
            yield json.loads(line, object_hook=decode)
