"""Cards are read by others: they name runs, and nobody's folders."""

from pathlib import Path

import pytest

from hala_hpc.models.card import without_folders
from hala_hpc.run import manifest
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.manifest import Facts, Shard


@pytest.mark.parametrize(
    ("items", "inside", "name"),
    [
        ([], "shards/000/000000", "sft"),
        ([], "final", "sft"),
        (["t0.25", "t0.50"], "shards/000/000001", "sft-t0.50"),
        (["a.safetensors", "b.safetensors"], "final", "sft"),
    ],
)
def test_a_model_in_a_run_is_called_by_the_run(tmp_path: Path, items: list[str], inside: str, name: str) -> None:
    run = RunDirectory(tmp_path / "sft", "")
    run.create_folders(2)
    shards = [Shard(number, "merge", "m", 0, number, 1, 0, 0, "") for number in range(2)]
    facts = Facts("", 2, 0, 0, 0, unit="merges", items=[{"name": item} for item in items])
    manifest.write(run.manifest, shards, facts)
    assert without_folders({"models": [str(run.path / inside)]}) == {"models": [name]}


def test_other_folders_are_called_by_their_last_name(tmp_path: Path) -> None:
    said = ["/home/somebody/models/final", str(tmp_path / "shards" / "000" / "000001"), "org/model", 3]
    assert without_folders(said) == ["final", "000001", "org/model", 3]
