"""Sources are found through every stage, back to what is not ours."""

import shutil
from pathlib import Path

import pytest

from hala_hpc.publish import hub, sources
from hala_hpc.publish.licences import Origin
from tests.publish import runs


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    place = tmp_path / "cache"
    runs.card_in_cache(place, "model", "Org/base-1b", "other", license_name="lfm1.0")
    runs.card_in_cache(place, "model", "Org/teacher", "cc-by-nc-4.0")
    runs.card_in_cache(place, "dataset", "Org/english", "mit")
    return place


def found(run: Path, cache: Path) -> dict[str, Origin]:
    return {source.name: source for source in sources.of_run(run, hub.cards(cache, online=False))}


def rows_run(path: Path) -> Path:
    """A translation of a dataset on the hub, collected into its own folder."""
    read = [{"path": "input/0", "original": "hub:Org/english@main/train", "rows": 90, "bytes": 1}]
    run = runs.planned(path, "rows", {"kind": "translate"}, {"name": "Org/teacher"}, [], read)
    return runs.change(run.path, data={"hub": "Org/english"})


def test_a_translation_names_its_data_and_who_wrote_it(tmp_path: Path, cache: Path) -> None:
    named = found(rows_run(tmp_path / "openorca-ar"), cache)
    assert [(one.name, one.role, one.licence, one.rows) for one in named.values()] == [
        ("Org/english", "data", "mit", 90), ("Org/teacher", "writer", "cc-by-nc-4.0", None),
    ]  # fmt: skip
    echoed = runs.change(rows_run(tmp_path / "echo"), engine={"kind": "echo"})
    assert "Org/teacher" not in found(echoed, cache)


def test_a_merge_names_what_its_models_were_trained_on_and_who_wrote_that(tmp_path: Path, cache: Path) -> None:
    """base -> trained on (translated by teacher, and a file of ours) -> merged with base."""
    rows = rows_run(tmp_path / "runs" / "openorca-ar")
    (tmp_path / "own").mkdir()
    read = [
        {"original": str(rows / "final" / "data" / "train-0.parquet"), "rows": 80, "dataset": "translated"},
        {"original": str(tmp_path / "own" / "mine.jsonl"), "rows": 7, "dataset": "mine"},
        {"original": str(tmp_path / "own" / "more.jsonl"), "rows": 8, "dataset": "mine"},
    ]
    datasets = {"translated": {"path": [str(rows / "final")]}, "mine": {"path": [str(tmp_path / "own")]}}
    tuned = runs.trained(tmp_path / "runs" / "sft", {"name": "Org/base-1b"}, datasets, read)
    output = tuned / "shards" / "000" / "000000"
    merge = runs.merged(tmp_path / "runs" / "merge", [{"name": "Org/base-1b"}, {"name": str(output)}])
    named = found(merge, cache)
    assert {name: (one.role, one.licence) for name, one in named.items()} == {
        "Org/base-1b": ("model", "lfm1.0"),
        "Org/english": ("data", "mit"),
        "Org/teacher": ("writer", "cc-by-nc-4.0"),
        "own": ("data", None),
    }
    assert named["Org/english"].made == "openorca-ar" and named["own"].made == "sft"
    assert (named["own"].rows, named["Org/base-1b"].made) == (15, "")


def test_what_the_recipe_says_of_a_licence_counts_most(tmp_path: Path, cache: Path) -> None:
    data = {"english": {"hub": "Org/english", "licence": "CC BY-SA 4.0"}}
    tuned = runs.trained(tmp_path / "sft", {"name": "Org/base-1b", "licence": "Apache 2.0"}, data, [])
    named = found(tuned, cache)
    assert named["Org/english"].licence == "cc-by-sa-4.0" and named["Org/english"].named_by == "the recipe"
    assert named["Org/base-1b"].licence == "apache-2.0"


def test_each_dataset_of_a_mixture_has_its_own_files_and_licence(tmp_path: Path, cache: Path) -> None:
    mixed = {
        "one": {"path": [str(tmp_path / "a.jsonl")], "licence": "mit"},
        "two": {"path": [str(tmp_path / "b.jsonl")], "licence": "cc-by-sa-4.0"},
    }
    read = [
        {"original": str(tmp_path / "a.jsonl"), "rows": 3, "dataset": "one"},
        {"original": str(tmp_path / "b.jsonl"), "rows": 4, "dataset": "two"},
    ]
    tuned = runs.trained(tmp_path / "sft", {"name": "Org/base-1b"}, mixed, read)
    told = sources.of_run(tuned, hub.cards(cache, online=False))
    assert [(one.name, one.licence, one.rows) for one in told if one.role == "data"] == [
        ("a.jsonl", "mit", 3), ("b.jsonl", "cc-by-sa-4.0", 4),
    ]  # fmt: skip


