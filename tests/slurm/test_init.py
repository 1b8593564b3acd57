"""``hala init`` on a real Slurm: the profile that it writes, what its test job measures, and what it says of faults."""

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, Hala
from tests.minislurm.cluster import Cluster

pytestmark = pytest.mark.slurm

HEADING = "## From a clone to the first rows"
NOT_HERE = ["make setup", ". .venv/bin/activate"]
"""The tests run in what these two make."""


@pytest.fixture
def site_hala(cluster: Cluster, tmp_path: Path) -> Hala:
    hala = Hala(tmp_path)
    hala.env = dict(cluster.env)
    (tmp_path / "hpc" / "sites").mkdir(parents=True)
    return hala


def steps() -> list[str]:
    """The commands of the documents, as they are printed there."""
    text = (ROOT / "docs" / "clusters.md").read_text().partition(f"{HEADING}\n")[2].partition("\n## ")[0]
    return [line.partition(" #")[0].strip() for line in text.splitlines() if line.startswith("    ")]


def test_from_a_clone_to_the_first_200_rows_in_six_commands(site_hala: Hala) -> None:
    commands = steps()
    assert len(commands) <= 6
    assert commands[:2] == NOT_HERE
    assert not any(re.search(r"&&|\|\||;", command) for command in commands), "two commands in one"
    shutil.copytree(ROOT / "jobs" / "demo", site_hala.folder / "jobs" / "demo")
    program = site_hala.folder / "bin" / "hala"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m hala_hpc.cli "$@"\n')
    program.chmod(0o755)
    env = site_hala.env | {"PATH": f"{program.parent}:{site_hala.env['PATH']}"}
    script = "\n".join(["set -e", *commands[2:]])
    done = subprocess.run(
        ["bash", "-c", script], cwd=site_hala.folder, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    site_hala.env["HALA_SITE"] = "mycluster"
    assert site_hala.json("status", "echo")["rows_done"] >= 200
    site_hala("verify", "echo")
    text = (site_hala.folder / "hpc" / "sites" / "mycluster.yaml").read_text()
    written = yaml.safe_load(text)
    assert written["run"]["lease_seconds"] == 120, "one machine is not measured well enough for less"
    assert (written["site"]["slurm"]["partition"], written["site"]["slurm"]["account"]) == ("main", "mini")
    for fact in (
        "links are exclusive between two processes",
        "a rename is atomic",
        "fsync takes",
        "a touch is seen up to",
        "this Python: Python 3",
    ):
        assert fact in text
    assert re.search(r"ran on n\d, n\d\n", text), "on two nodes"
    assert [path.name for path in (site_hala.folder / "runs").iterdir()] == ["echo"], "it leaves nothing behind"


def test_a_job_that_does_not_start_is_done_without(cluster: Cluster, site_hala: Hala) -> None:
    words = ("--nodes=4", "--exclusive", "--partition=main", "--output=/dev/null", "--wrap", "sleep 100")
    blocker = cluster.run("sbatch", "--parsable", *words).stdout.strip()
    try:
        said = site_hala.json("init", "busy", "--yes", "--wait", "3")
        assert "did not start within 3 s" in said["untested"] and said["problems"] == []
        assert "hala doctor --job" in said["next"]
        text = Path(said["profile"]).read_text()
        assert "lease_seconds: not measured (main: the test job did not start within 3 s" in text
        assert "lease_seconds" not in yaml.safe_load(text)["run"]
        queued = cluster.run("squeue", "--me", "--noheader", "--format=%i").stdout.split()
        assert queued == [blocker], "it took its job out of the queue again"
        before = text
        refused = site_hala("init", "busy", "--yes", "--no-job", code=2)
        assert "busy.yaml exists" in refused.stderr and Path(said["profile"]).read_text() == before
        site_hala("init", "busy", "--yes", "--no-job", "--force")
        assert Path(said["profile"]).read_text() != before
    finally:
        cluster.run("scancel", blocker)


def test_doctor_finds_what_nodes_lack(site_hala: Hala) -> None:
    """An environment whose Python does not run there, and a lease that is too short for what was measured."""
    python = site_hala.folder / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho 'libcuda: cannot open' >&2\nexit 3\n")
    python.chmod(0o755)
    site_hala("init", "mine", "--yes", "--no-job", "--serve", python.parents[1])
    words = ("doctor", "--site", "mine", "--job", "run.lease_seconds=6", "--json")
    findings: list[dict[str, Any]] = yaml.safe_load(site_hala(*words, code=1).stdout)
    nodes = [finding for finding in findings if finding["what"] == "nodes main"]
    assert [finding["detail"] for finding in nodes if finding["state"] == "missing"] == [
        "Python of serve does not start on the node: does not start: libcuda: cannot open"
    ]
    assert any("links are exclusive" in finding["detail"] for finding in nodes)
    (lease,) = (finding for finding in findings if finding["what"] == "lease")
    assert "run.lease_seconds is 6, and what was measured asks for 120" in lease["detail"]


def test_it_asks_what_slurm_does_not_say(site_hala: Hala) -> None:
    """Without a terminal it refuses to guess; at one it asks, and an answer that cannot be is asked for again."""
    refused = site_hala("init", "mine", "--no-job", code=2).stderr
    assert "which partition? main, grace, urgent (--partition NAME, or --yes for main)" in refused
    assert "no partition 'mian' (did you mean 'main'?" in site_hala("init", "x", "--partition=mian", code=2).stderr
    said = at_a_terminal(
        site_hala, ["nope", "grace", "urgent", "mini", "$HOME/../runs-of-mine"], "init", "mine", "--no-job"
    )
    assert "'nope' is not one of" in said
    written = yaml.safe_load((site_hala.folder / "hpc" / "sites" / "mine.yaml").read_text())
    assert written["site"]["slurm"]["partition"] == "grace"
    assert written["site"]["slurm_cpu"]["partition"] == "urgent"
    assert written["run"]["root"] == "$HOME/../runs-of-mine"


def at_a_terminal(hala: Hala, answers: list[str], *words: str) -> str:
    """What a command says where a person types; it must end well."""
    mine, its = pty.openpty()
    command = [sys.executable, "-m", "hala_hpc.cli", *words]
    process = subprocess.Popen(command, cwd=hala.folder, env=hala.env, stdin=its, stdout=its, stderr=its)
    os.close(its)
    os.write(mine, "".join(f"{answer}\n" for answer in answers).encode())
    said, ends = b"", time.monotonic() + 60
    while time.monotonic() < ends:
        try:
            if select.select([mine], [], [], 0.2)[0]:
                said += os.read(mine, 4096)
            elif process.poll() is not None:
                break
        except OSError:  # its end is closed
            break
    os.close(mine)
    assert process.wait(10) == 0, said.decode()
    return said.decode()
