"""A site profile out of what Slurm prints, and leases out of what a test job measured; texts as Slurm prints them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Run
from hala_hpc.pipeline import lookup
from hala_hpc.slurm import nodetest, probe, profile, survey
from hala_hpc.slurm.nodetest import Measured, delay, lease_seconds
from hala_hpc.slurm.profile import Choice
from hala_hpc.slurm.survey import Cluster, Partition, Shape, parse_nodes, parse_partitions

NODE = (
    "NodeName={name} Arch=x86_64 CoresPerSocket=48  CPUAlloc=0 CPUEfctv={cpus} CPUTot=96 CPULoad=0.68 "
    "AvailableFeatures=h100,ib Gres={gres} NodeAddr=10.0.0.1 NodeHostName={name} Version=23.02.6 "
    "OS=Linux 5.14.0 #1 SMP RealMemory={memory} AllocMem=0 FreeMem=22096 State={state} MemSpecLimit=8192 "
    "Partitions={partitions}  BootTime=2026-11-27T20:15:08 CfgTRES=cpu=96 Reason=Partitions=x [root@2026]\n"
)
GPU_NODE = {"cpus": "92", "gres": "gpu:h100:8(S:0-1),nvme:1", "memory": "1031000", "partitions": "gpu,all"}
CPU_NODE = {"cpus": "96", "gres": "(null)", "memory": "257000", "partitions": "cpu,all"}
NODES = "".join(
    NODE.format(name=name, state=state, **kind)
    for name, state, kind in (
        ("g1", "IDLE", GPU_NODE),
        ("g2", "MIXED+PLANNED", GPU_NODE),
        ("g3", "IDLE+DRAIN", GPU_NODE),
        ("c1", "ALLOCATED", CPU_NODE),
        ("c2", "DOWN*", CPU_NODE),
        ("c3", "IDLE", CPU_NODE),
        ("c4", "IDLE", CPU_NODE),
    )
)
PARTITION = (
    "PartitionName={name} AllowGroups={groups} AllowAccounts={accounts} AllowQos=ALL Default={default} QoS=N/A "
    "DefaultTime=01:00:00 MaxNodes=UNLIMITED MaxTime={time} RootOnly={root} State={state} TotalCPUs=64\n"
)
OPEN = {"groups": "ALL", "accounts": "ALL", "default": "NO", "time": "UNLIMITED", "root": "NO", "state": "UP"}
PARTITIONS = "".join(
    PARTITION.format(**(OPEN | {"name": name} | more))
    for name, more in (
        ("gpu", {"time": "1-00:00:00"}),
        ("cpu", {"default": "YES", "time": "02:00:00"}),
        ("all", {"accounts": "nlp,vision"}),
        ("empty", {}),
    )
)
GPU, CPU = Shape(92, 1031000 - 8192, 8, "h100"), Shape(96, 257000 - 8192)


def partitions(
    text: str = PARTITIONS, accounts: tuple[str, ...] = ("nlp",), groups: tuple[str, ...] = ("users",)
) -> Any:
    return {each.name: each for each in parse_partitions(text, parse_nodes(NODES), accounts, groups)}


def test_nodes_and_partitions() -> None:
    known = partitions()
    assert known == {
        "gpu": Partition("gpu", False, 1440, ((GPU, 2),)),
        "cpu": Partition("cpu", True, 120, ((CPU, 3),)),
        "all": Partition("all", False, None, ((CPU, 3), (GPU, 2))),
    }
    assert known["all"].shape(with_gpus=True) == GPU
    assert known["cpu"].shape(with_gpus=True) is None


@pytest.mark.parametrize(
    "more",
    [{"groups": "staff"}, {"accounts": "vision"}, {"root": "YES"}, {"state": "DOWN"}, {"state": "INACTIVE"}],
)
def test_a_partition_that_is_closed_to_this_user_is_not_there(more: dict[str, str]) -> None:
    text = PARTITION.format(**(OPEN | {"name": "gpu"} | more))
    assert partitions(text) == {}


def test_what_is_not_known_closes_nothing() -> None:
    """Without accounting nobody has an account."""
    assert "all" in partitions(accounts=())


def cluster(**changes: Any) -> Cluster:
    known = tuple(partitions().values())
    return replace(Cluster("big", "23.02.6", known, ("nlp", "vision"), "nlp", True, 1001), **changes)


def test_the_likeliest_partition_comes_first() -> None:
    assert [each.name for each in cluster().of_gpus()] == ["gpu", "all"]
    assert [each.name for each in cluster().of_cpus()] == ["cpu", "all", "gpu"]
    default = tuple(replace(each, is_default=each.name == "all") for each in cluster().partitions)
    assert [each.name for each in cluster(partitions=default).of_gpus()] == ["all", "gpu"]


def choice(**changes: Any) -> Choice:
    known = partitions()
    made = Choice("mine", "/s/runs", known["gpu"], known["cpu"], "nlp", "/s/serve", "/s/work")
    return replace(made, **changes)


Written = Callable[..., Any]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """The recipe that a profile's text makes."""

    def written(*words: Any) -> Any:
        path = tmp_path / "mine.yaml"
        path.write_text(profile.text(*words))
        return lookup.load(None, str(path), ("name=x",))

    return written


