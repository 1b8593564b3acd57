"""What tests share: real data beside the project, real environments, one cluster and one tiny model per session."""

import fcntl
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.minislurm.fixture import cluster as cluster

ROOT = Path(__file__).parents[1]
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads that wait for each other on busy cores take ten times as long
TinyModel = Callable[[str], Path]
SERVE_PYTHON = ROOT / ".envs" / "serve-cpu" / "bin" / "python"
ARCHITECTURES = ("llama", "gemma2", "cohere2", "lfm2")
BUILD = """
import gc, sys, tiny_model
gc.disable()  # a second of a core: it goes over all that transformers brings
[tiny_model.build(tiny_model.Path(sys.argv[1], name), name) for name in sys.argv[2:]]
"""
SMALL_VLLM = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TORCH_COMPILE_DISABLE": "1"}
"""Variables of a tiny model's engine: in the worker's own process, with nothing compiled.

``enforce_eager`` leaves vLLM's sampler to the compiler: 20 s of a core where its cache is cold, 3 s where it is warm.
"""


SLOW = (
    "tests/worker/",
    "tests/publish/test_publish.py",
    "tests/publish/test_hub.py",
    "tests/report/test_page.py",
    "tests/tasks/train/export/test_export.py",
    "tests/test_hostile_options.py",
    "tests/test_extending.py",
    "tests/test_sweep.py",
    "tests/slurm/test_environments.py",
    "tests/slurm/test_steward_asks.py",
    "tests/tasks/judge/test_judge.py::test_a_killed_run",
    "tests/tasks/judge/test_judge.py::test_report_and_card",
    "tests/tasks/judge/test_judge.py::test_rules_alone_start_no_engine",
    "tests/tasks/generate/test_generate.py::test_a_killed_run",
    "tests/tasks/generate/test_generate.py::test_counts_add_up",
    "tests/tasks/generate/test_generate.py::test_rejected_rows_can",
    "tests/tasks/translate/test_translate.py::test_submit_does_all_of_it",
    "tests/engines/test_openai.py::test_a_run_sends_the_key_and_never_writes_it",
    "tests/run/test_chaos.py",
    "tests/run/test_simulation.py",
    "tests/cli/",
    "tests/pipeline/",
    "tests/test_benchmarks.py",
    "tests/tasks/train/prepare/test_prepare.py",
    "tests/tasks/train/launch/test_watch.py",
    "tests/models/test_check.py::test_verify",
)
"""Tests that start many processes, or go through every command; `make test-fast` leaves them out."""


CLUSTERS = {
    "jobs": ("tests/slurm/test_training", "tests/slurm/test_models.py", "tests/slurm/test_vllm_cluster.py"),
    "ends": ("tests/faults/", "tests/slurm/test_steward.py", "tests/slurm/test_sites.py", "tests/slurm/test_init.py"),
    "cluster": (
        "tests/slurm/",
        "tests/test_minislurm.py",
        "tests/pipeline/test_grid.py::test_cells_are_one_array_on_slurm",
        "tests/test_benchmarks.py::test_submit",
    ),
}
"""Tests of a cluster, by the process they are for where several run the tests: each starts one. They mostly wait."""


def cluster_of(nodeid: str) -> str | None:
    return next((name for name, tests in CLUSTERS.items() if nodeid.startswith(tests)), None)


