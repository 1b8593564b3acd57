"""Hala in miniature on a real Slurm: one command, a preempted training, a killed worker, and models that learned."""

import os
import signal
from pathlib import Path

import pytest

from hala_hpc.pipeline import stages
from hala_hpc.pipeline.survey import survey
from hala_hpc.run import decisions, ledger
from hala_hpc.tasks.train import metrics
from tests import mini
from tests.conftest import Hala
from tests.minislurm.cluster import Cluster
from tests.slurm.test_cluster import slurm_hala, wait_for
from tests.work import work_python

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.vllm,
    pytest.mark.train,
    pytest.mark.exhaustive,
    pytest.mark.timeout(2400),
]
__all__ = ["slurm_hala", "work_python"]
SITE = ("--site", "minislurm", "site.slurm.minutes=30")


def test_one_command(slurm_hala: Hala, cluster: Cluster, serve_python: Path, work_python: Path) -> None:
    folder = slurm_hala.folder / "runs" / "mini"
    mini.lay_out(slurm_hala.folder, serve_python)
    slurm_hala("submit", mini.PIPELINE, *SITE)  # all that a person types

    wait_for(lambda: metrics.read(folder / "translator")[100:], 900)
    cluster.run("sbatch", "-p", "urgent", "-N4", "--exclusive", "-t", "1", "-o", "/dev/null", "--wrap", "sleep 1")
    workers = folder / "translate-world" / "ledger"
    victim = wait_for(lambda: next((opening for _, opening in ledger.openings(workers)), None), 900)
    os.kill(victim["pid"], signal.SIGKILL)
    wait_for(lambda: survey(stages.load(folder)).has_ended, 1200)

    measured = mini.reached(slurm_hala)
    mini.assert_learned(measured)
    mini.assert_shown(folder)
    assert len({line["launch"] for line in metrics.read(folder / "translator")}) == 2, "preempted once"
    kinds = [item.kind for item in decisions.read(folder)]
    assert kinds.count(decisions.PLANNED) == 14

    slurm_hala("submit", mini.PIPELINE, *SITE)
    assert [item.kind for item in decisions.read(folder)].count(decisions.PLANNED) == 14, "nothing is done twice"