def test_a_card_beside_files_tells_their_licence(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "set" / "data").mkdir(parents=True)
    (tmp_path / "set" / "README.md").write_text("---\nlicense:\n- cc-by-4.0\n- mit\n---\n# Set\n")
    read = [{"original": str(tmp_path / "set" / "data" / "a.parquet"), "rows": 3, "dataset": "set"}]
    tuned = runs.trained(tmp_path / "sft", {"name": "Org/none"}, {"set": {"path": [str(tmp_path / "set")]}}, read)
    told = sources.of_run(tuned, hub.cards(cache, online=False))
    assert [(one.name, one.licence) for one in told] == [
        ("a.parquet", "cc-by-4.0"), ("a.parquet", "mit"), ("Org/none", None),
    ]  # fmt: skip


def test_a_model_that_left_its_run_is_known_by_its_record(tmp_path: Path, cache: Path) -> None:
    data = {"english": {"hub": "Org/english"}, "mine": {"path": [str(tmp_path / "mine.jsonl")]}}
    tuned = runs.trained(tmp_path / "runs" / "sft", {"name": "Org/base-1b"}, data, [])
    elsewhere = tmp_path / "models" / "tuned"
    elsewhere.parent.mkdir()
    (tuned / "shards" / "000" / "000000").rename(elsewhere)
    merge = runs.merged(tmp_path / "merge", [{"name": str(elsewhere)}])
    named = found(merge, cache)
    assert {name: one.licence for name, one in named.items()} == {
        "Org/english": "mit", "mine.jsonl": None, "Org/base-1b": "lfm1.0",
    }  # fmt: skip
    assert {one.made for one in named.values()} == {"tuned"}


def test_texts_that_a_quantization_was_calibrated_on(tmp_path: Path, cache: Path) -> None:
    calibration = {"hub": None, "path": [str(tmp_path / "texts.jsonl")], "licence": None, "samples": 4}
    run = runs.planned(
        tmp_path / "w8a8", "files", {"kind": "quantize", "calibration": calibration}, {"name": "Org/base-1b"}, ["m"], []
    )
    assert {name: one.role for name, one in found(run.path, cache).items()} == {
        "texts.jsonl": "data", "Org/base-1b": "model",
    }  # fmt: skip
    runs.change(run.path, task={"calibration": {"hub": None, "path": []}})
    assert list(found(run.path, cache)) == ["Org/base-1b"]


def test_a_model_named_by_its_folder_in_the_cache(tmp_path: Path, cache: Path) -> None:
    folder = cache / "models--Org--base-1b" / "snapshots" / ("r" * 40).replace("r", "a")
    shutil.copytree(cache / "models--Org--base-1b" / "snapshots" / ("r" * 40), folder)
    run = runs.merged(tmp_path / "merge", [{"name": str(folder)}])
    assert {name: (one.licence, one.revision) for name, one in found(run, cache).items()} == {
        "Org/base-1b": ("lfm1.0", "a" * 40)
    }


def test_two_runs_made_from_each_other_do_not_go_round_for_ever(tmp_path: Path, cache: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    runs.merged(one, [{"name": str(two / "shards" / "000" / "000000")}])
    runs.merged(two, [{"name": str(one / "shards" / "000" / "000000")}, {"name": "Org/base-1b"}])
    assert list(found(one, cache)) == ["Org/base-1b"]


def test_a_licence_that_one_of_two_recipes_tells_is_known_for_both(tmp_path: Path, cache: Path) -> None:
    """A base that was trained, and is merged with what came of it; another folder of the same name is another work."""
    base, other = (tmp_path / name / "base" for name in ("one", "two"))
    for folder in (base, other):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    sft = runs.trained(
        tmp_path / "sft", {"name": str(base), "licence": "mit"}, {"d": {"hub": "Org/d", "licence": "mit"}}, []
    )
    merge = runs.merged(tmp_path / "merge", [{"name": str(base)}, {"name": str(sft)}])
    bases = [one.licence for one in sources.of_run(merge, hub.cards(cache, online=False)) if one.name == "base"]
    assert bases == ["mit"]
    merge = runs.merged(tmp_path / "again", [{"name": str(other)}, {"name": str(sft)}])
    bases = [one.licence for one in sources.of_run(merge, hub.cards(cache, online=False)) if one.name == "base"]
    assert sorted(bases, key=str) == [None, "mit"]