def wants_all(config: pytest.Config) -> bool:
    """Whether tests marked exhaustive are asked for: nobody runs them by default."""
    return re.search(r"(?<!not )exhaustive", config.getoption("-m")) is not None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``@pytest.mark.cases(cases, few=60, seed=1)``: a few of the cases, or each of them where all are asked for."""
    for marker in metafunc.definition.iter_markers("cases"):
        (cases,), few, seed = marker.args, marker.kwargs["few"], marker.kwargs["seed"]
        if wants_all(metafunc.config):
            chosen = [pytest.param(case, marks=pytest.mark.exhaustive) for case in cases()]
        else:
            chosen = random.Random(seed).sample(cases(), few)
        metafunc.parametrize("case", chosen, ids="-".join)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not wants_all(config):
        items[:] = [item for item in items if item.get_closest_marker("exhaustive") is None]
    heavy = set()
    for item in items:
        if item.nodeid.startswith(SLOW):
            item.add_marker("slow")
        if any(item.get_closest_marker(name) for name in ("vllm", "train")):
            heavy.add(item.path)
        on_cluster = item.get_closest_marker("slurm") is not None
        assert not on_cluster or cluster_of(item.nodeid), f"{item.nodeid}: name it in CLUSTERS"

    def order(item: pytest.Item) -> tuple[int, bool]:
        """The longest first, so that no process ends long after the others."""
        names = [*CLUSTERS, None]
        return names.index(cluster_of(item.nodeid)), item.path not in heavy

    items.sort(key=order)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``-n``: a cluster's tests in one process, others by module, whose tests share an engine or a training."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByCluster(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return cluster_of(nodeid) or nodeid.partition("::")[0]

    return ByCluster(config, log)


@pytest.fixture(scope="session")
def data() -> Path:
    """Real text that is not part of the project: ../shared/data, or where HALA_TEST_DATA points."""
    path = Path(os.environ.get("HALA_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no test data at {path} (set HALA_TEST_DATA)")
    return path


@pytest.fixture(scope="session")
def serve_python() -> Path:
    """The interpreter of the serve environment, which holds vLLM."""
    if not SERVE_PYTHON.is_file():
        pytest.skip("no serve environment (make serve)")
    return SERVE_PYTHON


@pytest.fixture(scope="session")
def tiny_model(serve_python: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A tiny random chat model of an architecture; one process builds all of them, once per session."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "models"

    def build(architecture: str) -> Path:
        folder.mkdir(exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another process of these tests may be at it
            if not all((folder / name).is_dir() for name in ARCHITECTURES):
                env = os.environ | {"PYTHONPATH": str(ROOT / "jobs" / "demo")}
                subprocess.run([serve_python, "-c", BUILD, folder, *ARCHITECTURES], env=env, check=True)
        return folder / architecture

    return build


class Hala:
    """The command line, as a process of its own: ``hala("status", run).stdout``; ``hala.json(…)`` parses its JSON."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HALA_", "SLURM_"))}
        self.env = kept | {"HALA_SITE": "local"}  # where Slurm is installed, a site must be chosen

    def __call__(self, *words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hala_hpc.cli", *map(str, words)]
        done = subprocess.run(command, cwd=self.folder, env=self.env, capture_output=True, text=True, check=False)
        assert done.returncode == code, (
            f"hala {' '.join(map(str, words))}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        return done

    def json(self, *words: object) -> Any:
        return json.loads(self(*words, "--json").stdout)


@pytest.fixture
def hala(tmp_path: Path) -> Hala:
    """``hala`` in an empty folder, where its runs then are."""
    return Hala(tmp_path)


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[..., Path]:
    """Write a recipe: the echo engine unless told otherwise."""

    def write(name: str = "test", **sections: Any) -> Path:
        recipe = {"name": name, "task": {"kind": "translate"}, "engine": {"kind": "echo"}} | sections
        if recipe["task"].get("kind", "translate") == "translate":  # echo gives English back, which checks would flag
            recipe["task"] = {"segments": {"tokens": 0}} | recipe["task"]
        path = tmp_path / f"{name}.yaml"
        path.write_text(json.dumps(recipe, default=str))  # JSON is YAML
        return path

    return write


@pytest.fixture(scope="session", autouse=True)
def _no_inherited_runs() -> Iterator[None]:
    """A person's own settings must not reach the tests, whose site is this machine, also where it has Slurm."""
    kept = {key: os.environ.pop(key) for key in list(os.environ) if key.startswith("HALA_") and key != "HALA_TEST_DATA"}
    os.environ["HALA_SITE"] = "local"
    yield
    del os.environ["HALA_SITE"]
    os.environ.update(kept)


__all__ = ["cluster"]
