"""Datasets of the hub, from a folder that is laid out as one is there, and from a hub that is out of reach."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Data, Model
from hala_hpc.data import templates
from hala_hpc.data.files import hub
from tests.data.helpers import write

ROWS = [{"text": f"t{n}", "n": n} for n in range(500)]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> str:
    write(tmp_path / "set/data/train-00000-of-00001.parquet", pa.Table.from_pylist(ROWS))
    write(tmp_path / "set/data/test-00000-of-00001.parquet", pa.Table.from_pylist(ROWS[:3]))
    return str(tmp_path / "set")


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub at a port on which nobody listens."""
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)


def test_of_a_small_limit_nothing_is_built_in_the_cache(tmp_path: Path, cache: Path, folder: str) -> None:
    target = tmp_path / "copy.parquet"
    hub.to_parquet(Data(hub=folder, limit=7), target, 1000)
    assert pq.read_table(target).to_pylist() == ROWS[:7]
    assert not list(cache.rglob("*.arrow"))
    hub.to_parquet(Data(hub=folder, split="test", limit=7), target, 1000)
    assert pq.read_table(target).to_pylist() == ROWS[:3]


def test_without_a_limit_all_of_the_split_is_read(tmp_path: Path, cache: Path, folder: str) -> None:
    target = tmp_path / "copy.parquet"
    hub.to_parquet(Data(hub=folder), target, 100)
    assert pq.read_table(target).to_pylist() == ROWS
    assert pq.ParquetFile(target).num_row_groups == 5
    assert list(cache.rglob("*.arrow"))
    hub.to_parquet(Data(hub=folder, split="train[10:12]", limit=1), target, 100)
    assert pq.read_table(target).to_pylist() == ROWS[10:11]


def test_a_split_that_is_not_there(tmp_path: Path, cache: Path, folder: str) -> None:
    for limit in (None, 5):
        with pytest.raises(HalaError, match=r"^data\.hub: cannot load '.*set': .*nope"):
            hub.to_parquet(Data(hub=folder, split="nope", limit=limit), tmp_path / "x.parquet", 100)


@pytest.mark.usefixtures("nowhere", "cache")
def test_a_hub_out_of_reach_is_not_tried_again_and_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for limit in (None, 5):
        with pytest.raises(HalaError) as caught:
            hub.to_parquet(Data(hub="org/name", limit=limit), tmp_path / "x.parquet", 100)
        said = (
            "it is not in the cache, and the hub is out of reach (`hala prefetch RECIPE` where the hub can be reached)"
        )
        assert str(caught.value) == f"data.hub: cannot load 'org/name': {said}"
    with pytest.raises(HalaError, match=r"cannot download 'org/model': .* \(is the hub reachable from here\?\)"):
        hub.fetch_model(Model(name="org/model"))
    assert "Retry" not in "".join([*capfd.readouterr(), caplog.text])


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize("read", [templates.model_config, templates.load_tokenizer])
def test_a_model_out_of_reach_is_not_tried_again_and_again(read: Callable[[Model], Any]) -> None:
    from huggingface_hub import constants

    with pytest.raises(
        HalaError, match=r" in 'org/model': .*\(`hala prefetch RECIPE` where the hub can be reached\)$"
    ) as caught:
        read(Model(name="org/model"))
    assert constants.HF_HUB_OFFLINE, "from now on only the cache is looked at"
    assert "HF_HUB_OFFLINE" not in str(caught.value), "nobody set it"
