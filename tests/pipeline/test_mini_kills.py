"""Hala in miniature without Slurm: killed with -9 three times, and what comes of it then; a value that is changed."""

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hala_hpc.pipeline import stages
from hala_hpc.pipeline.survey import Survey, survey
from hala_hpc.run import decisions
from hala_hpc.slurm import local
from tests import mini
from tests.conftest import Hala
from tests.slurm.test_cluster import wait_for
from tests.work import work_python

pytestmark = [pytest.mark.vllm, pytest.mark.train, pytest.mark.exhaustive, pytest.mark.timeout(3600)]
__all__ = ["work_python"]
SITE = ("--site", "local-cpu")
SECONDS = 1500.0
TEXTS = ("translate-world", "translate-things", "mix-pairs", "mix-instructions")


@pytest.fixture
def laid_out(hala: Hala, serve_python: Path, work_python: Path) -> Hala:
    mini.lay_out(hala.folder, serve_python)
    return hala


def look(hala: Hala) -> Survey:
    return survey(stages.load(hala.folder / "runs" / "mini"))


def kill(pids: set[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def of_stages(hala: Hala) -> set[int]:
    """Workers of the stages that run."""
    running = [status.folder for status in look(hala).in_state("running") if status.folder]
    return {pid for folder in running for pid in local.workers(folder)}


def ended(hala: Hala) -> Survey:
    wait_for(lambda: look(hala).has_ended, SECONDS)
    return look(hala)


def texts(hala: Hala) -> dict[str, list[dict[str, object]]]:
    places = {status.name: status.folder for status in look(hala).stages.values() if status.folder}
    return {name: pq.read_table(places[name] / "final" / "data").to_pylist() for name in TEXTS}


def test_killed_at_random_moments(laid_out: Hala) -> None:
    """A stage, then the process that goes through them, then everything; and the same again without a kill."""
    hala, drawn = laid_out, random.Random(os.environ.get("HALA_TEST_SEED", "mini"))
    folder = hala.folder / "runs" / "mini"
    hala("submit", mini.PIPELINE, *SITE)
    for victims in ("stage", "conductor", "everything"):
        time.sleep(drawn.uniform(20, 150))
        pids = {"stage": wait_for(lambda: of_stages(hala), 120), "conductor": local.workers(folder)}
        kill(pids.get(victims) or set().union(*pids.values()))
        if victims != "stage":
            wait_for(lambda: not local.workers(folder), 30)
            hala("resume", "mini")
    assert ended(hala).finished
    measured, broken = mini.reached(hala), texts(hala)
    mini.assert_learned(measured)
    mini.assert_shown(folder)

    folder.rename(folder.with_name("broken"))
    hala("submit", mini.PIPELINE, *SITE)
    assert ended(hala).finished
    assert mini.reached(hala) == measured
    assert texts(hala) == broken

    before = {name: status.folder for name, status in look(hala).stages.items()}
    hala("submit", mini.PIPELINE, *SITE, "stages.merge.task.t=[0.6,0.8]")
    now = ended(hala)
    assert now.finished
    again = {name for name, status in now.stages.items() if status.folder != before[name]}
    assert again == {"merge", "evaluate"}
    kinds = [item.event["stage"] for item in decisions.read(folder) if item.kind == decisions.RAN]
    assert kinds == 2 * ["best", "report", "publish"], "what stands on it"
