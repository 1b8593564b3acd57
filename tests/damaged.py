"""Runs to damage: made once by the echo engine in this process, copied for each try; and ``hala`` without a process."""

import contextlib
import faulthandler
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest

from hala_hpc.cli import main as cli
from hala_hpc.pipeline import starting
from hala_hpc.slurm.record import Submission
from hala_hpc.worker.job import work_until
from tests.worker.helpers import plan, texts

ROWS, SHARD_ROWS = 30, 10


def hala(*words: object) -> tuple[int, str]:
    """Exit code and everything that was said. Raises whatever would be a traceback."""
    with (
        tempfile.TemporaryFile("w+") as said,  # a real file: workers hand it to faulthandler
        patch.object(sys, "argv", ["hala", *map(str, words)]),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        try:
            cli.main()
        except SystemExit as end:
            faulthandler.cancel_dump_traceback_later()
            said.seek(0)
            return int(end.code or 0), said.read()
    raise AssertionError("main always exits")


@pytest.fixture
def no_workers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Submitting starts nobody here: what a worker does with such a run is the command `worker`."""
    started: list[str] = []

    def start(run: Path, runs: object, workers: int = 1) -> list[object]:
        started.append(run.name)
        return [Submission("local", ["1"], workers)]

    monkeypatch.setattr(starting, "start", start)
    return started


def finished(folder: Path, name: str = "r", **engine: object) -> Path:
    """A run of three shards, done; rows 7, 17 and 27 failed, row 21 was cut off: they are in quarantine."""
    run = plan(folder, texts(ROWS), name, {"shard_rows": SHARD_ROWS}, fail_on="7", cut_on="text 21", **engine)
    work_until(run, lambda: False)
    return run


def unfinished(folder: Path, name: str = "u") -> Path:
    """A run of three shards of which one is done, another begun by a worker that is gone."""
    run = finished(folder, name)
    (run / "shards" / "000" / "000001.parquet").unlink()
    (run / "shards" / "000" / "000002.parquet").unlink()
    (run / "partial" / "000" / "000001.gone.jsonl").write_text('{"row": 10, "new": {"text_ar": "«text 10»"}}\n')
    (run / "leases" / "000" / "000001.1").touch()
    return run


def copied(run: Path, folder: Path) -> Path:
    """The same run at another place."""
    return Path(shutil.copytree(run, folder / run.name))


def flipped(path: Path, bit: int) -> None:
    """Turn one bit of a file over."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


Damage = Callable[[Path], None]


def _folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _unreadable(path: Path) -> None:
    """A link to itself: there, and not to be opened by root either, whom no mode keeps out."""
    path.unlink()
    path.symlink_to(path.name)


DAMAGES: dict[str, Damage] = {
    "unreadable": _unreadable,
    "emptied": lambda path: path.write_bytes(b"") and None,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]) and None,
    "removed": lambda path: path.unlink(),
    "a folder": _folder_instead,
    "junk": lambda path: path.write_bytes(bytes(range(256)) * 3) and None,
    "garbage after it": lambda path: path.write_bytes(path.read_bytes() + b"\xff{[") and None,
}
"""What may become of a file."""
