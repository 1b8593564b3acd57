"""A demo run on sites as they are: without accounting, with short arrays, few jobs a user, a rule against ``--gres``.

Each is a real Slurm of its own, and the profile is the one that ``hala init`` writes there.
"""

import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Hala
from tests.minislurm.cluster import Cluster, missing
from tests.slurm.looking import finished
from tests.slurm.test_cluster import wait_for

pytestmark = pytest.mark.slurm

RULE = """
function slurm_job_submit(job, partitions, uid)
  if job.tres_per_node and string.find(job.tres_per_node, "gpu") then
    slurm.log_user("ask for GPUs by --gpus, not by --gres")
    return slurm.ERROR
  end
  return slurm.SUCCESS
end
function slurm_job_modify(job, old, partitions, uid)
  return slurm.SUCCESS
end
return slurm.SUCCESS
"""
"""Slurm 22.05 holds ``--gres=gpu:1`` and ``--gpus-per-node=1`` in one field, so such a rule refuses both."""
Start = Callable[..., tuple[Cluster, Hala]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a cluster, and have ``hala init`` write its profile: ``mycluster``."""
    clusters: list[Cluster] = []

    def start(accounting: bool = False, **options: Any) -> tuple[Cluster, Hala]:
        if reason := missing(accounting):
            pytest.skip(f"no Slurm: {reason}")
        cluster = Cluster(accounting=accounting, **options)
        clusters.append(cluster)
        cluster.start()
        cluster.guard()
        return cluster, Hala(tmp_path)

    yield start
    for cluster in clusters:
        cluster.stop()
        shutil.rmtree(cluster.dir)


def profile(cluster: Cluster, hala: Hala) -> dict[str, Any]:
    """What ``hala init`` says of the profile that it wrote; it is the site from then on."""
    hala.env = dict(cluster.env)
    (hala.folder / "hpc" / "sites").mkdir(parents=True)
    record: dict[str, Any] = hala.json("init", "mycluster", "--yes", "--no-job")
    hala.env["HALA_SITE"] = "mycluster"
    return record


def demo(hala: Hala, *words: str) -> dict[str, Any]:
    """The demo without a model, to its end and proven; what ``hala submit`` said."""
    recipe = hala.folder / "echo.yaml"
    shutil.copy(ROOT / "jobs" / "demo" / "instructions.jsonl", hala.folder)
    shutil.copy(ROOT / "jobs" / "demo" / "echo.yaml", recipe)
    # A worker's share of the machine is what the profile says, but all nodes are this one.
    started: dict[str, Any] = hala.json("submit", recipe, "site.slurm.cpus_per_worker=1", "site.slurm.mem_gb=1", *words)
    wait_for(finished(hala, "echo"), 120)
    hala("verify", "echo")  # exit code 0: each row once
    assert hala.json("status", "echo")["rows_done"] == 201
    return started


def modes(hala: Hala) -> dict[str, int]:
    """Who may do what to a run's folders, and to the ledgers that its workers wrote: Slurm hands on our umask."""
    run = hala.folder / "runs" / "echo"
    folders = {name: stat.S_IMODE((run / name).stat().st_mode) for name in ("logs", "ledger", "shards")}
    (ledgers,) = {stat.S_IMODE(path.stat().st_mode) for path in (run / "ledger").glob("*.jsonl")}
    return folders | {"*.jsonl": ledgers}


def test_accounting_off(start: Start) -> None:
    cluster, hala = start(accounting=False)
    written = profile(cluster, hala)
    assert (written["account"], written["gpu_option"]) == (None, "gres")
    assert "accounting is off" in Path(written["profile"]).read_text()
    demo(hala, "site.shared_with=group")
    assert modes(hala) == {"logs": 0o3770, "ledger": 0o2775, "shards": 0o2775, "*.jsonl": 0o664}


def test_arrays_are_short(start: Start) -> None:
    cluster, hala = start(settings={"MaxArraySize": "11"})
    profile(cluster, hala)
    started = demo(hala, "run.workers=13", "run.shard_tokens=400", "site.slurm.gpus_per_worker=0")
    assert started["workers"] == 13 and len(started["jobs"]) == 2
    assert modes(hala) == {"logs": 0o700, "ledger": 0o755, "shards": 0o755, "*.jsonl": 0o644}


def test_a_user_may_have_few_jobs(start: Start) -> None:
    cluster, hala = start(accounting=True, limits=True)
    cluster.run("sacctmgr", "-i", "modify", "user", "root", "set", "MaxSubmitJobs=20")
    written = profile(cluster, hala)
    assert written["account"] == "mini"
    started = demo(hala, "run.workers=22", "run.shard_tokens=400", "site.slurm.gpus_per_worker=0")
    assert started["workers"] == 19 and started["steward"], "a steward comes first: it follows them, whatever happens"


def test_gres_is_refused_by_a_rule(start: Start) -> None:
    cluster, hala = start(settings={"JobSubmitPlugins": "lua"}, files={"job_submit.lua": RULE})
    assert "ask for GPUs by --gpus" in refusal(cluster, "--gres=gpu:1")
    written = profile(cluster, hala)
    assert written["gpu_option"] == "gpus"
    job = demo(hala)["jobs"][0]
    asked = cluster.run("scontrol", "show", "job", job).stdout
    assert "TresPerJob=gres:gpu:1" in asked and "TresPerNode" not in asked
    findings = {finding["what"]: finding["state"] for finding in hala.json("doctor", "site.environments=null")}
    assert findings["job"] == "ok"


def refusal(cluster: Cluster, option: str) -> str:
    """What sbatch says; it must refuse."""
    command = ["sbatch", option, "--wrap", "true"]
    done = subprocess.run(command, env=cluster.env, cwd=cluster.dir, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    return done.stderr
