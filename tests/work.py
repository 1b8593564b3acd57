"""The interpreter of the work environment, for tests that really train."""

from pathlib import Path

import pytest

from tests.conftest import ROOT

PYTHON = ROOT / ".envs" / "work-cpu" / "bin" / "python"


@pytest.fixture(scope="session")
def work_python() -> Path:
    """Skips where there is none."""
    if not PYTHON.is_file():
        pytest.skip("no work environment (make work)")
    return PYTHON
