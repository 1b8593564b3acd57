"""Numbers for those who watch: Prometheus' text files of real workers, and what is refused when a run is planned."""

import os
import re
import sys
import time
from pathlib import Path

import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Track
from hala_hpc.run.layout import RunDirectory
from hala_hpc.tasks.train import metrics
from hala_hpc.worker import tracking
from hala_hpc.worker.job import work_until
from hala_hpc.worker.task import Outcome
from tests.run.helpers import bare_run
from tests.worker.helpers import plan, texts

SAMPLE = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)\{((?:[a-z]+="(?:[^"\\\n]|\\.)*",?)*)\} (\S+)')


def parsed(text: str) -> dict[str, float]:
    """The samples of a text file, each after a line with its type, as the format wants it."""
    samples = {}
    lines = text.splitlines()
    assert text.endswith("\n") and len(lines) % 2 == 0
    for kind, line in zip(lines[::2], lines[1::2], strict=True):
        match = SAMPLE.fullmatch(line)
        assert match is not None and kind == f"# TYPE {match[1]} gauge", line
        samples[match[1]] = float(match[3])
    return samples


def test_a_worker_writes_its_file_and_takes_it_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "node" / "textfiles"
    run = plan(tmp_path, texts(40), run={"track": {"prometheus": str(folder)}, "shard_rows": 10}, seconds=0.05)
    monkeypatch.setattr(tracking, "SECONDS", 0.0)
    seen: list[tuple[str, dict[str, float]]] = []
    write = tracking.write_text

    def watched(file: Path, text: str) -> None:
        write(file, text)
        seen.append((file.name, parsed(file.read_text())))

    monkeypatch.setattr(tracking, "write_text", watched)
    assert work_until(run, lambda: False) is Outcome.FINISHED
    name, last = seen[-1]
    assert name.startswith("r.") and name.endswith(".prom")
    assert (last["hala_rows"], last["hala_published_shards"]) == (40, 4)
    assert last["hala_busy"] > 0 and abs(last["hala_written_timestamp_seconds"] - time.time()) < 60
    assert list(folder.iterdir()) == [], "nothing is left, and no temporary name"


def test_any_number_and_any_name_is_written_in_the_format() -> None:
    scalars = {"train/loss": float("nan"), "phases/data": 1e-9, "rejected: length": 3.0, "step": 7.0, "قيمة": 1.0}
    text = tracking.exposition(scalars, {"run": 'a"b\\c\nd'})
    samples = parsed(text)
    assert samples.keys() >= {"hala_train_loss", "hala_phases_data", "hala_rejected_length"}
    assert "hala_step" not in samples and 'run="a\\"b\\\\c\\nd"' in text


def test_a_trainings_first_rank_writes_one_too(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "sft", "")
    run.path.mkdir()
    folder = tmp_path / "textfiles"
    writer = metrics.Writer(run.path, "a", [], "sft", tracking.of_run(Track(str(folder)), run, "", 120.0))
    writer.write(step=3, loss=2.5, tokens=100, phases={"data": 0.25})
    writer.write(step=4, loss=1.5)
    samples = parsed((folder / "sft.prom").read_text())
    assert (samples["hala_train_loss"], samples["hala_phases_data"]) == (2.5, 0.25), "at most every few seconds"
    writer.close()
    assert not (folder / "sft.prom").exists()


def test_what_a_killed_worker_left_is_removed_by_the_next(tmp_path: Path) -> None:
    run = bare_run(tmp_path / "r", 1)
    folder = tmp_path / "textfiles"
    folder.mkdir()
    old = time.time() - 5000
    for name in ("r.dead.prom", "r.alive.prom", "other.dead.prom", ".r.dead.prom.0123456789ab.tmp", "r.dead.txt"):
        (folder / name).touch()
        os.utime(folder / name, (old, old))
    (folder / "r.new.prom").touch()
    (run.workers / "alive").touch()
    tracking.of_run(Track(str(folder)), run, "me", 60.0)
    left = {"r.alive.prom", "other.dead.prom", "r.dead.txt", "r.new.prom", "r.me.prom"}
    assert {path.name for path in folder.iterdir()} == left


def test_a_folder_that_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run = plan(tmp_path, texts(1), run={"track": {"prometheus": str(tmp_path / "file")}})
    with pytest.raises(HalaError, match=r"run\.track\.prometheus: .*file"):
        work_until(run, lambda: False)
    assert not list((run / "leases" / "workers").iterdir()), "its heartbeat is gone"


def test_a_disk_that_fills_later_ends_the_numbers_and_not_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "textfiles"
    reporters = tracking.Reporters({"prometheus": tracking.text_file(folder / "a.prom", {}, seconds=0.0)})
    (folder / "a.prom").unlink()
    folder.rmdir()
    reporters.event("progress", {"rows": 1})
    reporters.event("progress", {"rows": 2})
    reporters.close()
    assert capsys.readouterr().err.count("hala: no more prometheus") == 1


def test_trackio_is_refused_where_it_is_not_installed(tmp_path: Path) -> None:
    from hala_hpc.pipeline import lookup, planning
    from hala_hpc.worker import registry

    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "{name: r, task: {kind: translate}, engine: {kind: echo}, data: {path: rows.jsonl}, "
        f"run: {{root: {tmp_path}, track: {{trackio: mine}}}}}}\n"
    )
    loaded = lookup.load(recipe, "local", ())
    with pytest.raises(HalaError, match=r"run\.track\.trackio: the package trackio is missing in") as refused:
        planning.refuse_missing_environment(loaded, registry.create(loaded))
    assert f"{sys.prefix}/bin/python -m pip install trackio" in str(refused.value)
    site = tmp_path / "venv" / "lib" / "python3.12" / "site-packages" / "trackio"
    site.mkdir(parents=True)
    (site / "__init__.py").touch()
    here = lookup.load(recipe, "local", (f"site.environments.serve.venv={tmp_path}/venv",))
    tracking.check(here, "serve")
    (site / "__init__.py").unlink()
    with pytest.raises(HalaError, match=f"missing in {tmp_path}/venv"):
        tracking.check(here, "serve")
