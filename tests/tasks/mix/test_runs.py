"""A mix as a run: killed anywhere and resumed, by several workers, proven, damaged, trained on, published; refusals."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.pipeline import lookup, planning
from hala_hpc.publish import hub, sources
from hala_hpc.run.manifest import read
from hala_hpc.tasks.mix.assemble import faults
from tests.conftest import Hala
from tests.data.tokenizer_kinds import KINDS, save
from tests.tasks.mix.mixes import (
    LANGUAGES,
    NO_DUPLICATES,
    PAIRS,
    chats,
    counts,
    data_bytes,
    finished,
    pairs,
    plan,
    recipe,
    rows,
)
from tests.worker import helpers
from tests.worker.helpers import events, finish, proof, start, wait_until

GIVEN: dict[str, dict[str, Any]] = {
    "talks": {"rows": [*chats(1500), *chats(200)], "weight": 1.5, "where": "len(messages) > 1"},
    "pairs": {"rows": pairs(1500), **PAIRS, "sample": 1200},
}
RUN = {"shard_rows": 200, "lease_seconds": 1.2}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run without any disturbance gives."""
    return finished(plan(tmp_path_factory.mktemp("unbroken"), GIVEN, run=RUN, **LANGUAGES))


@pytest.mark.slow
def test_a_mix_that_is_killed_and_resumed_is_the_same_byte_for_byte(tmp_path: Path, unbroken: Path) -> None:
    run = plan(tmp_path, GIVEN, run=RUN, **LANGUAGES)
    process = start(run)
    wait_until(lambda: len(events(run, "published")) >= 3)
    below = processes_below(process)
    for pid in [process.pid, *below]:
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    assert not (run / "final").exists()
    finish(run)
    assert data_bytes(run) == data_bytes(unbroken)
    assert (run / "final" / "report.json").read_bytes() == (unbroken / "final" / "report.json").read_bytes()
    assert proof(run).proven and not list(run.glob(".final*"))


