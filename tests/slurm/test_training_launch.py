"""How a training is started on a real Slurm: its job, its ranks, and what becomes of them when Slurm ends it.

Where it matters what ranks do at a certain moment, they are those of ``tests/tasks/train/launch/rank_program.py``,
which take orders; the last tests run real ones.
"""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hala_hpc.config.schema import Environment, Recipe, Site, Slurm
from hala_hpc.pipeline import lookup
from hala_hpc.run import ledger
from hala_hpc.slurm import allocation
from hala_hpc.slurm.submit import preview, submit_each
from hala_hpc.tasks.train import paths
from hala_hpc.tasks.train.launch import signs
from tests.conftest import ROOT, Hala, TinyModel
from tests.minislurm.cluster import Cluster
from tests.slurm.looking import state
from tests.slurm.orders import WithOrders
from tests.slurm.test_cluster import slurm_hala, wait_for
from tests.work import work_python

__all__ = ["slurm_hala", "work_python"]

GOLDEN = r"""#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=12
#SBATCH --gres=gpu:h100:8
#SBATCH --job-name=hala-sft
#SBATCH --mem=819200M
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output=/runs/sft/logs/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=480

# setup
module load cuda/12.8 || exit 1
export HALA_RANKS_PER_NODE=8
export HALA_CPUS_PER_RANK=12
export HALA_GPUS_PER_NODE=8
export HALA_PYTHON=/scratch/me/envs/training/bin/python
export HALA_SRUN=''

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /runs/sft/logs/%j_%t_log.out --nodes=1 --ntasks=1 --ntasks-per-node=1 --overlap --gres=none --cpus-per-task=96 /scratch/me/envs/training/bin/python -u -m hala_hpc.worker.unpickle /runs/sft/logs
"""  # noqa: E501


ONE_A_NODE = {"ranks_per_node": 1, "gpus_per_worker": 1}
"""For real ranks where two do as well as four: each takes eight seconds of a core to start."""
PATIENT = {"stall_seconds": 30, "start_seconds": 280, "preflight": False}
"""For real ranks too: other tests on the same cores cause no stall."""


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where trainings share their prepared data: the first one does it."""
    return tmp_path_factory.mktemp("tokens")


@pytest.fixture
def planned(
    slurm_hala: Hala, cluster: Cluster, tiny_model: TinyModel, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """Plan a training for two nodes with two ranks each; its run."""
    for key in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(key, cluster.env[key])

    def plan(name: str, python: Path | None = None, slurm: dict[str, Any] | None = None, **task: Any) -> Path:
        slurm = {"nodes_per_worker": 2, "ranks_per_node": 2, "gpus_per_worker": 2, "minutes": 10, "mem_gb": 4} | (
            slurm or {}
        )
        environment = {"variables": {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "DS_ACCELERATOR": "cpu"}}
        environment |= {"venv": str(python.parents[1])} if python is not None else {"python": os.sys.executable}
        recipe = {
            "name": name,
            "model": {"name": str(tiny_model("gemma2"))},
            "task": {
                "kind": "train",
                "datasets": {"demo": {"path": str(ROOT / "jobs/demo/instructions.jsonl"), "kind": "chat", "limit": 60}},
                "sequence_length": 256,
                "too_long": "drop",
                "precision": "float32",
                "batch": {"sequences": 4},
                "epochs": 4,
                "report_to": [],
                "loader_workers": 0,
                "prepared": str(tokens),
                "deepspeed": {"stage": 3},
                "save": {"steps": 2},
                "watch": {"stall_seconds": 10, "start_seconds": 280, "preflight": False},
            }
            | task,
            "run": {"lease_seconds": 12},
            "site": {
                "executor": "slurm",
                "slurm": slurm | {"cpus_per_worker": 4},
                "slurm_cpu": {"cpus_per_worker": 2, "mem_gb": 2, "minutes": 5},
                "environments": {"work": environment},
            },
        }
        path = slurm_hala.folder / f"{name}.yaml"
        path.write_text(json.dumps(recipe))
        slurm_hala("plan", path, "--create")
        return slurm_hala.folder / "runs" / name

    return plan


def submit_with_orders(run: Path, **orders: Any) -> str:
    """Start the launcher; the job's id."""
    (run / "orders.json").write_text(json.dumps({"steps": 10, "seconds": 0.5, **orders}))
    return submit_each(lookup.thawed(run), run, "work", [WithOrders(str(run))], ranks=2).jobs[0]


