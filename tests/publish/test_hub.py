"""Uploads by the real client to a hub on loopback, which fails in all the ways that hubs fail."""

import hashlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.publish import hub as hubs
from hala_hpc.publish import sources
from hala_hpc.publish.content import Entry
from hala_hpc.publish.hub import Patience, Uploaded
from tests.conftest import Hala
from tests.publish import hub_server, runs
from tests.publish.hub_server import Hub
from tests.worker.helpers import wait_until

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")  # the client's own
QUICK = Patience(attempts=4, pause=0.01)
Upload = Callable[..., Uploaded]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_server.serve() as served:
        yield served


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def upload(hub: Hub, said: list[str], monkeypatch: pytest.MonkeyPatch) -> Upload:
    """``hub.upload`` with the real client; without Xet, whose storage has no stand-in here."""
    from huggingface_hub import HfApi, constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def send(entries: list[Entry], kind: Literal["model", "dataset"] = "model", **more: bool) -> Uploaded:
        api = HfApi(endpoint=hub.url, token=hub.key)
        return hubs.upload(entries, "org/name", kind, "hala publish x", said.append, **more, api=api, patience=QUICK)

    return send


def entries(folder: Path, large: int = 3, size: int = 2000, mark: str = "") -> list[Entry]:
    """Weights, a small file and a card."""
    folder.mkdir(exist_ok=True)
    found = []
    for number in range(large):
        name = f"model-{number + 1:05d}-of-{large:05d}.safetensors"
        (folder / name).write_bytes(f"{mark}{number}".encode() * size)
        found.append(Entry(name, folder / name))
    (folder / "config.json").write_text("{}")
    return [
        *found,
        Entry("config.json", folder / "config.json"),
        Entry("README.md", text="---\nlicense: mit\n---\n# x\n"),
    ]


def holds(hub: Hub, name: str, sent: list[Entry]) -> bool:
    files = {entry.name: entry.file.read_bytes() if entry.file else entry.text.encode() for entry in sent}
    return hub.repositories[name].files == files


def test_all_files_in_one_commit(hub: Hub, upload: Upload, tmp_path: Path) -> None:
    sent = entries(tmp_path / "m")
    done = upload(sent)
    assert holds(hub, "models/org/name", sent)
    repository = hub.repositories["models/org/name"]
    assert [commit["summary"] for commit in repository.commits] == ["hala publish x"]
    assert done == Uploaded(f"{hub.url}/org/name", f"{1:040x}", 5, sum(entry.size for entry in sent), ())
    assert not repository.private


def test_a_private_dataset(hub: Hub, upload: Upload, tmp_path: Path) -> None:
    sent = [
        Entry("data/train-00000-of-00001.parquet", entries(tmp_path / "m")[0].file),
        Entry("README.md", text="# x\n"),
    ]
    assert upload(sent, kind="dataset", private=True).url == f"{hub.url}/datasets/org/name"
    assert holds(hub, "datasets/org/name", sent)
    assert hub.repositories["datasets/org/name"].private
    upload(sent, kind="dataset", private=True)


def test_what_is_public_already_does_not_become_private_by_asking(hub: Hub, upload: Upload, tmp_path: Path) -> None:
    upload(entries(tmp_path / "m", large=1))
    with pytest.raises(HalaError, match="org/name is on the hub, and public"):
        upload(entries(tmp_path / "m"), private=True)
    assert len(hub.repositories["models/org/name"].files) == 3


def test_nothing_is_sent_or_committed_twice(hub: Hub, upload: Upload, tmp_path: Path) -> None:
    sent = entries(tmp_path / "m")
    upload(sent)
    before = hub.count("PUT")
    upload(sent)
    assert (hub.count("PUT"), len(hub.repositories["models/org/name"].commits)) == (before, 1)


