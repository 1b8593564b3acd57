"""Pipelines without Slurm: what is done, in which order, what is done again, and what a failure holds."""

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from hala_hpc.config import pipeline as files
from hala_hpc.pipeline import conductor, stages
from hala_hpc.pipeline.survey import Survey, survey
from hala_hpc.run import decisions
from tests.conftest import Hala

ROWS = {
    "name": "rows",
    "task": {"kind": "translate", "segments": {"tokens": 0}},
    "data": {"path": "rows.jsonl", "columns": ["text"]},
    "engine": {"kind": "echo"},
}
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Writes a pipeline of ``rows.yaml``, which translates some rows, and of other recipes."""
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"text": "line {i}"}}\n' for i in range(4)))
    (tmp_path / "rows.yaml").write_text(json.dumps(ROWS))

    def write(listed: Mapping[str, Any], **others: Any) -> Path:
        for name, recipe in others.items():
            (tmp_path / f"{name}.yaml").write_text(json.dumps({"name": name} | recipe))
        (tmp_path / "whole.yaml").write_text(json.dumps({"stages": listed}))
        return tmp_path / "whole.yaml"

    handlers = {number: signal.getsignal(number) for number in signal.Signals if number not in (9, 19)}
    yield write
    for number, handler in handlers.items():
        if callable(handler) or handler in (signal.SIG_DFL, signal.SIG_IGN):
            signal.signal(number, handler)


def to_the_end(file: Path, *words: str) -> Survey:
    """Conduct a pipeline here and now: its workers are this process."""
    overrides = (f"run.root={file.parent}/runs", "site.executor=debug", *words)
    pipeline = stages.compose(files.read(file), "", overrides)
    stages.save(pipeline)
    decisions.note(pipeline.folder, decisions.STARTING, by=decisions.PERSON)
    now, problems = conductor.conduct(pipeline.folder)
    assert not problems
    return now


def versions(now: Survey) -> dict[str, str]:
    return {name: status.folder.name for name, status in now.stages.items() if status.folder is not None}


def step(*takes: str, suffix: str) -> dict[str, Any]:
    """A stage that translates the rows of others, or of the file."""
    path = {"data.path": [f"run:{name}" for name in takes]} if takes else {}
    return {"recipe": "rows.yaml", "set": {"data.columns": ["text"], "task.suffix": suffix} | path}


@pytest.mark.parametrize("seed", range(6))
def test_a_changed_value_redoes_exactly_what_depends_on_it(make: Make, seed: int) -> None:
    """Random graphs; the value is part of the stage's result. With the value that was, all is as it was."""
    draw = random.Random(seed)
    names = [f"s{number}" for number in range(draw.randint(3, 5))]
    takes = {name: draw.sample(names[:place], draw.randint(0, min(2, place))) for place, name in enumerate(names)}
    listed = {name: step(*takes[name], suffix=f"_{name}") for name in draw.sample(names, len(names))}
    first = to_the_end(make(listed))
    assert first.finished and versions(first) == {name: name for name in names}
    assert versions(to_the_end(make(listed))) == versions(first), "a second time nothing is done"
    changed = draw.choice(names)
    stale = {changed}
    for name in names:
        stale |= {name} if stale & {*takes[name]} else set()
    again = to_the_end(make(listed), f"stages.{changed}.task.suffix=_changed")
    assert again.finished
    assert versions(again) == {name: f"{name}.2" if name in stale else name for name in names}
    for name in names:
        differences = again.stages[name].key.differences(again.stages[name].earlier.key) if name in stale else []  # type: ignore[union-attr]
        wanted = {f"the result of run:{other} is another" for other in takes[name] if other in stale}
        assert set(differences) == wanted | (
            {'task.suffix: "_changed" (was "_' + changed + '")'} if name == changed else set()
        )
    assert versions(to_the_end(make(listed))) == versions(first), "its results are there still"


