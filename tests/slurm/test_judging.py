"""Rules alone on a real Slurm: a job without a GPU, whose worker keeps all its cores busy, and nobody's engine."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Hala
from tests.minislurm.cluster import Cluster
from tests.slurm.looking import finished
from tests.slurm.test_cluster import slurm_hala, wait_for

pytestmark = pytest.mark.slurm
__all__ = ["slurm_hala"]


def test_rules_alone_take_no_gpu(
    cluster: Cluster, slurm_hala: Hala, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    pairs = ['{"source": "Good morning.", "target": "صباح الخير."}', '{"source": "Good morning.", "target": "..."}']
    (tmp_path / "pairs.jsonl").write_text("\n".join(pairs * 500) + "\n")
    recipe = write_recipe(
        "rules",
        task={"kind": "judge", "prompts": []},
        engine={"kind": "vllm"},
        data={"path": str(tmp_path / "pairs.jsonl")},
        run={"shard_rows": 100},
        site={
            "executor": "slurm",
            "slurm": {"gpus_per_worker": 2, "cpus_per_worker": 1},
            "slurm_cpu": {"cpus_per_worker": 2, "minutes": 7},
        },
    )
    job = slurm_hala.json("submit", recipe)["jobs"][0]
    shown = cluster.run("scontrol", "show", "job", job, "--oneliner").stdout
    assert "TimeLimit=00:07:00" in shown and "NumCPUs=2" in shown and "gres" not in shown
    wait_for(finished(slurm_hala, "rules"), 120)
    assert slurm_hala.json("verify", "rules")["proven"]
    state = slurm_hala.json("status", "rules")
    assert sum(worker["counts"].get("rejected: empty", 0) for worker in state["workers"]) == 500
    assert sum(bool(worker["part_of"]) for worker in state["workers"]) == 2, "a process for each core"
