"""``hala publish`` to a folder, and what it refuses: real runs, real files."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from hala_hpc.cli.publish import publish_command
from hala_hpc.config.errors import HalaError
from hala_hpc.publish import cards
from tests.publish import runs


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A translation by a real worker; 25 rows, one in quarantine."""
    return runs.translated(tmp_path_factory.mktemp("translated"))


@pytest.fixture
def rows(made: Path, tmp_path: Path) -> Path:
    """A copy of it, as if a model of somebody's had written it."""
    run = tmp_path / "runs" / made.name
    shutil.copytree(made, run)
    return runs.change(run, data={"licence": "mit"})


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    base = {"name": "Org/base-1b", "licence": "apache-2.0"}
    return runs.trained(tmp_path / "runs" / "sft", base, {"a": {"hub": "a/b", "licence": "cc-by-nc-4.0"}}, [])


def publish(run: Path, to: object, *words: object) -> None:
    publish_command.main([str(run), "--to", str(to), *map(str, words)], standalone_mode=False)


def dry(capsys: pytest.CaptureFixture[str], run: Path, to: object, *words: object) -> Any:
    publish(run, to, "--dry-run", "--json", *words)
    return json.loads(capsys.readouterr().out)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_dataset_to_a_folder(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish(rows, tmp_path / "out", "--json")
    told = json.loads(capsys.readouterr().out)
    out = tmp_path / "out"
    assert sorted(everything(out)) == ["README.md", "data/train-00000-of-00001.parquet"]
    assert (told["files"], told["bytes"]) == (2, sum(map(len, everything(out).values())))
    table = pq.read_table(out / "data")
    assert table["text"].to_pylist() == [f"text {number}" for number in range(25) if number != 7]
    head, text = cards.split((out / "README.md").read_text())
    assert (head["license"], head["language"], head["size_categories"]) == ("mit", ["ar", "en"], ["n<1K"])
    assert "| rows | 24 |" in text and re.search(r"\| left out: [\w ]+ \| 1 \|", text)
    assert "| `text_ar` | `string` |" in text
    assert "quarantine.parquet" not in everything(out)  # what could not be done stays here


def test_a_dry_run_tells_the_same_and_changes_nothing(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything(tmp_path)
    planned = dry(capsys, rows, tmp_path / "out")
    assert everything(tmp_path) == before
    assert (planned["kind"], planned["rows"], planned["licence"], planned["conflicts"]) == ("dataset", 24, "mit", [])
    publish(rows, tmp_path / "out")
    capsys.readouterr()
    collected = dry(capsys, rows, "hub:org/name")
    assert [file["name"] for file in collected["files"]] == ["data/train-00000-of-00001.parquet", "README.md"]
    assert collected["card"] == planned["card"] == (tmp_path / "out" / "README.md").read_text()


def test_a_model_to_a_folder_is_what_was_made(tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = dry(capsys, tuned, tmp_path / "out", "--licence", "CC BY-NC 4.0")["files"]
    publish(tuned, tmp_path / "out", "--licence", "CC BY-NC 4.0")
    assert sorted((file["name"], file["bytes"]) for file in listed) == sorted(
        (name, len(data)) for name, data in everything(tmp_path / "out").items()
    )
    own, out = everything(tuned / "shards" / "000" / "000000"), everything(tmp_path / "out")
    card = out.pop("README.md").decode()
    own.pop("README.md")
    assert out == own
    assert cards.split(card)[0]["license"] == "cc-by-nc-4.0"
    with pytest.raises(HalaError, match="exists"):
        publish(tuned, tmp_path / "out", "--licence", "cc-by-nc-4.0")
    assert everything(tmp_path / "out") == out | {"README.md": card.encode()}


def test_one_model_of_a_merge(tmp_path: Path, tuned: Path) -> None:
    given = [{"name": "Org/base-1b", "licence": "mit"}, {"name": str(tuned), "licence": "mit"}]
    run = runs.merged(tmp_path / "runs" / "merge", given, ("t0.25", "t0.50"))
    publish(run, tmp_path / "out", "--item", "t0.50")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"merged": "t0.50"}


def test_a_licence_that_contradicts_a_source_is_refused_unless_accepted(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with pytest.raises(HalaError, match=r"apache-2.0 contradicts.* a/b \(cc-by-nc-4.0\): for non-commercial use only"):
        publish(tuned, out, "--licence", "apache-2.0")
    assert not out.exists()
    told = dry(capsys, tuned, out, "--licence", "apache-2.0")
    assert len(told["conflicts"]) == 1 and "Known contradictions" in told["card"]
    publish(tuned, out, "--licence", "apache-2.0", "--accept-conflicts")
    assert "- a/b (cc-by-nc-4.0): for non-commercial use only" in (out / "README.md").read_text()


def test_a_licence_that_nobody_knows_has_to_be_told(rows: Path, tmp_path: Path) -> None:
    runs.change(rows, data={"licence": None})
    with pytest.raises(HalaError, match=r"licence: no licence given, and no licence is known.*--licence"):
        publish(rows, tmp_path / "out")
    with pytest.raises(HalaError, match=r"texts-ar.jsonl: its licence is not known.*--licence-of"):
        publish(rows, tmp_path / "out", "--licence", "mit")
    with pytest.raises(HalaError, match="not of the form NAME=LICENCE"):
        publish(rows, tmp_path / "out", "--licence-of", "mit")
    assert not (rows / "final").exists()  # nothing long was begun before
    publish(rows, tmp_path / "out", "--licence-of", "texts-ar.jsonl=CC BY 4.0")
    head, text = cards.split((tmp_path / "out" / "README.md").read_text())
    assert head["license"] == "cc-by-4.0" and "| cc-by-4.0 | the command line |" in text


def test_a_run_that_is_not_finished_is_refused(rows: Path, tuned: Path, tmp_path: Path) -> None:
    (rows / "shards" / "000" / "000001.parquet").unlink()
    for words in ((), ("--dry-run",)):
        with pytest.raises(HalaError, match="1 of 3 shards not finished"):
            publish(rows, tmp_path / "out", *words)
    shutil.rmtree(tuned / "shards" / "000" / "000000")
    with pytest.raises(HalaError, match="models are not there"):
        publish(tuned, tmp_path / "out")


def test_a_dataset_collected_before_it_was_finished_is_refused(rows: Path, tmp_path: Path) -> None:
    from hala_hpc.data.outputs.collect import collect

    shard = rows / "shards" / "000" / "000001.parquet"
    kept = shard.read_bytes()
    shard.unlink()
    collect(rows, rows / "final", partial=True)
    shard.write_bytes(kept)
    with pytest.raises(HalaError, match=r"15 of the run's 25 rows"):
        publish(rows, tmp_path / "out")


def test_a_dataset_collected_elsewhere(rows: Path, tmp_path: Path) -> None:
    from hala_hpc.data.outputs.collect import collect

    collect(rows, tmp_path / "collected")
    publish(rows, tmp_path / "out", "--collected", tmp_path / "collected")
    assert not (rows / "final").exists() and (tmp_path / "out" / "data").is_dir()
    with pytest.raises(HalaError, match="nowhere: no rows"):
        publish(rows, tmp_path / "out2", "--collected", tmp_path / "nowhere")


@pytest.mark.slow
def test_a_published_dataset_loads_as_others_load_it(rows: Path, tmp_path: Path) -> None:
    """By its card's metadata, with the library that the hub's users have."""
    import datasets

    publish(rows, tmp_path / "out")
    loaded = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["text"] == [f"text {number}" for number in range(25) if number != 7]


def test_a_model_that_is_not_as_it_was_made_is_refused(tuned: Path, tmp_path: Path) -> None:
    weights = tuned / "shards/000/000000/model-00001-of-00002.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(HalaError, match=r"not as it was made: .*its digest differs"):
        publish(tuned, tmp_path / "out", "--licence", "cc-by-nc-4.0")
    assert not (tmp_path / "out").exists()
    with pytest.raises(HalaError, match=r"not as it was made: .*its digest differs"):
        publish(tuned, "hub:org/sft", "--licence", "cc-by-nc-4.0", "--dry-run")


def test_runs_that_make_nothing_to_publish(tmp_path: Path, rows: Path) -> None:
    scores = runs.evaluated(tmp_path / "evaluate", {"m": {"b": (0.5, 0.1)}}, {"m": "w"})
    with pytest.raises(HalaError, match="scores are published with their model"):
        publish(scores, tmp_path / "out")
    with pytest.raises(HalaError, match="a dataset has none"):
        publish(rows, tmp_path / "out", "--scores", scores)
    with pytest.raises(HalaError, match="does not apply to datasets"):
        publish(rows, tmp_path / "out", "--item", "x")


@pytest.mark.parametrize("name", ["hub:", "hub:name", "hub:a/b/c", "hub:../b", "hub:a/b--c", "hub:a b/c"])
def test_names_that_the_hub_has_not(tuned: Path, name: str) -> None:
    with pytest.raises(HalaError, match="not a name on the hub"):
        publish(tuned, name, "--dry-run")