def test_where_and_how_it_is_done_changes_nothing(make: Make) -> None:
    file = make({"a": step(suffix="_a")})
    assert versions(to_the_end(file)) == {"a": "a"}
    words = ("run.workers=3", "run.lease_seconds=60", "site.slurm.minutes=7")
    assert versions(to_the_end(file, *words)) == {"a": "a"}


def test_a_file_that_changed_makes_its_stage_stale(make: Make) -> None:
    file = make({"a": step(suffix="_a"), "b": step(suffix="_b")})
    to_the_end(file)
    rows = file.parent / "rows.jsonl"
    os.utime(rows)
    assert versions(to_the_end(file)) == {"a": "a", "b": "b"}, "touched, and its content is as it was"
    rows.write_text('{"text": "another"}\n')
    now = to_the_end(file)
    assert versions(now) == {"a": "a.2", "b": "b.2"}
    status = now.stages["a"]
    assert status.key and status.earlier
    assert status.key.differences(status.earlier.key) == [f"the file {rows} is another"]


def test_a_failed_stage_holds_what_depends_on_it_alone(make: Make) -> None:
    bad = step(suffix="_bad") | {"recipe": "rows.yaml"}
    bad["set"] |= {"data.path": ["missing.jsonl"]}
    file = make({"a": step(suffix="_a"), "bad": bad, "b": step("bad", "a", suffix="_b"), "c": step("a", suffix="_c")})
    now = to_the_end(file)
    assert {name: status.state for name, status in now.stages.items()} == {
        "a": "done",
        "bad": "failed",
        "b": "held",
        "c": "done",
    }
    assert "missing.jsonl: no such file" in now.stages["bad"].reason
    last = decisions.last_decision(decisions.read(now.pipeline.folder))
    assert last and last.event["action"] == "stop" and last.event["reason"].startswith("bad failed: data.path")
    (file.parent / "missing.jsonl").write_text('{"text": "here now"}\n')
    assert to_the_end(file).finished


