"""A run that lost something: it is named, survived, and done again with one command."""

import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Data
from hala_hpc.data import shards
from hala_hpc.data.files import sources
from hala_hpc.data.outputs.quarantine import reopen
from hala_hpc.run import digests, files, manifest, status
from hala_hpc.run.ledger import Ledger
from hala_hpc.run.verify import set_aside_damaged
from hala_hpc.worker import claims
from hala_hpc.worker.job import work_until
from hala_hpc.worker.task import Outcome
from tests import damaged
from tests.damaged import copied, flipped, hala
from tests.run.helpers import TTL, planned_run, worker
from tests.worker.helpers import directory, proof, rows
from tests.worker.letters import Letters, planned, work

FOLDERS = ("shards", "partial", "leases", "ledger", "logs")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return damaged.finished(tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return damaged.unfinished(tmp_path_factory.mktemp("unfinished"))


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """``hala resume`` has its worker work in this process, to the end."""
    from hala_hpc.pipeline import starting
    from hala_hpc.slurm.record import Submission

    def start(path: Path, runs: object, workers: int = 1) -> list[Submission]:
        work_until(path, lambda: False)
        return [Submission("local", ["1"], workers)]

    monkeypatch.setattr(starting, "start", start)
    yield


def table(run: Path) -> pa.Table:
    return pa.concat_tables(
        digests.read(path)[0].replace_schema_metadata() for path in sorted(run.rglob("00*.parquet"))
    )


def test_damaged_shards_are_set_aside_and_done_again(run: Path, tmp_path: Path, at_once: None) -> None:
    spoiled = copied(run, tmp_path)
    before = table(run / "shards")
    flipped(spoiled / "shards" / "000" / "000001.parquet", 999)
    (spoiled / "shards" / "000" / "000002.parquet").write_bytes(b"")
    code, said = hala("verify", spoiled)
    assert code == 1 and f"2 shards damaged: hala resume {spoiled} --damaged" in said
    code, said = hala("resume", spoiled, "--damaged")
    assert code == 0 and f"2 shards set aside in {spoiled}/damaged: 1, 2" in said and "2 missing shards" in said
    assert proof(spoiled).proven and table(spoiled / "shards").equals(before)
    assert sorted(path.name for path in (spoiled / "damaged").iterdir()) == ["000001.1.parquet", "000002.1.parquet"]
    assert (spoiled / "damaged" / "000001.1.parquet").stat().st_size, "it is as it was found"
    assert "2 damaged outputs" in hala("status", spoiled)[1]
    assert "no damaged shard" in hala("resume", spoiled, "--damaged")[1]


def test_rows_of_one_reason_are_taken_out_of_quarantine_and_the_others_kept(run: Path, tmp_path: Path) -> None:
    again = copied(run, tmp_path)
    found = reopen(again, "failed")
    assert (found.shards, found.rows, found.reasons) == (3, 3, Counter(failed=3, truncated=1))
    assert status.read(again, TTL, 5).done == 0
    recipe = again / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("fail_on: '7'", "fail_on: null"))
    log = run.parents[1] / "r.log"
    before = log.read_text().count("\n")
    assert work_until(again, lambda: False) is Outcome.FINISHED
    assert log.read_text().count("\n") - before == 3, "no finished row is computed again"
    assert {row["hala_row"]: row["hala_error"] for row in rows(again) if row["hala_error"]}.keys() == {21}
    assert [row["text_ar"] for row in rows(again)][7] == "«text 7»"
    assert proof(again).proven and status.read(again, TTL, 5).quarantined == 1
    assert not list((again / "partial" / "000").iterdir()), "the outputs from before went when new ones stood"


def test_reopening_says_what_there_is(run: Path, tmp_path: Path, at_once: None) -> None:
    again = copied(run, tmp_path)
    code, said = hala("resume", again, "--quarantine", "worker died")
    assert code == 2 and "no row is in quarantine for 'worker died' (there are: failed (3), truncated (1))" in said
    flipped(again / "shards" / "000" / "000000.parquet", 8 * 400)
    code, said = hala("resume", again, "--quarantine")
    assert code == 0 and "3 rows of 2 shards taken out of quarantine" in said
    assert "not touched: 1 damaged shard," in said
    assert proof(again).damaged == [0]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_that_was_purged_is_named_and_made_again(
    begun: Path, tmp_path: Path, at_once: None, folder: str
) -> None:
    purged = copied(begun, tmp_path)
    shutil.rmtree(purged / folder)
    code, said = hala("status", purged)
    assert code == 0 and f"{folder}/" in said and "hala resume makes them again" in said
    assert ("what was finished in them is not" in " ".join(said.split())) == (folder == "shards")
    assert hala("resume", purged)[0] == 0
    assert proof(purged).proven
    assert (purged / folder).is_dir() and (purged / "logs").stat().st_mode & 0o077 == 0


