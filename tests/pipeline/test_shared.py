"""``site.shared_with: group``: two users of one group at one run, and what each may do to the other. Needs root."""

import json
import os
import pickle
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT

GROUP = 54100
ANN, BOB, EVE = 54001, 54002, 54003
"""Ann and Bob are of the group, Eve is not. None of them has a name on this machine."""


@dataclass(frozen=True)
class Place:
    """A folder that all can reach, with the runs of the group."""

    path: Path

    def run(
        self, user: int, *words: object, code: int | None = 0, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """A command as a user, who may read whatever Python needs, wherever that lies, and write nothing more."""
        groups = str(GROUP) if user != EVE else str(EVE)
        reads = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
        ids = (f"--reuid={user}", f"--regid={user}", f"--groups={groups}")
        command = ["setpriv", *ids, *reads, *map(str, words)]
        home = self.path / f"home-{user}"
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "src"), "HOME": str(home), "USER": f"u{user}"}
        done = subprocess.run(
            command, cwd=self.path, env=env | variables, umask=0o022, capture_output=True, text=True, check=False
        )
        assert code in (None, done.returncode), f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def hala(self, user: int, *words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        python = (sys.executable, "-m", "hala_hpc.cli")
        return self.run(user, *python, *words, code=code, HALA_SITE="local", HALA_RUNS=str(self.path / "runs"))

    def rows(self, user: int, run: str) -> int:
        return int(json.loads(self.hala(user, "status", run, "--json").stdout)["rows_done"])


@pytest.fixture
def place() -> Iterator[Place]:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("another user can be made by root only, with setpriv")
    folder = Path(tempfile.mkdtemp(prefix="hala-shared-"))
    folder.chmod(0o755)
    made = Place(folder)
    for user in (ANN, BOB, EVE):
        (folder / f"home-{user}").mkdir()
        os.chown(folder / f"home-{user}", user, user)
    (folder / "runs").mkdir()
    os.chown(folder / "runs", ANN, GROUP)
    (folder / "runs").chmod(0o2775)
    (folder / "rows.jsonl").write_text("".join(f'{{"id": {i}, "text": "line {i}"}}\n' for i in range(200)))
    recipe = {
        "name": "r",
        "task": {"kind": "translate", "segments": {"tokens": 0}},
        "engine": {"kind": "echo", "seconds": 0.2, "capacity": 4},
        "data": {"path": "rows.jsonl"},
        "run": {"shard_rows": 20, "lease_seconds": 4, "flush_seconds": 0.2},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    if made.run(ANN, sys.executable, "-c", "import click", code=None).returncode != 0:
        pytest.skip(f"other users cannot run {sys.executable}")
    try:
        yield made
    finally:
        shutil.rmtree(folder)


def begun(place: Place, name: str, *words: str) -> Path:
    """A run that Ann began and stopped half-way."""
    place.hala(ANN, "submit", "recipe.yaml", f"name={name}", *words)
    ends = time.monotonic() + 60
    while place.rows(ANN, name) < 25:
        assert time.monotonic() < ends
        time.sleep(0.3)
    place.hala(ANN, "cancel", name)
    assert place.rows(ANN, name) < 200
    return place.path / "runs" / name


def test_a_colleague_goes_on_and_both_can_verify(place: Place) -> None:
    run = begun(place, "shared", "site.shared_with=group")
    files = list(run.rglob("*"))
    assert {path.lstat().st_gid for path in files} == {GROUP}
    private = [path for path in files if not path.lstat().st_mode & stat.S_IWGRP and not is_output(run, path)]
    assert {path.suffix for path in private} == {".pkl"}, "all but pickles can be written by the group"
    place.hala(BOB, "resume", "shared", "--workers", "2", "engine.seconds=0.05", code=2)  # a recipe is frozen
    place.hala(BOB, "resume", "shared", "--workers", "2", "site.slurm.minutes=30")
    ends = time.monotonic() + 90
    while not json.loads(place.hala(BOB, "status", "shared", "--json").stdout)["finished"]:
        assert time.monotonic() < ends
        time.sleep(0.5)
    assert {path.stat().st_uid for path in (run / "shards").rglob("*.parquet")} == {ANN, BOB}
    for user in (ANN, BOB):
        place.hala(user, "verify", "shared")
    place.hala(ANN, "collect", "shared")
    assert "nothing is missing" in place.hala(ANN, "resume", "shared").stdout
    assert "is frozen" not in place.hala(EVE, "resume", "shared", code=2).stderr


def is_output(run: Path, path: Path) -> bool:
    """What is published is closed to writing by everybody; whoever may write to its folder can take it away."""
    return path.suffix == ".parquet" and path.is_relative_to(run / "shards")


def test_without_it_a_run_is_its_owners(place: Place) -> None:
    run = begun(place, "mine")
    assert stat.S_IMODE((run / "logs").stat().st_mode) == 0o700
    assert not any(path.lstat().st_mode & stat.S_IWGRP for path in run.rglob("*"))
    for user in (BOB, EVE):
        refused = place.hala(user, "resume", "mine", code=2).stderr
        assert f"this run is user {ANN}'s, and only they start its workers" in refused


class Bomb:
    """What a pickle of somebody else's could be."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("way", ["owner", "mode", "link"])
def test_nothing_is_unpickled_that_others_wrote(place: Place, way: str) -> None:
    logs = place.path / "runs" / "logs"
    logs.mkdir()
    os.chown(logs, ANN, GROUP)
    logs.chmod(0o3770)
    fired = place.path / f"home-{ANN}" / "fired"
    path, variables = logs / "7_submitted.pkl", {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": "7"}
    path.write_bytes(pickle.dumps(Bomb(fired)))
    os.chown(path, BOB if way == "owner" else ANN, GROUP)
    path.chmod(0o664 if way == "mode" else 0o644)
    if way == "link":
        path.rename(logs / "else")
        path.symlink_to(logs / "else")
        os.chown(path, ANN, GROUP, follow_symlinks=False)
    words = (sys.executable, "-m", "hala_hpc.worker.unpickle", logs)
    variables |= {"SUBMITIT_LOCAL_NTASKS": "1", "SUBMITIT_LOCAL_GLOBALID": "0", "SUBMITIT_LOCAL_LOCALID": "0"}
    done = place.run(ANN, *words, code=None, **variables)
    assert not fired.exists()
    assert done.returncode == (1 if way == "link" else 2), done.stderr
    if way == "owner":
        assert f"belongs to user {BOB}, and loading it would run what is in it" in done.stderr
        return
    path.unlink()
    path.write_bytes(pickle.dumps(Bomb(fired)))
    os.chown(path, ANN, GROUP)
    path.chmod(0o600)
    place.run(ANN, *words, code=None, **variables)
    assert fired.exists(), "Ann's own is loaded: so it was the refusal that held it back"


def test_a_colleague_cannot_take_a_pickle_away(place: Place) -> None:
    run = begun(place, "sticky", "site.shared_with=group")
    (pickled,) = (run / "logs").glob("*_submitted.pkl")
    for command in (f"rm -f {pickled}", f"mv {run}/recipe.yaml {pickled}", f"echo x >> {pickled}"):
        assert place.run(BOB, "sh", "-c", command, code=None).returncode != 0
    assert pickled.stat().st_uid == ANN
    place.run(BOB, "touch", run / "logs" / "mine")
    assert place.run(EVE, "touch", run / "logs" / "hers", code=None).returncode != 0
