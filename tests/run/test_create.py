"""A run comes to be whole, or not at all; and so does everything else that is made aside and named."""

import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.run import files, manifest
from hala_hpc.run.layout import find_run
from hala_hpc.run.manifest import Facts, Shard, create

SHARDS = [Shard(i, "translate", "a.jsonl", 100 * i, 10 * i, 10, 55, 12, f"d{i}") for i in range(3)]
FACTS = Facts(".parquet", 30, 60, 165, 36, [{"path": "a.jsonl", "rows": 30}], "ff", {"hala_hpc": "0"})
fork = multiprocessing.get_context("fork")


def fill(folder: Path) -> tuple[list[Shard], Facts]:
    (folder / "input").mkdir()
    return SHARDS, FACTS


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    manifest.write(tmp_path / "m.parquet", SHARDS, FACTS)
    plan = manifest.read(tmp_path / "m.parquet")
    assert list(plan) == SHARDS
    assert plan.facts == replace(FACTS, sealed=True)
    assert plan[1] == SHARDS[1]
    assert plan.column("rows") == [10, 10, 10]


@pytest.mark.parametrize(
    ("data", "said"),
    [(None, "No such file"), (b"", "is empty"), (b"PAR1 not really", "not readable"), (b"{}", "not readable")],
)
def test_what_is_no_manifest_is_said_to_be_none(tmp_path: Path, data: bytes | None, said: str) -> None:
    path = tmp_path / "manifest.parquet"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(HalaError, match=rf"manifest.parquet: .*{said}.*put a copy back"):
        manifest.read(path)


def test_a_parquet_file_of_others_is_no_manifest(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": [1]}), tmp_path / "m.parquet")
    with pytest.raises(HalaError, match="not a manifest"):
        manifest.read(tmp_path / "m.parquet")


def test_a_run_is_made_with_all_its_folders(tmp_path: Path) -> None:
    run = create(tmp_path / "runs" / "r", "name: r\n", fill)
    assert find_run("r", [tmp_path / "runs"]) == run.path
    assert run.recipe.read_text().endswith("\nname: r\n...\n")
    assert "# recipe_digest: " in run.recipe.read_text()
    assert manifest.read(run.manifest).facts.made_by["planned_at"].endswith("Z")
    assert run.partial_folder(2).is_dir()
    assert run.lease_folder(2).is_dir()
    assert run.logs.stat().st_mode & 0o077 == 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["r"]


def test_a_run_that_exists_is_refused_and_left_alone(tmp_path: Path) -> None:
    create(tmp_path / "r", "name: first\n", fill)
    with pytest.raises(HalaError, match="run 'r' exists"):
        create(tmp_path / "r", "name: second\n", fill)
    assert "first" in (tmp_path / "r" / "recipe.yaml").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_of_two_that_plan_at_once_one_is_refused(tmp_path: Path) -> None:
    def slowly(folder: Path) -> tuple[list[Shard], Facts]:
        create(tmp_path / "r", "name: faster\n", fill)
        return fill(folder)

    with pytest.raises(HalaError, match="run 'r' exists"):
        create(tmp_path / "r", "name: slower\n", slowly)
    assert "faster" in (tmp_path / "r" / "recipe.yaml").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_bad_input_leaves_nothing(tmp_path: Path) -> None:
    def refuse(folder: Path) -> tuple[list[Shard], Facts]:
        fill(folder)
        raise HalaError("row 7: not text")

    with pytest.raises(HalaError, match="row 7"):
        create(tmp_path / "r", "name: r\n", refuse)
    assert list(tmp_path.iterdir()) == []


def test_a_planner_that_was_killed_is_in_nobodys_way(tmp_path: Path) -> None:
    def die(folder: Path) -> tuple[list[Shard], Facts]:
        manifest.write(folder / "manifest.parquet", SHARDS, FACTS)
        (folder / "recipe.yaml").write_text("")
        import os

        os._exit(9)

    process = fork.Process(target=create, args=(tmp_path / "r", "name: r\n", die))
    process.start()
    process.join()
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(HalaError, match="there are no runs"):
        find_run("r", [tmp_path])
    create(tmp_path / "r", "name: r\n", fill)


def test_an_unknown_run_is_answered_with_those_there_are(tmp_path: Path) -> None:
    create(tmp_path / "known", "name: known\n", fill)
    with pytest.raises(HalaError) as caught:
        find_run("knwon", [tmp_path])
    assert "known" in str(caught.value)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_folder_never_replaces_what_stands_there(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out"

    def appear() -> None:
        if kind == "folder":
            target.mkdir()
            (target / "theirs").touch()
        else:
            target.write_text("theirs")

    with pytest.raises(FileExistsError), files.whole_directory(target) as folder:
        (folder / "ours").touch()
        appear()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (target / "ours").exists()
    with pytest.raises(FileExistsError), files.whole_directory(target):
        pytest.fail("it stands there already")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_durably(path, b"1")
    files.write_durably(path, b"2")
    assert path.read_bytes() == b"2"
    with pytest.raises(TypeError):
        files.write_durably(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"2"
    assert list(tmp_path.iterdir()) == [path]
