"""The pytest fixture ``cluster``: import it in tests/conftest.py, and there only (each import is a cluster more)."""

import os
import shutil
from collections.abc import Iterator

import pytest

from .cluster import Cluster, missing


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster with accounting for the whole session; MINISLURM_KEEP=1 keeps its directory, with the logs."""
    if reason := missing():
        pytest.skip(f"no Slurm: {reason}")
    slurm = Cluster().start()
    try:
        slurm.guard()
        yield slurm
    finally:
        slurm.stop()
        if not os.environ.get("MINISLURM_KEEP"):
            shutil.rmtree(slurm.dir)