def test_a_worker_outlives_the_removal_of_its_leases(tmp_path: Path) -> None:
    run = planned_run(tmp_path / "r", [1, 1])
    ada, bo = worker(run, "ada"), worker(run, "bo")
    held = ada.claim(0)
    assert held is not None
    shutil.rmtree(run.leases)
    assert not ada.holds(held), "what was held is anybody's"
    ada.now()
    assert ada.beacon.exists()
    taken = bo.claim(0)
    assert taken is not None and bo.holds(taken)
    assert ada.claim(0) is None
    shutil.rmtree(run.path)
    with pytest.raises(FileNotFoundError):
        ada.now()
    assert not run.path.exists(), "nobody wants a removed run back"


def test_names_of_others_are_passed_over(begun: Path, tmp_path: Path) -> None:
    """As NFS, editors and rsync leave them, in every folder."""
    strange = copied(begun, tmp_path)
    before = status.read(strange, TTL, 5)
    for folder in ("shards/000", "partial/000", "leases/000", "leases/workers", "ledger", "logs", "shards", "leases"):
        for name in (
            ".nfs0001",
            "000002.parquet~",
            ".000002.parquet.Xy12",
            "notes",
            "1.parquet",
            "x.jsonl",
            "000001.x",
        ):
            (strange / folder / name).write_bytes(b"\0")
    after = status.read(strange, TTL, 5)
    counts = (after.done, after.running, after.waiting, after.failed, after.rows_done)
    assert counts == (before.done, before.running, before.waiting, before.failed, before.rows_done)
    assert work_until(strange, lambda: False) is Outcome.FINISHED
    assert proof(strange).proven


def test_the_last_step_of_a_run_of_items_is_part_of_it(tmp_path: Path) -> None:
    letters = [{"name": name, "source": name} for name in "ab"]
    run = planned(tmp_path / "run", letters)
    work(run, "one", Letters())
    assert status.read(run, TTL, 3).finished
    shutil.rmtree(run / "final")
    state = status.read(run, TTL, 3)
    assert (state.done, state.unassembled, state.finished) == (2, True, False)
    from hala_hpc.run.collect import collect_folders
    from hala_hpc.run.verify import verify

    verdict = verify(run, Letters().checker(None))  # type: ignore[arg-type]
    assert (verdict.problem_count, verdict.unassembled, verdict.proven) == (0, True, False)
    with pytest.raises(HalaError, match="its last step"):
        collect_folders(run, tmp_path / "out")
    work(run, "two", Letters())
    assert status.read(run, TTL, 3).finished
    assert collect_folders(run, tmp_path / "out").files == 1


def test_what_was_made_of_a_damaged_shard_goes_with_it(tmp_path: Path) -> None:
    from hala_hpc.run.verify import ShardReport

    run = planned(tmp_path / "run", [{"name": name, "source": name} for name in "ab"])
    work(run, "one", Letters())
    set_aside_damaged(run, lambda shard, path: ShardReport(1, problems=("bad",) if shard.id else ()))
    assert sorted(path.name for path in (run / "damaged").iterdir()) == ["000001.1", "final.1"]
    work(run, "two", Letters())
    assert (run / "final" / "letters").read_text() == "ab"


def test_counts_of_quarantine_are_those_of_verify(run: Path, tmp_path: Path) -> None:
    """Whatever workers counted twice, and where their history is lost."""
    counted = copied(run, tmp_path)
    for name in ("ada", "bo"):
        history = Ledger(counted / "ledger" / f"{name}.jsonl", host="h", job="", pid=0)
        history.write("progress", rows=10, quarantined=9, prompt_tokens=0, output_tokens=0, working_on={"1": 4})
    state = status.read(counted, TTL, 5)
    assert state.quarantined == sum(proof(counted).quarantined.values()) == 4
    assert [each.working_on for each in state.workers if each.worker == "ada"] == [{}], "the dead are at nothing"
    shutil.rmtree(counted / "ledger")
    assert status.read(counted, TTL, 5).quarantined == 4
    (counted / "shards" / "000" / "000000.parquet").write_bytes(b"")
    lost = status.read(counted, TTL, 5)
    assert (lost.quarantined, lost.unknown_quarantine) == (3, 1)
    assert "3 in quarantine, and of 1 shard unknown" in hala("status", counted)[1]


def test_errors_of_the_same_words_are_told_once(tmp_path: Path) -> None:
    run = planned_run(tmp_path / "r", [1])
    for name in "abcd":
        history = Ledger(run.ledger / f"{name}.jsonl", host="h", job="", pid=0)
        history.write("failed", error="no such file")
    errors = status.read(run.path, TTL, 3).errors
    assert [(error["error"], error["count"]) for error in errors] == [("no such file", 4)]


def test_a_damaged_neighbour_does_not_hide_the_others(run: Path, begun: Path, tmp_path: Path) -> None:
    copied(run, tmp_path)
    (copied(begun, tmp_path) / "manifest.parquet").write_bytes(b"junk")
    half = tmp_path / ".old.0123456789ab.tmp"
    half.mkdir()
    code, said = hala("runs", "--root", tmp_path)
    assert code == 0 and "3/3" in said and f"u: {tmp_path}/u/manifest.parquet: not readable" in said
    assert ".old.0123456789ab.tmp: in the making, or left by a plan that was killed" in said