def events(run: Path, *kinds: str) -> list[dict[str, Any]]:
    found = [event for file in (run / "ledger").glob("*.jsonl") for event in ledger.read(file)]
    return sorted((e for e in found if e["event"] in kinds), key=lambda event: float(event["time"]))


def published(run: Path) -> Callable[[], bool]:
    return lambda: (run / "shards" / "000" / "000000").is_dir()


def at_step(run: Path, step: int, launches: int = 1, ranks: int = 4) -> Callable[[], bool]:
    """Whether all ranks of the so-manieth launch are at this step."""

    def look() -> bool:
        names = [event["launch"] for event in events(run, "launched")]
        if len(names) < launches:
            return False
        found = signs.heartbeats(run, names[-1])
        return len(found) == ranks and min(beacon.step for beacon in found.values()) >= step

    return look


def log(run: Path) -> str:
    return "".join(file.read_text() for file in sorted((run / "logs").glob("*.out")))


def test_golden_sbatch_text_of_a_training() -> None:
    slurm = Slurm(
        partition="gpu",
        nodes_per_worker=4,
        gpus_per_worker=8,
        gpu_type="h100",
        cpus_per_worker=96,
        mem_gb=800,
        minutes=480,
        signal_seconds=300,
    )
    environments = {"work": Environment(venv="/scratch/me/envs/training", modules=["cuda/12.8"])}
    asked = Recipe(name="sft", site=Site(executor="slurm", slurm=slurm, environments=environments))
    assert preview(asked, Path("/runs/sft"), "work", 1, ranks=8) == GOLDEN


def test_what_scontrol_says() -> None:
    text = (
        "JobId=7 Partition=gpu QOS=(null) NumNodes=2-2 Features=h100 ExcNodeList=n7 TresPerNode=gres:gpu:h100:8 X=1 X=2"
    )
    asked = allocation.fields(text)
    assert asked["X"] == "1"
    command = allocation.test_only(asked, ["n1", "n2"])
    assert command[:2] == ["sbatch", "--test-only"] and command[-2:] == ["--exclude=n7,n1,n2", "--wrap=true"]
    assert set(command[2:-2]) == {"--partition=gpu", "--constraint=h100", "--nodes=2", "--gres=gpu:h100:8"}
    assert allocation.parse_end("Unknown") is None
    assert allocation.parse_end("2026-11-21T12:00:00") == pytest.approx(1795262400, abs=86400)


