"""A flip of any bit, anywhere in what a run made of models and results: verify finds it, nobody else gets it."""

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.publish import content
from hala_hpc.run import digests, manifest, publishing
from hala_hpc.run.collect import collect_folders
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.verify import ShardReport, verify
from tests.models import test_check as models
from tests.publish import runs
from tests.report import made

FLIPS = 20


def flips(folder: Path, seed: int) -> Iterator[Path]:
    """Flip a bit of one file of a folder, and put it back; cards are people's own."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != digests.CARD)
    draw = random.Random(seed)
    for number in range(max(FLIPS, len(files))):
        path = files[number % len(files)]  # every file, however small
        whole = path.read_bytes()
        flipped = bytearray(whole)
        place = draw.randrange(len(whole))
        flipped[place] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        yield path
        path.write_bytes(whole)


def published(run: Path) -> Path:
    """A run whose folders are published as a worker does it: the makers of this test's runs put them there by hand."""
    plan = manifest.read(run / "manifest.parquet")
    directory = RunDirectory(run, "")
    for shard in range(len(plan)):
        made_by_hand = directory.partial_folder(shard) / f"{shard:06d}.made"
        directory.shard_output(shard).rename(made_by_hand)
        assert publishing.publish(directory, shard, made_by_hand)
    return run


def trained(folder: Path) -> Path:
    data = {"mine": {"hub": "Org/mine", "licence": "mit"}}
    return published(runs.trained(folder / "sft", {"name": "Org/base", "licence": "mit"}, data, []))


def merged(folder: Path) -> Path:
    return published(runs.merged(folder / "merge", [{"name": "Org/base"}, {"name": "Org/other"}]))


def exported(folder: Path) -> Path:
    run = runs.planned(folder / "x", "checkpoints", {"kind": "export"}, {}, ["step-20"], [])
    models.model(run.shard_output(0))
    return published(run.path)


def evaluated(folder: Path) -> Path:
    return published(made.evaluation(folder / "e", [made.Model("base", 0.5)], {"aratrust": ["ethics"]}))


def proven(run: Path) -> list[str]:
    """What ``hala verify`` says of a run whose task finds nothing wrong with it."""
    return verify(run, lambda shard, _: ShardReport(done=shard.rows)).problems


def assert_no_flip_passes(run: Path, output: Path, is_model: bool = True) -> None:
    """``output``: the one folder that the run made. Digests alone have to tell: no task has a second look."""
    target = run.with_name("passed-on")
    assert proven(run) == []
    for path in flips(output, seed=1):
        assert proven(run), path
        with pytest.raises(HalaError, match=f"{output}: "):
            collect_folders(run, target)
        assert not target.exists()
        if is_model:
            with pytest.raises(HalaError):
                content.refuse_unsound(content.model(run))
    assert proven(run) == []


@pytest.mark.parametrize("make", [trained, merged, exported, evaluated])
def test_every_flip_in_a_published_folder_is_found_and_passed_on_by_nobody(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    run = make(tmp_path)
    assert_no_flip_passes(run, RunDirectory(run, "").shard_output(0), is_model=make is not evaluated)


def test_every_flip_in_a_collected_model_is_found(tmp_path: Path) -> None:
    collect_folders(trained(tmp_path), tmp_path / "model")
    assert digests.folders(tmp_path / "model") == [tmp_path / "model"]
    assert digests.faults(tmp_path / "model") == []
    for path in flips(tmp_path / "model", seed=2):
        assert digests.faults(tmp_path / "model"), path


def test_every_flip_in_what_was_put_together_is_found(tmp_path: Path) -> None:
    """RUN/final of a quantized model or a comparison."""
    run = trained(tmp_path)
    plan = manifest.read(run / "manifest.parquet")
    shutil.copytree(RunDirectory(run, "").shard_output(0), run / "final")
    (run / "manifest.parquet").unlink()
    manifest.write(run / "manifest.parquet", list(plan), replace(plan.facts, assembled=True))
    assert proven(run) == []
    for path in flips(run / "final", seed=3):
        assert all(problem.startswith("final: ") for problem in proven(run)) and proven(run), path
        with pytest.raises(HalaError, match="final: "):
            collect_folders(run, tmp_path / "collected")


def test_a_missing_file_and_one_that_is_a_folder_are_found(tmp_path: Path) -> None:
    output = RunDirectory(trained(tmp_path), "").shard_output(0)
    (output / "config.json").unlink()
    assert digests.faults(output) == ["config.json is missing"]
    (output / "config.json").mkdir()
    assert digests.faults(output) == ["config.json is missing"]


def test_a_folder_from_before_there_were_lists_is_counted_and_not_refused(tmp_path: Path) -> None:
    run = trained(tmp_path)
    (RunDirectory(run, "").shard_output(0) / digests.NAME).unlink()
    verdict = verify(run, lambda shard, _: ShardReport(done=shard.rows))
    assert verdict.proven and verdict.unsealed == 1