@pytest.mark.slow
def test_the_last_step_is_taken_over_from_a_worker_that_dies_at_it(tmp_path: Path, unbroken: Path) -> None:
    """Nothing of what it had begun stays, and a process of the same worker is told at once."""
    run = plan(tmp_path, GIVEN, run=RUN, **LANGUAGES)
    process = start(run)
    holders: list[int] = []

    def holder() -> bool:
        """The process that has the last step, caught while it writes."""
        if list(run.glob(".final.*")):
            ledgers = {file.stem: file for file in run.glob("ledger/*+*.jsonl")}
            held = {path.stat().st_ino for path in run.glob("leases/last/*")}
            beacons = [path for path in run.glob("leases/workers/*") if path.stat().st_ino in held]
            holders.extend(json.loads(ledgers[path.name].read_text().splitlines()[0])["pid"] for path in beacons)
        return bool(holders)

    wait_until(holder)
    os.kill(holders[0], signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert [event["error"] for event in events(run, "crashed")] == ["a process died of SIGKILL"]
    assert data_bytes(run) == data_bytes(unbroken)
    assert proof(run).proven
    assert not list(run.glob(".final.*")) and not list(run.glob("leases/last/*"))


def processes_below(process: "subprocess.Popen[str]") -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return list(map(int, children.split()))


@pytest.mark.slow
def test_two_workers_make_the_mix_of_one(tmp_path: Path, unbroken: Path) -> None:
    run = plan(tmp_path, GIVEN, run=RUN, **LANGUAGES)
    workers = [start(run), start(run)]
    for worker in workers:
        _, said = worker.communicate(timeout=60)
        assert worker.returncode == 0, said
    assert data_bytes(run) == data_bytes(unbroken)
    assert len({event["shard"] for event in events(run, "published")}) == len(events(run, "published"))
    assert proof(run).proven


def test_counts_add_up_to_the_rows(unbroken: Path) -> None:
    table = counts(unbroken)
    assert table["talks"] == {
        "rows": 1700, "exact duplicates": 200, "near duplicates": 0, "not drawn": 0, "taken": 1500, "written": 2250,
    }  # fmt: skip
    assert (table["pairs"]["not drawn"], table["pairs"]["written"]) == (300, 2400)
    assert len(rows(unbroken)) == 4650
    verdict = proof(unbroken)
    assert (verdict.done, verdict.rows, verdict.proven) == (3200, 3200, True)


@pytest.mark.slow
def test_damage_is_found_and_done_again(tmp_path: Path, hala: Hala) -> None:
    run = finished(plan(tmp_path, {"a": {"rows": chats(120)}}))
    good = data_bytes(run)
    (file,) = (run / "final" / "data").iterdir()
    flipped = bytearray(file.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    file.chmod(0o644)
    file.write_bytes(flipped)
    told = hala("verify", run, code=1)
    assert "final: " in told.stderr and "hala resume" in told.stderr
    hala("resume", run, "--damaged")
    wait_until(lambda: (run / "final").exists() and data_bytes(run) == good)
    chunk = run / "shards" / "000" / "000001" / "rows.parquet"
    chunk.write_bytes(chunk.read_bytes()[:-9])
    assert not proof(run).proven
    wait_until(lambda: not lookup.state_of(run).workers[-1].alive)
    hala("resume", run, "--damaged")
    wait_until(lambda: proof(run).proven and data_bytes(run) == good)


def test_a_table_that_does_not_add_up_is_a_problem(tmp_path: Path) -> None:
    run = finished(plan(tmp_path, {"a": {"rows": chats(20)}}))
    report = run / "final" / "report.json"
    assert faults(run / "final", 20) == []
    assert any("20 rows, and 21 were planned" in fault for fault in faults(run / "final", 21))
    content = json.loads(report.read_text())
    content["sources"][0]["taken"] -= 1
    report.write_text(json.dumps(content))
    assert faults(run / "final", 20) == ["report.json: the counts of a do not add up to its 20 rows"]


# --- what it is for ---------------------------------------------------------------------------------------------------


def test_a_training_prepares_it_without_a_workaround(tmp_path: Path) -> None:
    finished(plan(tmp_path, {"talks": {"rows": chats(30)}, "pairs": {"rows": pairs(10), **PAIRS}}, **LANGUAGES))
    tokenizer = save(KINDS["byte level"]([]), tmp_path / "tiny")
    task = {"kind": "prepare", "sequence_length": 2048}
    asked = {"name": "prepared", "task": task, "model": {"name": tokenizer}, "data": {"path": "run:mix"}}
    path = tmp_path / "prepare.yaml"
    path.write_text(json.dumps(asked | {"run": {"root": tmp_path / "runs"}}, default=str))
    loaded = lookup.load(path, "local", ())
    run = planning.plan_run(loaded, planning.check(loaded), tmp_path / "runs" / "prepared").path
    facts = read(run / "manifest.parquet").facts
    assert (facts.rows, facts.texts) == (50, 100)
    finish(run)
    verdict = proof(run)
    assert verdict.proven and verdict.done == 50


@pytest.mark.slow
def test_a_collected_run_is_a_source_by_its_name(tmp_path: Path, hala: Hala) -> None:
    translated = helpers.plan(tmp_path, helpers.texts(25), "texts-ar", fail_on="text 7")
    helpers.finish(translated)
    given = {"texts": {"path": "run:texts-ar", "shape": "pairs", "columns": ["text", "text_ar"]}}
    asked = recipe(tmp_path, given, duplicates=NO_DUPLICATES, **LANGUAGES)
    assert "collecting 25 rows of texts-ar into" in hala("plan", asked).stderr
    assert (translated / "final" / "data").is_dir()
    (line,) = hala.json("plan", asked)["mix"]
    assert line == {"source": "texts", "rows": 24, "examples": 24}


def test_the_hub_is_a_source(tmp_path: Path) -> None:
    """A folder stands in for a dataset on the hub, as ``datasets`` loads it."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs(12)))
    run = finished(plan(tmp_path, {"opus": {"hub": str(tmp_path / "set"), "limit": 10, **PAIRS}}, **LANGUAGES))
    assert counts(run)["opus"]["written"] == 20


@pytest.mark.slow
def test_plan_status_report_and_card_show_the_table(tmp_path: Path, hala: Hala) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*chats(30), chats(1)[0]]))
    (tmp_path / "own" / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    asked = recipe(tmp_path, {"own": {"path": tmp_path / "own" / "a.jsonl"}})
    assert hala.json("plan", asked)["mix"] == [{"source": "own", "rows": 31, "examples": 31}]
    run = finished(planned(asked))
    line = {"source": "own", "rows": 31, "exact duplicates": 1, "near duplicates": 0, "not drawn": 0, "taken": 30}
    line |= {"written": 30}
    assert hala.json("status", run)["mix"] == [line]
    assert "duplicates" in hala("status", run).stdout
    tables = hala.json("report", run, "--to", tmp_path / "report", "--format", "md")["tables"]
    assert tables["report-mix-sources"]["rows"] == [line]
    (origin,) = sources.of_run(run, hub.cards(None, online=False))
    assert (origin.name, origin.licence, origin.rows) == ("a.jsonl", "cc-by-4.0", 31)
    hala("publish", run, "--to", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| own | 31 | 1 | 0 | 0 | 30 | 30 |" in card
    assert hala.json("collect", run, "--to", tmp_path / "collected")["files"] == 4
    assert hala.json("verify", tmp_path / "collected")["proven"]


def planned(asked: Path) -> Path:
    loaded = lookup.load(asked, "local", ())
    return planning.plan_run(loaded, planning.check(loaded), Path(loaded.run.root) / loaded.name).path


# --- refusals ---------------------------------------------------------------------------------------------------------

ODD: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"where": "judge >"}, {}, "task.sources.a: .*'judge >' is no condition"),
    ({"where": "judge > 1"}, {}, "task.sources.a: .*rows have no 'judge'"),
    ({"where": "en == 'nowhere'"}, {}, r"task.sources.a: none of its 3 rows is taken \(3 where\)"),
    ({"columns": ["en", "eu"]}, {}, "task.sources.a: .*no column 'eu'"),
    ({"columns": ["en"]}, {}, "task.sources.a.columns: pairs are in two columns"),
    ({"path": "nowhere.jsonl"}, {}, "task.sources.a: .*nowhere.jsonl: no such file"),
    ({"path": "run:nowhere"}, {}, "task.sources.a: .*nowhere: no such file"),
    ({"weight": 0}, {}, "task.sources.a.weight: must be more than 0"),
    ({"sample": 0}, {}, "task.sources.a.sample: must be at least 1"),
    ({"limit": 0}, {}, "task.sources.a.limit: must be at least 1"),
    ({"target": "Nowherese"}, {}, "task.sources.a: no language is called 'Nowherese'"),
    ({"target": "en"}, {}, "task.sources.a: source and target are one language"),
    ({}, {"target": None}, "task.sources.a.target: no language"),
    ({"prompt": "Into Arabic: {text}"}, {}, "task.sources.a.prompt: names no language, and direction is both"),
    ({"prompt": "Translate."}, {}, "task.sources.a.prompt: holds {text} 0 times"),
    ({"shape": "columns"}, {}, "task.sources.a.direction: only pairs have it"),
    ({"shape": "sonnet"}, {}, "no shape 'sonnet'"),
    ({}, {"duplicates": {"near": 1.5}}, "task.duplicates.near: 1.5 is no similarity"),
    ({}, {"duplicates": {"bands": 7}}, "task.duplicates.bands: 128 permutations"),
    ({}, {"duplicates": {"shingle": 0}}, "task.duplicates.shingle: must be at least 1"),
]


@pytest.mark.parametrize(("own", "task", "said"), ODD, ids=[said for *_, said in ODD])
def test_what_cannot_be_is_refused_by_the_plan(
    tmp_path: Path, own: dict[str, Any], task: dict[str, Any], said: str
) -> None:
    source = {"rows": pairs(3), **PAIRS, "direction": "both"} | own
    if "path" in own:
        del source["rows"]
    with pytest.raises(HalaError, match=said):
        plan(tmp_path, {"a": source}, **LANGUAGES | task)
    assert not (tmp_path / "runs" / "mix").exists()


def test_no_sources_odd_names_and_a_data_section_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HalaError, match=r"task\.sources is missing"):
        plan(tmp_path, {})
    with pytest.raises(HalaError, match="cannot be a source's name"):
        plan(tmp_path, {"../a": {"path": "x.jsonl"}})
    asked = lookup.load(recipe(tmp_path, {"a": {"rows": chats(1)}}), "local", ("data.path=x.jsonl",))
    with pytest.raises(HalaError, match=r"data: a mix reads task\.sources alone"):
        planning.check(asked)


def test_bad_rows_are_refused_or_set_aside(tmp_path: Path) -> None:
    given = {"rows": [*chats(3), {"messages": [{"role": "nobody", "content": "x"}]}]}
    with pytest.raises(HalaError, match=r"task\.sources\.a: .*row 4.*turn 1 of 'messages' has the role 'nobody'"):
        plan(tmp_path, {"a": given})
    run = finished(plan(tmp_path, {"a": given | {"bad_rows": "set_aside"}}))
    assert counts(run)["a"]["rows"] == 3 and proof(run).proven
    assert "rows set aside" in (run / "final" / "README.md").read_text()


def test_a_source_that_changed_is_not_mixed(tmp_path: Path) -> None:
    run = plan(tmp_path, {"a": {"rows": chats(3)}})
    (tmp_path / "mix-a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats(4)[1:]))
    finish(run, code=1)
    assert "changed since the run was planned" in str(events(run, "failed")[-1])
    assert not (run / "final").exists()
