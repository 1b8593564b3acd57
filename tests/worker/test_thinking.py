"""A model that thinks aloud: what it thought is in no translation, and counted; a thought without end is no row."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hala_hpc.cli.views.run import _noted
from hala_hpc.run import history, status
from hala_hpc.worker.job import work_until
from tests.engines.test_openai import Server
from tests.worker.helpers import events, plan, proof, quarantined, rows


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in [name for name in os.environ if name.lower().endswith("_proxy") or name.startswith("OPENAI_")]:
        monkeypatch.delenv(name)
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


def test_thoughts_are_taken_off_and_counted(tmp_path: Path, server: Server) -> None:
    texts = ["aloud", "apart", "plain", "<think>aloud</think>", "aloud endless", "apart endless"]
    run = plan(tmp_path, texts, kind="openai", url=server.url)
    work_until(run, lambda: False)
    assert proof(run).proven
    assert {row["text"]: row["text_ar"] for row in rows(run) if not row["hala_error"]} == {
        "aloud": "<aloud>",
        "apart": "<apart>",
        "plain": "<plain>",
        "<think>aloud</think>": "<<think>aloud</think>>",
    }
    assert {text: error.split(":")[0] for text, error in quarantined(run).items()} == {
        "aloud endless": "thinking",
        "apart endless": "thinking",
    }
    assert events(run, "progress")[-1]["thoughts"] == 5
    assert history.of_run(run, {}).thoughts == 5
    state = status.read(run, 60.0, 5)
    assert _noted(state) == "5 answers had thinking in front, which is left out"