def test_old_weights_go_when_asked_and_what_people_added_stays(hub: Hub, upload: Upload, tmp_path: Path) -> None:
    upload(entries(tmp_path / "old", large=3))
    repository = hub.repositories["models/org/name"]
    repository.files |= {"picture.png": b"x", ".gitattributes": b"y", "data/train.parquet": b"z"}
    before, asked = dict(repository.files), hub.count("PUT")
    new = entries(tmp_path / "new", large=2, mark="new")
    with pytest.raises(HalaError, match=r"3 files there would be read together with ours, e.g. model-.*--replace"):
        upload(new)
    assert repository.files == before and hub.count("PUT") == asked
    done = upload(new, replace=True)
    assert done.removed == tuple(f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3))
    others = {"picture.png", ".gitattributes", "data/train.parquet"}
    assert set(repository.files) == {entry.name for entry in new} | others


def test_a_busy_hub_is_asked_again(hub: Hub, upload: Upload, said: list[str], tmp_path: Path) -> None:
    """What the client itself does not try again: commits, and statuses that it takes for refusals."""
    hub.faults += [("POST", "/commit/", 503), ("POST", "/commit/", 409), ("POST", "/repos/create", 425)]
    sent = entries(tmp_path / "m")
    upload(sent)
    assert holds(hub, "models/org/name", sent)
    assert sum("again in" in line for line in said) == 3 and len(hub.repositories["models/org/name"].commits) == 1


@pytest.mark.slow
def test_broken_connections_and_server_errors_while_sending(hub: Hub, upload: Upload, tmp_path: Path) -> None:
    hub.faults += [("PUT", "/large/", 500), ("PUT", "/large/", lambda: None), ("POST", "objects/batch", 502)]
    sent = entries(tmp_path / "m", size=200_000)
    upload(sent)
    assert holds(hub, "models/org/name", sent) and hub.faults == []


def test_a_refusal_is_told_at_once_in_one_line(hub: Hub, upload: Upload, said: list[str], tmp_path: Path) -> None:
    hub.faults += [("POST", "/repos/create", 403)]
    with pytest.raises(HalaError, match=r"making the repository: .*403.*hf auth whoami") as caught:
        upload(entries(tmp_path / "m"))
    assert said == [] and "\n" not in str(caught.value) and hub.key not in str(caught.value)


def test_a_card_that_the_hub_refuses_is_told_before_anything_is_sent(hub: Hub, upload: Upload, tmp_path: Path) -> None:
    hub.refuses_cards = '"license" must be one of [mit, ...]'
    with pytest.raises(HalaError, match=r'refuses the card: "license" must be'):
        upload(entries(tmp_path / "m"))
    assert not hub.objects and not hub.count("commit|preupload")


