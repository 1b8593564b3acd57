"""What ``hala chaos`` does not hurt: runs without workers in Slurm, and those whose shards are no rows."""

from collections.abc import Callable
from pathlib import Path

import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.pipeline import chaos
from hala_hpc.run import manifest
from hala_hpc.run.manifest import Facts, Shard
from tests.conftest import Hala
from tests.run.helpers import bare_run


def test_runs_that_slurm_does_not_work_on(hala: Hala, write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a line"}\n')
    hala("plan", write_recipe(data={"path": str(tmp_path / "rows.jsonl")}), "--create")
    assert "test has no workers in Slurm" in hala("chaos", "test", code=2).stderr
    hala("worker", "test")
    assert "test is finished" in hala("chaos", "test", code=2).stderr


def test_a_run_of_items(tmp_path: Path) -> None:
    run = bare_run(tmp_path / "merge", 1, suffix="")
    manifest.write(run.manifest, [Shard(0, "merge", "a", 0, 0, 1, 0, 0, "")], Facts("", 1, 1, 0, 0, unit="merges"))
    with pytest.raises(HalaError, match="merge: not a run whose shards are rows"):
        chaos.check(run.path)