@pytest.mark.slurm
def test_ranks_get_what_the_job_has(planned: Callable[..., Path]) -> None:
    run = planned("shape")
    submit_with_orders(run, steps=2)
    wait_for(published(run))
    (started,) = events(run, "launched")
    found = {
        int(path.name.split(".")[-2]): json.loads(path.read_text()) for path in (run / "environment").glob("*.json")
    }
    assert sorted(found) == [0, 1, 2, 3]
    for rank, environ in found.items():
        assert environ["SLURMD_NODENAME"] == started["nodes"][rank // 2]
        assert (environ["RANK"], environ["WORLD_SIZE"]) == (str(rank), "4")
        assert (environ["LOCAL_RANK"], environ["LOCAL_WORLD_SIZE"]) == (str(rank % 2), "2")
        assert environ["CUDA_VISIBLE_DEVICES"] == "0,1", "all GPUs of the node"
        assert environ["SLURM_CPUS_PER_TASK"] == "2" and environ["MASTER_ADDR"].startswith("127.")
        assert float(environ["HALA_END_TIME"]) == pytest.approx(started["time"] + 600, abs=60)
    assert len({environ["MASTER_PORT"] for environ in found.values()}) == 1


@pytest.mark.slurm
def test_preempted_ranks_save_before_they_go(planned: Callable[..., Path], cluster: Cluster) -> None:
    """In a partition with a grace time, SIGTERM reaches all steps: no rank may be killed for it."""
    run = planned("grace", slurm={"partition": "grace"})
    job = submit_with_orders(run, steps=24, save=1000)
    wait_for(at_step(run, 4))
    cluster.run("sbatch", "-p", "urgent", "-N4", "--gres=gpu:2", "-t", "1", "-o", "/dev/null", "--wrap", "sleep 1")
    wait_for(at_step(run, 1, launches=2), 120)
    first, _ = (event["launch"] for event in events(run, "launched"))
    assert sorted((end.rank, end.code) for end in signs.ends_so_far(run, first)) == [(r, 85) for r in range(4)]
    wait_for(published(run))
    assert {event["job"] for event in events(run, "started") if "job" in event} == {job}, "the same job, requeued"
    assert [event["attempt"] for event in events(run, "claimed")] == [1, 1], "being preempted counts against nobody"
    steps = [line["step"] for line in _metrics(run)]
    assert steps == list(range(1, 25)), "no step twice, none left out"


@pytest.mark.slurm
def test_a_node_at_fault_twice_is_left_out(planned: Callable[..., Path]) -> None:
    run = planned("faulty")
    submit_with_orders(run, save=1, at={"3": {"3": -signal.SIGKILL, "5": -signal.SIGBUS}})
    wait_for(published(run), 120)
    first, second, third = events(run, "launched")
    bad = first["nodes"][1]
    assert [event["node"] for event in events(run, "crashed")] == [bad, bad]
    assert second["nodes"] == first["nodes"], "once may be bad luck"
    assert bad not in third["nodes"] and len(third["nodes"]) == 2
    (excluded,) = events(run, "excluded")
    assert excluded["node"] == bad and "SIGBUS" in excluded["reason"]
    assert f"back into the queue, without {bad}" in log(run)


@pytest.mark.slurm
def test_given_up_after_so_many_crashes(planned: Callable[..., Path], slurm_hala: Hala) -> None:
    run = planned("hopeless", watch={"restarts": 1, "preflight": False})
    submit_with_orders(run, save=1000, at={str(rank): {"2": 3} for rank in range(4)}, again=True)
    wait_for(lambda: state(slurm_hala, "hopeless").failed == 1)
    assert len(events(run, "launched")) == 2
    assert "2 launches without a new checkpoint" in log(run)
    assert wait_for(lambda: "FAILED" in str(slurm_hala.json("status", "hopeless")["jobs"])), "and the job says so"
    stop = slurm_hala("steward", "hopeless", code=1).stdout
    assert "stop: 1 shard failed too often" in stop and "2 launches without a new checkpoint" in stop


@pytest.mark.slurm
@pytest.mark.train
@pytest.mark.timeout(900)
def test_a_training_whose_launcher_was_killed_is_taken_up_by_its_steward(
    planned: Callable[..., Path], slurm_hala: Hala, work_python: Path
) -> None:
    """Its own requeues are none of the steward's business: one job more, from the last checkpoint, and no person."""
    run = planned("taken", python=work_python, slurm=ONE_A_NODE, epochs=8, watch=PATIENT)
    started = slurm_hala.json("resume", "taken")
    wait_for(at_step(run, 4, ranks=2), 280)
    for _, opening in ledger.openings(run / "ledger"):
        os.kill(opening["pid"], signal.SIGKILL)
    wait_for(published(run), 400)
    decided = wait_for(lambda: [e for e in events(run, "decided") if e["action"] == "done"] and events(run, "decided"))
    assert [event["action"] for event in decided] == ["submit", "done"], decided
    assert "KILLED: 6 GB instead of 4" in decided[0]["reason"] and started["steward"]
    first, second = events(run, "launched")
    assert _metrics(run)[0]["step"] == 1 and second["launch"] != first["launch"]
    slurm_hala("verify", "taken")


@pytest.mark.slurm
@pytest.mark.train
@pytest.mark.timeout(900)
def test_a_node_that_does_not_answer_the_preflight_is_left_out(
    planned: Callable[..., Path], work_python: Path, tmp_path: Path
) -> None:
    """On n1 the preflight never gets anywhere: three nodes of four are asked for, so the job can go on without it."""
    sabotage = tmp_path / "sabotage"
    sabotage.mkdir()
    (sabotage / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "if os.environ.get('SLURMD_NODENAME') == 'n1' and "
        "'hala_hpc.tasks.train.launch.preflight' in sys.orig_argv[:3]:\n"
        "    signal.pause()\n"
    )
    run = planned(
        "deaf", python=work_python, slurm={"nodes_per_worker": 3, "ranks_per_node": 1}, batch={"sequences": 3}
    )
    (run / "orders.json").write_text(json.dumps({"steps": 2, "seconds": 0.5}))
    text = (run / "recipe.yaml").read_text().replace("preflight: false", "preflight: true")
    (run / "recipe.yaml").write_text(text)
    recipe = lookup.thawed(run)
    recipe.site.environments["work"].variables["PYTHONPATH"] = f"{sabotage}:{ROOT}:{ROOT / 'src'}"
    submit_each(recipe, run, "work", [WithOrders(str(run))], ranks=1)
    wait_for(published(run), 400)
    (excluded,) = events(run, "excluded")
    assert (excluded["node"], excluded["reason"]) == ("n1", "0 of 1 ranks answered")
    (started,) = events(run, "launched")
    assert started["nodes"] == ["n2", "n3", "n4"]
    told = [json.loads(path.read_text()) for path in sorted((run / paths.PREFLIGHT).glob("*.json"))]
    assert [one["node"] for one in told[0]["bad"]] == ["n1"] and told[1]["bad"] == []
    assert len(told[1]["ranks"][0]["pairs"]) == 2 and told[1]["ranks"][0]["all"] > 0


@pytest.mark.slurm
@pytest.mark.train
@pytest.mark.timeout(900)
def test_a_stopped_rank_is_named_and_the_run_ends_trained(
    planned: Callable[..., Path], slurm_hala: Hala, work_python: Path
) -> None:
    """All of it, with real ranks: an array prepares, the training waits for it, hangs, goes on, and is verified."""
    planned("stopped", python=work_python, slurm=ONE_A_NODE, prepared=None, watch=PATIENT)
    run = slurm_hala.folder / "runs" / "stopped"
    run.rename(run.with_name("unused"))
    submitted = slurm_hala.json("submit", slurm_hala.folder / "stopped.yaml")
    assert len(submitted["jobs"]) == 2
    wait_for(at_step(run, 3, ranks=2), 280)
    (first,) = events(run, "launched")
    pid = signs.heartbeats(run, first["launch"])[1].pid
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: events(run, "stalled"), 120)
    (stalled,) = events(run, "stalled")
    assert (stalled["rank"], stalled["node"]) == (1, first["nodes"][1]) and "its process is stopped" in stalled["error"]
    stacks = "".join(path.read_text() for path in (run / paths.STACKS).glob("*.txt"))
    assert f"=== rank 1: pid {pid} on " in stacks and stacks.count("MainThread") == 2
    wait_for(published(run), 280)
    slurm_hala("verify", "stopped")
    assert not list((run / "prepare" / "demo" / "leases" / "000").iterdir())
    assert "preparing" not in log(run), "the array had done it"


