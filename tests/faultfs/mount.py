"""Mounts the file system for a test, tells it to fail, and reads its journal."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.faultfs import FAULTS, MARK


@dataclass(frozen=True)
class Mounted:
    """A mounted file system. ``journal`` is its journal, outside of it."""

    path: Path
    journal: Path

    def mark(self, **what: Any) -> None:
        """Note in the journal what is said to be durable from now on."""
        (self.path / MARK).write_text(json.dumps(what))

    def fail(self, *ops: str, **fault: Any) -> None:
        """Have operations fail from now on (see ``server.Fault``), in place of those before."""
        (self.path / FAULTS).write_text(json.dumps([{"ops": ops, **fault}]))

    def heal(self) -> None:
        """No more faults."""
        (self.path / FAULTS).write_text("[]")


@contextmanager
def mounted(folder: Path) -> Iterator[Mounted]:
    """The file system at ``folder/disk``. Skips the test where this machine cannot have it, and says why."""
    if not Path("/dev/fuse").exists():
        pytest.skip("no /dev/fuse on this machine, so no file system of our own")
    if shutil.which("fusermount3") is None:
        pytest.skip("no fusermount3 on this machine (Debian package fuse3)")
    disk = Mounted(folder / "disk", folder / "journal.jsonl")
    disk.path.mkdir()
    command = [sys.executable, "-m", "tests.faultfs.server", str(disk.path), str(disk.journal)]
    server = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 20
        while not disk.path.is_mount():
            if server.poll() is not None or time.monotonic() > deadline:
                server.kill()
                _, said = server.communicate()
                pytest.skip(f"FUSE cannot be mounted here: {said.strip() or 'no answer in 20 s'}")
            time.sleep(0.02)
        yield disk
    finally:
        subprocess.run(["fusermount3", "-u", "-z", str(disk.path)], check=False, capture_output=True)
        server.terminate()
        server.communicate()