def test_a_refusal_by_the_store_for_large_files_is_told_at_once(
    hub: Hub, upload: Upload, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that may read only: the repository exists, and it is Xet, the hub's store, that says no."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    monkeypatch.setenv("HF_XET_CACHE", str(tmp_path / "xet"))
    hub.faults += [("GET", "/xet-write-token/", 403)]
    with pytest.raises(HalaError, match=r"sending .*403.*hf auth whoami"):
        upload(entries(tmp_path / "m"))
    assert said == []


def test_a_hub_that_stays_away_is_given_up_on_and_what_was_sent_counts(
    hub: Hub, upload: Upload, said: list[str], tmp_path: Path
) -> None:
    hub.faults += [("POST", "/commit/", 503)] * 4
    sent = entries(tmp_path / "m")
    with pytest.raises(HalaError, match=r"committing: .*the same command goes on where it stopped"):
        upload(sent)
    assert hub.repositories["models/org/name"].files == {}  # nobody saw a half of it
    before = hub.count("PUT")
    upload(sent)
    assert holds(hub, "models/org/name", sent) and hub.count("PUT") == before


def test_many_files_go_in_parts_with_the_card_last(
    hub: Hub, upload: Upload, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hubs, "TOGETHER", 4)
    monkeypatch.setattr(hubs, "IN_A_COMMIT", 5)
    sent = entries(tmp_path / "m", large=10)
    upload(sent)
    assert holds(hub, "models/org/name", sent)
    commits = [commit["changes"] for commit in hub.repositories["models/org/name"].commits]
    assert [len(changes) for changes in commits] == [5, 5, 2] and commits[-1][-1] == "README.md"
    assert sum("GB there" in line for line in said) == 3


def test_without_a_key_nothing_is_asked(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi, constants

    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(HalaError, match=r"no key for the hub .*hf auth login"):
        hubs.upload([], "org/name", "model", "x", print, api=HfApi(endpoint=hub.url))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HalaError, match="HF_HUB_OFFLINE is set"):
        hubs.upload([], "org/name", "model", "x", print, api=HfApi(endpoint=hub.url, token="k"))
    assert hub.asked == []


def environment(hub: Hub, folder: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HALA_"))}
    return kept | {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": hub.key,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(folder / "hf"),
    }


@pytest.mark.slow
def test_the_command_killed_while_it_sends_goes_on_where_it_was(hub: Hub, hala: Hala, tmp_path: Path) -> None:
    """SIGKILL in the middle of a file; the cards of sources come from the hub; the key is written nowhere."""
    hub.repositories["models/Org/base"] = hub_server.Repository(False, {"README.md": b"---\nlicense: mit\n---\n"})
    data = {"a": {"hub": "Org/data", "licence": "mit"}}
    run = runs.trained(tmp_path / "runs" / "sft", {"name": "Org/base"}, data, [])
    folder = run / "shards" / "000" / "000000"
    for number in (1, 2):
        (folder / f"optional-{number}.json").write_bytes(b'["%d"]' % number * 500_000)  # sent first: by name
    started: list[subprocess.Popen[bytes]] = []

    def kill() -> None:
        wait_until(lambda: bool(hub.objects))  # another file, sent at the same time, is there whole
        started[0].send_signal(signal.SIGKILL)
        started[0].wait(30)

    second = hashlib.sha256((folder / "optional-2.json").read_bytes()).hexdigest()
    hub.faults += [("PUT", second, kill)]
    words = [sys.executable, "-m", "hala_hpc.cli", "publish", str(run), "--to", "hub:org/sft"]
    hala.env = environment(hub, tmp_path)
    started.append(subprocess.Popen(words, cwd=tmp_path, env=hala.env, stderr=subprocess.DEVNULL))
    assert started[0].wait(60) == -signal.SIGKILL
    assert hub.repositories["models/org/sft"].files == {}
    there = set(hub.objects)
    assert there and second not in there

    hub.asked.clear()
    assert f"{hub.url}/org/sft" in hala("publish", run, "--to", "hub:org/sft").stdout
    sent_now = {line.rpartition("/")[2] for line in hub.asked if line.startswith("PUT")}
    assert second in sent_now and not sent_now & there
    files = hub.repositories["models/org/sft"].files
    own = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert files.keys() == own.keys() and all(files[name] == own[name] for name in own if name != "README.md")
    assert (
        b"| [Org/base](https://huggingface.co/Org/base) | model |  | mit | its card on the hub |  |"
        in files["README.md"]
    )
    written = [path for path in tmp_path.rglob("*") if path.is_file() and hub.key.encode() in path.read_bytes()]
    assert written == []


@pytest.mark.slow
def test_a_wrong_key_is_one_line(hub: Hub, hala: Hala, tmp_path: Path) -> None:
    base = {"name": "Org/base", "licence": "mit"}
    run = runs.trained(tmp_path / "runs" / "sft", base, {"a": {"hub": "Org/data", "licence": "mit"}}, [])
    hala.env = environment(hub, tmp_path) | {"HF_TOKEN": "hf_" + "w" * 34}
    said = hala("publish", run, "--to", "hub:org/sft", code=2).stderr.splitlines()
    assert len(said) == 1 and re.match("hala: error: making the repository: .*401", said[0]) and "wwww" not in said[0]


def test_cards_of_sources_come_from_the_hub_only_where_that_is_asked(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", hub.key)
    hub.repositories["datasets/Org/data"] = hub_server.Repository(False, {"README.md": b"---\nlicense: odc-by\n---\n"})
    run = runs.trained(tmp_path / "sft", {"name": "Org/gone", "licence": "mit"}, {"a": {"hub": "Org/data"}}, [])
    for online, licence in ((False, None), (True, "odc-by"), (False, "odc-by")):
        found = sources.of_run(run, hubs.cards(tmp_path / "cache", online))
        assert [source.licence for source in found] == [licence, "mit"]
        assert bool(hub.asked) == (online or licence is not None)
