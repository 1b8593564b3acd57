"""A real training on a real Slurm: ZeRO-3 over two nodes, broken in every way, is the unbroken one."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hala_hpc.models import location
from hala_hpc.tasks.train import metrics, paths
from hala_hpc.tasks.train.launch import signs
from tests.conftest import ROOT, SMALL_VLLM, Hala
from tests.minislurm.cluster import Cluster
from tests.numbers import same_losses
from tests.slurm.test_cluster import slurm_hala, wait_for
from tests.slurm.test_training_launch import ONE_A_NODE, PATIENT, at_step, events, planned, published, tokens
from tests.tasks.train.rank import trainings
from tests.work import work_python

pytestmark = [pytest.mark.slurm, pytest.mark.train, pytest.mark.timeout(1500)]
__all__ = ["planned", "slurm_hala", "tokens", "work_python"]

LONG = {"epochs": 20, "sequence_length": 256, "batch": {"sequences": 8}, "save": {"steps": 4, "keep": 99}}
"""So many steps that there is time to break it: Slurm looks at time limits every half minute."""
SHORT = LONG | {"epochs": 8, "batch": {"sequences": 4}, "watch": PATIENT}


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in metrics.read(run)]


def kill_and_preempt(broken: Path, cluster: Cluster, rank: int) -> None:
    """Kill -9 for one rank after the first checkpoint, then nodes for somebody more urgent after the second."""
    ranks = rank + 1
    wait_for(at_step(broken, 5, ranks=ranks), 300)
    os.kill(signs.heartbeats(broken, events(broken, "launched")[0]["launch"])[rank].pid, signal.SIGKILL)
    wait_for(at_step(broken, 7, launches=2, ranks=ranks), 300)
    cluster.run("sbatch", "-p", "urgent", "-N4", "--gres=gpu:2", "-t", "1", "-o", "/dev/null", "--wrap", "sleep 1")


def assert_same(broken: Path, whole: Path) -> None:
    expected = losses(whole)
    assert losses(broken) == pytest.approx(expected), "the same ranks add up in the same order"
    assert len(expected) == metrics.read(broken)[-1]["step"], "no step twice, none left out"
    assert len(events(broken, "crashed")) == 1, "the kill; Slurm's own ends are no crashes"
    assert weights(broken) == weights(whole), "the same bytes"


def test_a_killed_and_preempted_training_equals_an_unbroken_one(
    planned: Callable[..., Path], slurm_hala: Hala, cluster: Cluster, work_python: Path
) -> None:
    whole, broken = (planned(name, python=work_python, slurm=ONE_A_NODE, **SHORT) for name in ("whole", "broken"))
    slurm_hala("resume", "whole")
    wait_for(published(whole), 300)
    slurm_hala("resume", "broken")
    kill_and_preempt(broken, cluster, rank=1)
    wait_for(published(broken), 400)
    assert len(events(broken, "launched")) == 3
    assert_same(broken, whole)
    slurm_hala("verify", "broken")


@pytest.mark.alone
@pytest.mark.exhaustive
def test_a_training_broken_in_every_way_is_an_unbroken_one_and_goes_on_with_fewer_ranks(
    planned: Callable[..., Path], slurm_hala: Hala, cluster: Cluster, work_python: Path, serve_python: Path
) -> None:
    """Four ranks, the end of a job's time too; then what becomes of the model."""
    whole, broken = (planned(name, python=work_python, **LONG) for name in ("whole", "broken"))
    slurm_hala("resume", "whole")
    wait_for(published(whole), 600)
    expected = losses(whole)

    (job,) = slurm_hala.json("resume", "broken")["jobs"]
    kill_and_preempt(broken, cluster, rank=3)
    wait_for(at_step(broken, 7, launches=3), 300)
    ran = int(cluster.run("squeue", "-h", "-j", job, "-O", "TimeUsed:.20").stdout.strip().replace(":", " ").split()[-2])
    cluster.run("scontrol", "update", f"JobId={job}", f"TimeLimit={ran + 2}")  # the notice is due at once then
    wait_for(lambda: len(events(broken, "launched")) == 4, 200)
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=20")
    wait_for(published(broken), 600)

    assert_same(broken, whole)
    slurm_hala("verify", "broken")
    slurm_hala("collect", "broken", "--to", slurm_hala.folder / "model")
    agrees_in_vllm(slurm_hala.folder / "model", work_python, serve_python)

    exported = trainings.export(slurm_hala, work_python, whole, steps=[len(expected)])
    (last,) = location.locate(str(exported)).values()
    assert (last / "model.safetensors").read_bytes() == weights(whole), "from ZeRO-3's checkpoint"

    fewer = slurm_hala.folder / "runs" / "fewer"
    shutil.copytree(whole, fewer, symlinks=True)
    half = len(expected) // 8 * 4
    forget_after(fewer, half)
    slurm_hala("resume", "fewer", "site.slurm.nodes_per_worker=1")
    wait_for(published(fewer), 600)
    found = metrics.read(fewer)
    assert len(found) == len(expected) and {line["launch"] for line in found[half:]} == {1}
    assert losses(fewer) == same_losses(expected)
    assert [event["ranks"] for event in events(fewer, "launched")] == [4, 2]


def forget_after(run: Path, step: int) -> None:
    """Have the training stand as it was at the checkpoint of a step."""
    shutil.rmtree(run / "shards" / "000" / "000000")
    for path in (run / paths.CHECKPOINTS).glob("checkpoint-*"):
        if int(path.name.rpartition("-")[2]) > step:
            shutil.rmtree(path)
    assert (run / paths.CHECKPOINTS / f"checkpoint-{step}").is_dir()


def weights(run: Path) -> bytes:
    return (run / "shards" / "000" / "000000" / "model.safetensors").read_bytes()


def agrees_in_vllm(model: Path, work_python: Path, serve_python: Path) -> None:
    """Transformers and vLLM give every token of the fixed prompt the same probability."""
    script = ROOT / "tests" / "tasks" / "train" / "checkpoint"
    code = (
        "import json, sys; from pathlib import Path; from hala_hpc.tasks.train.checkpoint import export;"
        "found = export.examine(Path(sys.argv[1])); print(json.dumps(found))"
    )
    said = subprocess.run([work_python, "-c", code, model], check=True, capture_output=True, text=True).stdout
    examined: dict[str, Any] = json.loads(said.splitlines()[-1])
    assert examined["faults"] == []
    out = model.parent / "vllm.json"
    variables = os.environ | SMALL_VLLM
    command = [serve_python, "-P", script / "vllm_fingerprint_script.py", model, out]
    subprocess.run(command, check=True, env=variables, timeout=280)
    assert json.loads(out.read_text()) == pytest.approx(examined["float32"], abs=2e-3)
