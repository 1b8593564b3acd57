"""Every byte of every shard and collected file is proven or refused: flips, cuts, and files of others."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hala_hpc.cli.publish import publish_command
from hala_hpc.config.errors import HalaError
from hala_hpc.data.outputs.collect import collect, verify
from hala_hpc.run import digests, manifest
from tests import damaged
from tests.damaged import DAMAGES, Damage, copied, flipped, hala
from tests.worker.helpers import proof

FLIPS = 20


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return damaged.finished(tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="module")
def dataset(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("collected") / "data"
    collect(run, target)
    return target


def outputs(run: Path) -> list[Path]:
    return sorted((run / "shards").rglob("*.parquet"))


def published(run: Path, target: Path, *words: str) -> None:
    publish_command.main([str(run), "--to", str(target), "--licence-of", "r.jsonl=mit", *words], standalone_mode=False)


def published_dry(run: Path, target: Path, *words: str) -> None:
    published(run, target, "--dry-run", *words)


def test_a_whole_run_and_what_is_collected_of_it_are_proven(run: Path, dataset: Path) -> None:
    verdict = proof(run)
    assert (verdict.proven, verdict.unsealed, verdict.damaged) == (True, 0, [])
    assert verdict.quarantined == {"failed": 3, "truncated": 1}
    whole = verify(dataset)
    assert (whole.proven, whole.files, whole.rows, whole.quarantined) == (True, 2, 26, 4)
    code, said = hala("verify", dataset)
    assert code == 0 and "26 rows, 4 in quarantine, 2 files\nproven" in said


def test_what_is_whole_is_published(run: Path, dataset: Path, tmp_path: Path) -> None:
    published(run, tmp_path / "out", "--collected", str(dataset))
    (file,) = (tmp_path / "out" / "data").iterdir()
    assert file.read_bytes() == (dataset / "data" / file.name).read_bytes()
    published_dry(run, tmp_path / "other")


@pytest.mark.parametrize("seed", range(FLIPS))
def test_a_flip_in_a_shard_is_found_and_not_passed_on(run: Path, tmp_path: Path, seed: int) -> None:
    """Of any bit of any byte: of all columns, headers, statistics, the footer and the seal itself."""
    chance = random.Random(seed)
    spoiled = copied(run, tmp_path)
    output = chance.choice(outputs(spoiled))
    flipped(output, chance.randrange(output.stat().st_size * 8))
    shard = int(output.stem)
    verdict = proof(spoiled)
    assert (verdict.proven, verdict.damaged) == (False, [shard])
    for pass_on in (collect, published, published_dry):
        with pytest.raises(HalaError, match=rf"shard {shard} .*`hala resume {spoiled} --damaged`"):
            pass_on(spoiled, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (spoiled / "final").exists()


@pytest.mark.parametrize("seed", range(FLIPS))
def test_a_flip_in_a_collected_file_is_found_and_not_published(
    run: Path, dataset: Path, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    spoiled = copied(dataset, tmp_path)
    path = chance.choice(sorted(spoiled.rglob("*.parquet")))
    flipped(path, chance.randrange(path.stat().st_size * 8))
    verdict = verify(spoiled)
    name = str(path.relative_to(spoiled))
    assert [problem.partition(":")[0] for problem in verdict.problems] == [name]
    for pass_on in (published, published_dry):
        with pytest.raises(HalaError, match=f"{spoiled}: {name}: is damaged"):
            pass_on(run, tmp_path / "out", "--collected", str(spoiled))
    assert not (tmp_path / "out").exists()


@pytest.mark.exhaustive
def test_every_flip_is_found(run: Path, dataset: Path, tmp_path: Path) -> None:
    facts = manifest.read(run / "manifest.parquet").facts
    for path in (outputs(run)[0], *dataset.rglob("*.parquet"), run / "manifest.parquet"):
        spoiled = tmp_path / path.name
        content = path.read_bytes()
        for bit in range(len(content) * 8):
            data = bytearray(content)
            data[bit // 8] ^= 1 << bit % 8
            spoiled.write_bytes(data)
            try:
                _, sealed = digests.read(spoiled)
            except digests.Damaged:
                continue
            assert facts.sealed and not sealed, f"{path.name}, bit {bit}"


@pytest.mark.parametrize(
    "damage", [damage for name, damage in DAMAGES.items() if name not in ("removed", "unreadable")]
)
def test_a_torn_shard_is_refused(run: Path, tmp_path: Path, damage: Damage) -> None:
    spoiled = copied(run, tmp_path)
    damage(outputs(spoiled)[1])
    assert proof(spoiled).damaged == [1]
    with pytest.raises(HalaError, match="shard 1 "):
        collect(spoiled, tmp_path / "out")


@pytest.mark.parametrize("damage", DAMAGES.values())
@pytest.mark.parametrize("name", ["data/train-00000-of-00001.parquet", "quarantine.parquet", "README.md"])
def test_a_torn_collected_file_is_refused(dataset: Path, tmp_path: Path, damage: Damage, name: str) -> None:
    if name == "README.md" and damage in (DAMAGES["garbage after it"], DAMAGES["truncated"]):
        pytest.skip("a card is for people, who may edit it: only its counts matter")
    spoiled = copied(dataset, tmp_path)
    damage(spoiled / name)
    code, said = hala("verify", spoiled)
    assert code == 1 and said.endswith("NOT proven\n") and name.split("/")[0] in said


def swap(run: Path) -> None:
    first, second, _ = outputs(run)
    shutil.copyfile(first, second)


def foreign(run: Path) -> None:
    """The same rows, done by another run: of the same shape and length to the last column."""
    (run.parent / "other").mkdir()
    other = damaged.finished(run.parent / "other")
    shutil.copyfile(outputs(other)[0], outputs(run)[0])


@pytest.mark.parametrize(
    ("replace", "said"),
    [(swap, "is the output of shard 0 under another's name"), (foreign, "was made by another run")],
)
def test_an_output_of_another_is_refused(run: Path, tmp_path: Path, replace: Callable[[Path], None], said: str) -> None:
    spoiled = copied(run, tmp_path)
    replace(spoiled)
    assert said in proof(spoiled).problems[0]
    with pytest.raises(HalaError, match=said):
        collect(spoiled, tmp_path / "out")


def test_a_shard_that_the_plan_does_not_have_is_named(run: Path, tmp_path: Path) -> None:
    spoiled = copied(run, tmp_path)
    shutil.copyfile(outputs(spoiled)[0], spoiled / "shards" / "000" / "000007.parquet")
    assert proof(spoiled).problems == ["shards/000/000007.parquet: the plan has no such shard; move it away"]
    assert "3 done" in hala("status", spoiled)[1]


def test_a_collected_file_that_is_gone_or_doubled_is_named(dataset: Path, tmp_path: Path) -> None:
    spoiled = copied(dataset, tmp_path)
    data = spoiled / "data"
    (data / "train-00000-of-00001.parquet").rename(data / "train-00000-of-00002.parquet")
    assert "data/: 1 file, and their names say 2" in verify(spoiled).problems
    shutil.copyfile(data / "train-00000-of-00002.parquet", data / "train-00001-of-00002.parquet")
    assert "stand twice" in "; ".join(verify(spoiled).problems)
    assert not verify(spoiled).proven


def unsealed(run: Path) -> None:
    """As a run was before there were seals."""
    import json
    from dataclasses import asdict, replace

    plan = manifest.read(run / "manifest.parquet")
    told = asdict(replace(plan.facts, sealed=False))
    del told["sealed"], told["assembled"]
    table = digests.read(run / "manifest.parquet")[0]
    pq.write_table(table.replace_schema_metadata({b"hala": json.dumps(told).encode()}), run / "manifest.parquet")
    for output in outputs(run):
        pq.write_table(digests.read(output)[0], output)


def test_a_run_from_before_there_were_seals_is_read_and_told(run: Path, tmp_path: Path) -> None:
    old = copied(run, tmp_path)
    unsealed(old)
    code, said = hala("verify", old)
    assert code == 0 and "3 of 3 shards were written before there were seals" in said and "\nproven" in said
    collect(old, tmp_path / "out")
    assert verify(tmp_path / "out").proven, "what is collected is sealed now"
    changed = digests.read(outputs(old)[0])[0]
    pq.write_table(changed.slice(1), outputs(old)[0])
    with pytest.raises(HalaError, match=r"shard 0 .*1 row lost"):
        collect(old, tmp_path / "again")


def test_a_shard_that_lost_its_seal_is_damaged(run: Path, tmp_path: Path) -> None:
    spoiled = copied(run, tmp_path)
    pq.write_table(digests.read(outputs(spoiled)[0])[0], outputs(spoiled)[0])
    assert proof(spoiled).problems == ["shard 0: is damaged: its seal is gone"]


def test_nothing_is_made_of_a_run_of_which_nothing_is_finished(tmp_path: Path) -> None:
    run = damaged.plan(tmp_path, ["a", "b"])
    with pytest.raises(HalaError, match="no shard is finished yet"):
        collect(run, tmp_path / "out", partial=True)
    assert not (tmp_path / "out").exists()


def test_other_readers_can_check_the_pages(run: Path) -> None:
    table = pq.ParquetFile(outputs(run)[0], page_checksum_verification=True).read()
    assert table["text_ar"][0].as_py() == "«text 0»"
