"""Tasks that a real Slurm holds: what a node could not launch comes back without it, what a person holds stays so."""

import shutil
from collections.abc import Iterator

import pytest

from hala_hpc.run import decisions
from hala_hpc.slurm.held import MOST_RELEASES
from tests.minislurm.cluster import Cluster, missing
from tests.slurm.test_cluster import expected, texts, wait_for
from tests.slurm.test_steward import Site
from tests.test_minislurm import field

pytestmark = pytest.mark.slurm

NO_LAUNCH = "launch failed requeued held"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A cluster whose prolog fails at n1, and at all nodes while there is a file ``bad``."""
    if reason := missing():
        pytest.skip(f"no Slurm: {reason}")
    folder = tmp_path_factory.mktemp("held")
    prolog = folder / "prolog"
    prolog.write_text(f'#!/bin/bash\n[ "$SLURMD_NODENAME" != n1 ] && [ ! -e {folder}/bad ]\n')
    prolog.chmod(0o755)
    cluster = Cluster(settings={"Prolog": str(prolog)}).start()
    try:
        cluster.guard()
        yield Site(cluster, folder)
    finally:
        cluster.stop()
        shutil.rmtree(cluster.dir)


def reasons(site: Site, name: str) -> dict[str, str]:
    """Why each task waits."""
    words = ("squeue", "--noheader", "--array", "--format=%i|%r", f"--jobs={site.jobs[name]}")
    return dict(line.split("|", 1) for line in site.cluster.run(*words).stdout.split("\n") if line)


def released(site: Site, name: str) -> list[tuple[str, str]]:
    noted = decisions.read(site.run(name))
    return [(item.event["task"], item.event["without"]) for item in noted if item.kind == decisions.RELEASED]


def undrain(site: Site) -> None:
    words = ("sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %T")
    for line in site.cluster.run(*words).stdout.splitlines():
        node, _, state = line.partition(" ")
        if "drain" in state and node != "n1":
            site.cluster.run("scontrol", "update", f"NodeName={node}", "State=RESUME")


def heal(site: Site) -> None:
    """All nodes but n1 take jobs again."""
    (site.folder / "bad").unlink(missing_ok=True)
    undrain(site)


def submit(site: Site, name: str, nodes: str, *others: str, **slurm: object) -> None:
    """A worker a node; not on ``nodes``."""
    words = {"cpus_per_worker": 9, "minutes": 5, "extra": {"exclude": nodes}} | slurm
    site.submit(name, "data.limit=150", *others, site={"executor": "slurm", "slurm": words})


def test_a_task_that_a_node_could_not_launch_is_let_go_by_a_worker_that_ends(site: Site) -> None:
    """Nobody else would: the steward waits for the task that is held."""
    submit(site, "launch", "n3,n4", "engine.seconds=3")  # it works on until we have looked
    wait_for(lambda: NO_LAUNCH in reasons(site, "launch").values())
    [task] = [task for task, reason in reasons(site, "launch").items() if reason == NO_LAUNCH]
    assert "for a node could not launch them" in " ".join(site.hala("status", "launch").stdout.split())
    assert site.end("launch")["action"] == "done"
    assert released(site, "launch") == [(task, "n1")]
    assert texts(site.hala, "launch") == expected(150) and site.arrays("launch") == 1
    excluded = field(site.cluster, task, "ExcNodeList")
    nodes = site.cluster.run("scontrol", "show", "hostnames", excluded).stdout.split()
    assert sorted(nodes) == ["n1", "n3", "n4"], "besides those that the recipe leaves out"
    assert f"{task} is let go, which Slurm held after a failed launch, without n1" in site.hala("logs", "launch").stdout


def test_where_all_are_held_a_person_calls_the_steward(site: Site) -> None:
    (site.folder / "bad").touch()
    submit(site, "all", "n1,n4")
    wait_for(lambda: list(reasons(site, "all").values()) == [NO_LAUNCH] * 2)
    heal(site)
    said = site.hala("steward", "all").stdout
    assert said.startswith("release: 2 tasks held by Slurm after a failed launch"), said
    assert site.end("all")["action"] == "done"
    assert {without for _, without in released(site, "all")} <= {"n2", "n3"}
    assert texts(site.hala, "all") == expected(150) and site.arrays("all") == 1


def test_what_no_node_launches_is_let_go_three_times(site: Site) -> None:
    (site.folder / "bad").touch()
    submit(site, "never", "n1", cpus_per_worker=1)
    for times in range(1, MOST_RELEASES + 2):
        wait_for(lambda: set(reasons(site, "never").values()) == {NO_LAUNCH})
        said = site.hala("steward", "never").stdout
        assert said.startswith("release: " if times <= MOST_RELEASES else "wait: all that is left in the queue is held")
        undrain(site)
        for task in reasons(site, "never"):
            site.cluster.run("scontrol", "update", f"JobId={task}", "ExcNodeList=n1")
    assert len(released(site, "never")) == 2 * MOST_RELEASES
    heal(site)
    site.hala("cancel", "never")


def test_what_a_person_holds_is_theirs(site: Site) -> None:
    (site.folder / "bad").unlink(missing_ok=True)
    submit(site, "mine", "n1", extra={"begin": "now+60"})
    site.cluster.run("scontrol", "hold", site.jobs["mine"])
    said = site.hala("steward", "mine").stdout
    assert said.startswith("wait: all that is left in the queue is held by somebody or by the site"), said
    assert f"scontrol release {site.jobs['mine']}" in said and not released(site, "mine")
    assert all("Held" in reason for reason in reasons(site, "mine").values())
    site.hala("cancel", "mine")