def test_a_profile_says_what_a_worker_gets(written: Written) -> None:
    site = written(choice(), cluster()).site
    slurm, cpu = site.slurm, site.slurm_cpu
    assert (slurm.partition, slurm.account, slurm.gpus_per_worker, slurm.gpu_option) == ("gpu", "nlp", 1, "gres")
    assert (slurm.cpus_per_worker, slurm.mem_gb, slurm.minutes, slurm.gpu_type) == (11, 118, 480, None)
    assert (cpu.partition, cpu.account, cpu.cpus_per_worker, cpu.mem_gb, cpu.minutes) == ("cpu", "nlp", 8, 19, 120)
    assert site.environments["serve"].venv == "/s/serve"
    typed = written(choice(gpu_option="gpus", gpu_type="h100"), cluster()).site.slurm
    assert (typed.gpu_option, typed.gpu_type) == ("gpus", "h100")
    without = written(choice(partition=partitions()["cpu"], account=None), cluster(accounts=())).site.slurm
    assert (without.gpus_per_worker, without.account, without.minutes, without.cpus_per_worker) == (0, None, 120, 8)


def test_whatever_a_cluster_is_called_the_profile_says_it(written: Written) -> None:
    """Names come from Slurm and from paths: none begins a line of its own, or is read as anything else."""
    for odd in ("no", "1e5", "a: b", "x\nsite: {executor: local}", "{a}", "# c", "'", '"', "${oc.env:HOME}"):
        known = replace(partitions()["gpu"], name=odd)
        site = written(choice(partition=known, account=odd), cluster(name=odd, version=odd)).site
        assert (site.slurm.partition, site.slurm.account, site.executor) == (odd, odd, "slurm")


BOTH = Measured("gpu", ("g1", "g2"), True, True, True, 0.0, 0.004, 0.01, 0.1, 0.0)


@pytest.mark.parametrize(
    ("measured", "seconds"),
    [
        ([], 120),
        ([BOTH], 60),
        ([replace(BOTH, is_between_hosts=False)], 120),
        ([replace(BOTH, links_exclusive=None)], 120),
        ([BOTH, Measured("cpu", untested="it did not start")], 120),
        ([replace(BOTH, problems=("x",))], 120),
        ([replace(BOTH, behind=30.0)], 100),
        ([replace(BOTH, behind=60.0, ahead=2.0)], 190),
        ([BOTH, replace(BOTH, behind=45.0, fsync_most=2.0)], 170),
    ],
)
def test_a_lease_is_as_long_as_what_was_measured_asks_for(measured: list[Measured], seconds: float) -> None:
    assert lease_seconds(measured) == seconds
    assert Run().lease_seconds == 120


def test_a_profile_says_the_lease_and_what_it_comes_from(written: Written, tmp_path: Path) -> None:
    assert written(choice(), cluster(), [replace(BOTH, behind=60.0)]).run.lease_seconds == 190
    assert "a touch is seen up to 60.00 s late" in (tmp_path / "mine.yaml").read_text()
    late = Measured("gpu", untested="the test job did not start within 5 s (Priority)")
    assert written(choice(), cluster(), [late], late.untested).run.lease_seconds == 120
    text = (tmp_path / "mine.yaml").read_text()
    assert "did not start within 5 s (Priority)" in text and "hala doctor --job" in text


def test_delay_is_what_was_newest_and_not_seen() -> None:
    touches = [float(second) for second in range(10)]
    fresh = [(at, float(int(at)), at) for at in (0.5, 3.2, 8.9)]
    assert delay(touches, fresh) == (0.0, 0.0)
    assert delay(touches, [*fresh, (7.5, 4.0, 7.5)]) == (3.0, 0.0)
    assert delay(touches, [(2.0, 4.5, 2.1)]) == (0.0, pytest.approx(2.4))
    assert delay(touches, [(20.0, 9.0, 20.0)]) is None, "after the last touch nobody knows what was the newest"
    assert delay([], fresh) is None


def test_a_job_that_left_nothing_says_why(tmp_path: Path) -> None:
    """Its own last words; without any, the nodes may not see the folder of runs."""
    folder = tmp_path / "runs" / ".test-x" / "0"
    folder.mkdir(parents=True)
    job = nodetest._Job("5", "gpu", folder, "FAILED", is_over=True)
    silent = nodetest._measured(job, 9.0)
    assert f"ended (FAILED) without a report: do the nodes see {tmp_path}/runs" in silent.problems[0]
    (folder / "5_0_log.out").write_text("srun: starting\n/x/python: No such file or directory\n")
    (said,) = nodetest._measured(job, 9.0).problems
    assert said.endswith("/x/python: No such file or directory")
    (folder / "report.0.json").write_text("{}")  # of a process that was killed
    assert nodetest._measured(job, 9.0).problems == (said,)


def test_two_winners_of_one_link_or_a_torn_read_are_a_problem() -> None:
    def report(won: list[int], lost: int) -> dict[str, Any]:
        return {"links": {"won": won, "lost": lost}}

    assert nodetest._exclusive([report([0, 2], 3), report([1, 3], 2)]) is True
    assert nodetest._exclusive([report([0, 2], 3), report([2, 3], 2)]) is False
    assert nodetest._exclusive([report([0, 2], 0), report([3], 2)]) is None, "they never met"
    assert nodetest._atomic({"renames": {"reads": 5, "torn": 0, "missing": 0, "stale": 2}}) is True
    assert nodetest._atomic({"renames": {"reads": 5, "torn": 1, "missing": 0, "stale": 0}}) is False
    assert nodetest._atomic({}) is None


def test_gpus_are_those_of_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for nvidia-smi, which needs a GPU: it prints what one printed."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 81559'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert probe._gpus() == [{"name": "NVIDIA H100 80GB HBM3", "gib": 79.6}]
    program.unlink()
    assert probe._gpus() == []


def test_file_systems_are_known(tmp_path: Path) -> None:
    assert survey.file_system(Path("/proc/self")) == "proc"
    assert survey.file_system(tmp_path)


def test_no_shape_is_no_choice() -> None:
    with pytest.raises(HalaError, match="none of its nodes"):
        choice(partition=Partition("p", True, None, ())).shape  # noqa: B018
