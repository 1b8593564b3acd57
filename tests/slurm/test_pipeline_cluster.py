"""A pipeline on a real Slurm: from one `hala submit` to its end, whatever becomes of its workers meanwhile."""

import json
import os
import signal
from pathlib import Path

import pytest

from hala_hpc.pipeline import lookup, stages
from hala_hpc.pipeline.survey import Survey, survey
from hala_hpc.run import decisions, ledger
from tests.conftest import Hala
from tests.minislurm.cluster import Cluster
from tests.slurm.test_cluster import wait_for

pytestmark = pytest.mark.slurm
ROWS = 120
SECONDS = 240.0


@pytest.fixture
def hala(cluster: Cluster, tmp_path: Path) -> Hala:
    """Two translations at once, one after them, a mix of all, and its report."""
    hala = Hala(tmp_path)
    hala.env = dict(cluster.env)
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"text": "line {i} of it"}}\n' for i in range(ROWS)))
    rows = {
        "name": "rows",
        "task": {"kind": "translate", "segments": {"tokens": 0}},
        "data": {"path": "rows.jsonl", "columns": ["text"]},
        "engine": {"kind": "echo", "seconds": 1.0, "capacity": 4},
        "run": {"workers": 2, "shard_rows": 20, "lease_seconds": 6, "flush_seconds": 0.5},
    }
    columns = ["text", "text_ar"]
    sources = {name: {"path": f"run:{name}", "columns": columns} for name in ("first", "second", "third")}
    sources["third"]["columns"] = ["text_ar", "text_ar_back"]
    slurm = {"cpus_per_worker": 1, "minutes": 20}
    (tmp_path / "rows.yaml").write_text(json.dumps(rows))
    (tmp_path / "mix.yaml").write_text(json.dumps({"name": "mix", "task": {"kind": "mix", "sources": sources}}))
    listed = {
        "first": {"recipe": "rows.yaml"},
        "second": {"recipe": "rows.yaml", "set": {"data.limit": 40}},
        "third": {
            "recipe": "rows.yaml",
            "set": {"data.path": ["run:second"], "data.columns": ["text_ar"], "task.suffix": "_back"},
        },
        "mix": {"recipe": "mix.yaml"},
        "page": {"command": ["report", "run:mix", "--to", "page"]},
    }
    common = {
        "site": {
            "executor": "slurm",
            "slurm": slurm,
            "at_end": ["/bin/sh", "-c", f'echo "$$HALA_OUTCOME" >>{tmp_path}/told'],
        }
    }
    (tmp_path / "whole.yaml").write_text(json.dumps({"name": "whole", "set": common, "stages": listed}))
    return hala


def look(hala: Hala) -> Survey:
    return survey(stages.load(hala.folder / "runs" / "whole"))


def test_one_command(hala: Hala, cluster: Cluster) -> None:
    """A worker is killed and another preempted on the way; nobody types anything more."""
    begun = hala.json("submit", "whole.yaml")
    states = {stage["stage"]: stage["state"] for stage in begun["stages"]}
    assert states == {"first": "running", "second": "running", "third": "waiting", "mix": "waiting", "page": "waiting"}
    first = hala.folder / "runs" / "whole" / "first"
    wait_for(
        lambda: lookup.state_of(first).rows_done >= 10 and len(list(ledger.openings(first / "ledger"))) > 1, SECONDS
    )
    victim, other = [opening for _, opening in ledger.openings(first / "ledger")][:2]
    os.kill(victim["pid"], signal.SIGKILL)
    cluster.run("scontrol", "requeue", other["job"])
    wait_for(lambda: look(hala).finished, SECONDS)
    assert hala.json("verify", "whole")["proven"]
    assert (hala.folder / "runs" / "whole" / "page" / "report.html").is_file()
    wait_for(lambda: (hala.folder / "told").exists())
    assert (hala.folder / "told").read_text() == "finished\n", "once, for the whole"
    kinds = [item.kind for item in decisions.read(hala.folder / "runs" / "whole")]
    assert kinds.count(decisions.PLANNED) == 4
