"""``hala explain``: the requests of a row as they were sent, from what its run keeps."""

import json
from typing import Any

import pytest

from tests.conftest import Hala

ROWS = [
    {"text": "Use `x = 1` here, my friend."},
    {"text": "CUT this short, please."},
    {"text": "مرحبا \x1b[31m بالعالم"},
    {"text": "A paragraph of some length. " * 100},
]
TASK = {"target": "English", "suffix": "_en", "prompt": "To {target}: {text}", "system": "From {source}."}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Hala:
    """Echo gives the prompt back, so every answer fails a check."""
    hala = Hala(tmp_path_factory.mktemp("explained"))
    (hala.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    task = {"kind": "translate", "segments": {"tokens": 60, "rungs": ["again"]}} | TASK
    recipe = {"name": "r", "task": task, "engine": {"kind": "echo", "cut_on": "CUT"}, "data": {"path": "rows.jsonl"}}
    (hala.folder / "r.yaml").write_text(json.dumps(recipe))
    hala("submit", "r.yaml", "site.executor=debug")
    return hala


def requests(hala: Hala, row: int, run: str = "r") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = hala.json("explain", run, row)["requests"]
    return found


def test_each_request_as_it_was_sent(run: Hala) -> None:
    first, again = requests(run, 0)
    assert first["prompt"] == [["system", "From English."], ["user", "To English: Use ⟦1⟧ here, my friend."]]
    assert (first["rung"], first["attempt"], again["rung"], again["attempt"]) == ("together", 0, "again", 1)
    assert first["temperature"] == 0.0 and again["temperature"] == 0.3 and first["seed"] != again["seed"]
    assert first["outcome"] and first["output_tokens"] > 0 and first["finish_reason"] == "stop"
    long = run.json("explain", "r", 3)
    assert long["whole"] and len(long["requests"]) > 10
    assert "".join(request["prompt"][1][1] for request in long["requests"]).count("A paragraph") >= 100


def test_what_a_person_sees(run: Hala) -> None:
    shown = run("explain", "r", 0).stdout
    assert "request 2: again, attempt 1" in shown and "To English: Use ⟦1⟧ here, my friend." in shown
    assert "recipe digest" in shown
    hostile = run("explain", "r", 2).stdout
    assert "\x1b" not in hostile and "<U+001B>" in hostile


def test_of_a_row_in_quarantine_the_first_requests_are_shown(run: Hala) -> None:
    found = run.json("explain", "r", 1)
    assert not found["whole"] and found["row"]["hala_error"].startswith("truncated")
    assert [request["prompt"][1][1] for request in found["requests"]] == ["To English: CUT this short, please."]
    assert "first requests" in run("explain", "r", 1).stdout


def test_a_row_that_stays_is_explained_by_the_run_that_did_it(run: Hala) -> None:
    run("redo", "r", "--where", "matches(text, 'friend')", 'task.prompt="Now into {target}: {text}"')
    assert requests(run, 0, "r-v2")[0]["prompt"][1][1].startswith("Now into English")
    stays = run.json("explain", "r-v2", 3)
    assert stays["run"].endswith("/r") and stays["requests"][0]["prompt"][1][1].startswith("To English")


@pytest.mark.parametrize(
    ("row", "said"), [("4", "has no row 4"), ("-1", "No such option"), ("x", "not a valid integer")]
)
def test_what_cannot_be_explained(run: Hala, row: str, said: str) -> None:
    assert said in run("explain", "r", row, code=2).stderr


def test_status_and_plan_say_what_the_ladder_costs(run: Hala) -> None:
    """Each segment is asked for at most twice, and here it is: no answer passes."""
    status = " ".join(run("status", "r").stdout.split())
    assert "asked again, after answers that failed a check" in status and "rows flagged: " in status
    assert run.json("plan", "r.yaml", "name=x")["most_asks"] == 2
    assert "2 times that at most, if all answers failed" in " ".join(run("plan", "r.yaml", "name=x").stdout.split())


def test_a_damaged_list_of_redone_rows_is_told(run: Hala) -> None:
    run("redo", "r", "--where", "matches(text, 'friend')", "sampling.seed=3", "--name", "broken")
    again = run.folder / "runs" / "broken" / "again.parquet"
    again.chmod(0o644)
    again.write_bytes(again.read_bytes()[:-20])
    said = run("explain", "broken", 0, code=2).stderr
    assert "again.parquet" in said and "hala verify broken" in said