def test_a_choice_decides_what_is_done(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two stages the one whose condition holds; what would take the other's result is left out as well."""
    chosen = {"model": "merged-t0.50", "path": "/models/merged"}
    monkeypatch.setattr(conductor, "_run", lambda now, status: chosen if status.name == "best" else {})
    listed = {
        "a": step(suffix="_a"),
        "best": {"command": ["best", "run:a"]},
        "merged": step(suffix="_m") | {"when": {"best": "merged-*"}},
        "plain": step(suffix="_p") | {"when": {"best": "sft*"}},
        "after": step("plain", suffix="_x"),
        "page": {"command": ["report", "run:best"]},
    }
    now = to_the_end(make(listed))
    assert now.finished
    states = {name: status.state for name, status in now.stages.items()}
    assert states == dict.fromkeys(("a", "best", "merged", "page"), "done") | {"plain": "left out", "after": "left out"}
    assert now.stages["plain"].reason == "best chose 'merged-t0.50', not 'sft*'"
    assert now.place("run:best") == "/models/merged" and now.place("run:a/final") == f"{now.stages['a'].folder}/final"


@pytest.mark.parametrize("moment", ["before the plan", "half of the plan", "before it is noted", "before the start"])
def test_killed_while_a_stage_is_planned(make: Make, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes next goes on from there, and leaves nothing half-made."""
    file = make({"a": step(suffix="_a"), "b": step("a", suffix="_b")})
    whole = conductor.planning.plan

    class Killed(BaseException):
        pass

    def killed(*words: Any, **more: Any) -> Any:
        if moment == "before it is noted":
            whole(*words, **more)
        if moment == "half of the plan":
            (words[1] / "shards").mkdir(parents=True)
        raise Killed

    with monkeypatch.context() as patched:
        where = (conductor.submitting, "start") if moment == "before the start" else (conductor.planning, "plan")
        patched.setattr(*where, killed)
        with pytest.raises(Killed):
            to_the_end(file)
    now = to_the_end(file)
    assert now.finished and versions(now) == {"a": "a", "b": "b"}


def test_what_is_no_version_of_a_stage_stays(make: Make) -> None:
    """A stage may be called as a folder of the pipeline's own, or as one that a person put there."""
    mine = make({}).parent / "runs" / "whole" / "mine"
    mine.mkdir(parents=True)
    (mine / "notes.txt").touch()
    (mine.parent / "pipeline.json").touch()
    now = to_the_end(make({"ledger": step(suffix="_a"), "mine": step("ledger", suffix="_b")}))
    assert now.finished and versions(now) == {"ledger": "ledger.2", "mine": "mine.2"}
    assert (mine / "notes.txt").exists()


def test_the_command_line(hala: Hala, make: Make) -> None:
    """From plan to proof, in the background: planned, submitted, changed, cancelled, gone on with, and shown."""
    file = make(
        {
            "a": step(suffix="_a"),
            "slow": step("a", suffix="_slow") | {"recipe": "slow.yaml"},
            "page": {"command": ["report", "run:slow", "--to", "page"]},
        },
        slow=ROWS | {"engine": {"kind": "echo", "seconds": 3.0, "capacity": 1}},
    )
    planned = hala.json("plan", file)
    assert [(stage["stage"], stage["state"]) for stage in planned["stages"]] == [
        ("a", "ready"),
        ("slow", "waiting"),
        ("page", "waiting"),
    ]
    assert planned["stages"][0]["plans"][0]["rows"] == 4 and not (hala.folder / "runs").exists()
    assert "a process goes through the stages" in hala("submit", file).stdout
    wait(hala, lambda states: states["slow"] == "running")
    assert "is running as" in hala("submit", file, "stages.slow.task.suffix=_x", code=2).stderr
    hala("cancel", "whole")
    assert states_of(hala)["slow"] == "cancelled"
    assert "hala resume whole" in hala("status", "whole").stdout
    hala("resume", "whole")
    wait(hala, lambda states: set(states.values()) == {"done"})
    assert hala.json("verify", "whole")["proven"]
    assert (hala.folder / "runs" / "whole" / "page" / "report.html").is_file()
    assert "nothing to do: all of it is done" in hala("submit", file).stdout
    assert [(row["run"], row["runs"]) for row in hala.json("runs")] == [("whole", 2)]
    assert [part["run"] for part in hala.json("cost", "whole")["parts"]] == ["a", "slow"]
    changed = hala.json("plan", file, "stages.a.task.suffix=_x")["stages"][0]
    assert changed["plans"][0]["run"].endswith("whole/a.2") and "warnings" not in changed
    hala("submit", file, "stages.a.task.suffix=_x")
    hala("status", "whole", "--watch")
    why = hala.json("why", "whole", "a")
    assert why["differences"] == ['task.suffix: "_x" (was "_a")']
    wait(hala, lambda states: set(states.values()) == {"done"})
    assert hala.json("status", "whole")["stages"][1]["path"].endswith("whole/slow.2")
    assert "'whole' is a pipeline (name a run of it: whole/a, " in hala("logs", "whole", code=2).stderr
    said = hala("submit", file, "stages.b.data.limit=3", code=2).stderr
    assert "no such stage (did you mean 'a'?" in said or "valid: a, page, slow" in said


def states_of(hala: Hala) -> dict[str, str]:
    return {stage["stage"]: stage["state"] for stage in hala.json("status", "whole")["stages"]}


def wait(hala: Hala, is_so: Callable[[dict[str, str]], bool], seconds: float = 120.0) -> None:
    ends = time.monotonic() + seconds
    folder = hala.folder / "runs" / "whole"
    while not is_so(states := {name: status.state for name, status in survey(stages.load(folder)).stages.items()}):
        assert time.monotonic() < ends, states
        time.sleep(0.5)