def test_what_a_killed_plan_left_is_removed_once_it_is_a_day_old(tmp_path: Path) -> None:
    from tests.run.test_create import fill

    old, young, other = (tmp_path / f".{name}.tmp" for name in ("r.0123456789ab", "r.ab0123456789", "s.0123456789ab"))
    for folder in (old, young, other):
        (folder / "input").mkdir(parents=True)
        (folder / "input" / "rows").write_text("x")
    yesterday = time.time() - 25 * 3600
    for folder in (old, other):
        for path in (folder / "input" / "rows", folder / "input", folder):
            os.utime(path, (yesterday, yesterday))
    manifest.create(tmp_path / "r", "name: r\n", fill)
    assert [folder.exists() for folder in (old, young, other)] == [False, True, True]


def test_logs_say_what_is_not_there(run: Path, tmp_path: Path) -> None:
    code, said = hala("logs", run, "99")
    assert code == 2 and "r has no shard 99 (its shards are 0 to 2)" in said
    quiet = copied(run, tmp_path)
    shutil.rmtree(quiet / "ledger")
    assert "no logs: no worker has written one yet" in hala("logs", quiet)[1]
    assert hala("logs", run, "-n", "-5")[0] == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_a_run_of_somebody_else_is_said_to_be_theirs(run: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        theirs = copied(run, Path(folder))
        for words in (("logs", theirs), ("resume", theirs, "no=1"), ("status", theirs)):
            hala(*words)  # so that all modules are loaded: the other user may not even read this Python
        os.seteuid(12345)
        try:
            for words in (("logs", theirs), ("resume", theirs)):
                code, said = hala(*words)
                assert code == 2 and "root's" in said
                assert "closed" in said
            assert hala("status", theirs)[0] == 0
        finally:
            os.seteuid(0)


def test_data_that_is_gone_is_named_with_what_to_do(
    begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "PATIENCE_SECONDS", 0.0)
    waiting = copied(begun, tmp_path)
    data = begun.parents[1] / "u.jsonl"
    data.rename(tmp_path / "elsewhere.jsonl")
    try:
        code, said = hala("worker", waiting)
        assert code == 2 and "out of reach" in said
        waited, ended = [str(error["error"]) for error in status.read(waiting, TTL, 5).errors]
        told = f"{data}: gone since the run was planned (put the file back as it was"
        assert waited.startswith(told) and "no shard counts it" in ended
    finally:
        data.symlink_to(tmp_path / "elsewhere.jsonl")
    assert work_until(waiting, lambda: False) is Outcome.FINISHED
    assert proof(waiting).proven


def test_data_that_moved_are_read_where_they_are_now(begun: Path, tmp_path: Path, at_once: None) -> None:
    """Another file is refused by its size; one of the same size by the digests of the plan."""
    run, data = copied(begun, tmp_path), begun.parents[1] / "u.jsonl"
    plan, whole = manifest.read(run / "manifest.parquet"), data.read_bytes()
    new = tmp_path / "elsewhere.jsonl"
    data.unlink()
    try:
        new.write_bytes(whole + b"\n")
        code, said = hala("resume", run, f"data.path={new}")
        assert code == 2 and f"{new} ({len(whole) + 1:,} bytes) is not {data} ({len(whole):,} bytes)" in said
        assert not (run / sources.NAME).exists() and not (run / "changes").exists()
        new.write_bytes(whole.replace(b"text", b"TEXT"))
        assert sources.note(run, plan.facts, Data(path=[str(new)])) == 1
        with pytest.raises(HalaError, match="changed since the run was planned"):
            shards.read_input(run, plan[1], plan.facts)
        new.write_bytes(whole)
        code, said = hala("resume", run, f"data.path={new}")
        assert code == 0, said
    finally:
        data.write_bytes(whole)
    assert proof(run).proven
    assert hala("status", run, "--json")[1].count(str(new)) == 1, "what was changed is told"


def test_files_that_share_their_bytes_are_closed_to_writing(tmp_path: Path) -> None:
    (tmp_path / "shard").write_text("weights")
    assert files.link_read_only(tmp_path / "shard", tmp_path / "collected")
    for name in ("shard", "collected"):
        assert (tmp_path / name).stat().st_mode & 0o222 == 0
    assert not files.link_read_only(tmp_path / "none", tmp_path / "other")


def test_the_clock_file_is_nobody_elses(tmp_path: Path) -> None:
    run = planned_run(tmp_path / "r", [1])
    (run.leases / f".clock-{os.getpid()}").touch()
    assert abs(files.now_in(directory(run.path).leases) - time.time()) < 60
    assert (run.leases / f".clock-{os.getpid()}").exists()