@pytest.mark.slurm
@pytest.mark.train
@pytest.mark.timeout(900)
def test_by_hand_with_sbatch(
    planned: Callable[..., Path], slurm_hala: Hala, cluster: Cluster, work_python: Path
) -> None:
    """``sbatch sbatch/train_multinode.sbatch RUN`` does all of it too, preparation and requeue included."""
    run = planned("hand", python=work_python, slurm=ONE_A_NODE, watch=PATIENT)
    script = str(ROOT / "sbatch" / "train_multinode.sbatch")
    shape = ["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=2", "--gres=gpu:1", "--mem=4G", "--time=10"]
    shape.append(f"--chdir={slurm_hala.folder}")  # where the script leaves its own output
    variables = {"HALA_PYTHON": str(work_python), "DS_ACCELERATOR": "cpu"}
    done = cluster.run(
        "env", *(f"{k}={v}" for k, v in variables.items()), "sbatch", "--parsable", *shape, script, str(run)
    )
    job = done.stdout.strip()
    wait_for(at_step(run, 2, ranks=2), 280)
    cluster.run("scancel", "--signal=USR2", job)  # what Slurm sends before the end of a job's time
    wait_for(lambda: len(events(run, "launched")) == 2, 120)
    wait_for(published(run), 280)
    slurm_hala("verify", "hand")
    assert [event["outcome"] for event in events(run, "ended")] == ["stopped", "finished"]


def _metrics(run: Path) -> list[dict[str, Any]]:
    from hala_hpc.tasks.train import metrics

    return metrics.read(run)
