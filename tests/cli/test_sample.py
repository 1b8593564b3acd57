"""`hala sample`: rows of all shards by a seed, side by side, and nothing in them that a terminal would obey."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.conftest import Hala
from tests.worker.helpers import finish, plan, start, texts, wait_until

ARABIC = "مرحبا بالعالم، هذا نص عربي طويل لا يكفيه سطر واحد من عمود في نافذة ضيقة، ولذلك يأتي في أكثر من سطر"
HOSTILE = (
    "red \x1b[31m, title \x1b]0;x\x07, \x9b2J, back\x08, \u202eturned, \u2069ended\r\n[bold]markup[/bold]\u2028line"
)


def conversations(folder: Path) -> Path:
    turns = [{"role": "user", "content": ARABIC}, {"role": "assistant", "content": HOSTILE}]
    (folder / "m.jsonl").write_text(json.dumps({"messages": turns, "n\x1b[2J": 1}) + "\n")
    run = plan(folder, [], data={"path": [str(folder / "m.jsonl")]})
    finish(run)
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    made = plan(tmp_path, texts(200), fail_on="text 8", capacity=8)
    finish(made)
    return made


def numbers(said: str) -> list[int]:
    return [int(number.replace(",", "")) for number in re.findall(r"^row ([\d,]+) ", said, re.MULTILINE)]


def lines(hala: Hala, *words: object) -> list[dict[str, Any]]:
    return [json.loads(line) for line in hala("sample", *words, "--json").stdout.splitlines()]


def test_rows_are_drawn_by_the_seed_from_all_shards(hala: Hala, run: Path) -> None:
    first = hala("sample", run, "-n", 12).stdout
    drawn = numbers(first)
    assert drawn == sorted(drawn) and len(drawn) == 12
    assert len({number // 10 for number in drawn}) > 4
    assert hala("sample", run, "-n", 12).stdout == first
    assert numbers(hala("sample", run, "-n", 12, "--seed", 1).stdout) != drawn
    assert set(numbers(hala("sample", run, "-n", 5).stdout)) < set(drawn)
    assert "12 rows of 189 chosen among 200" in first
    assert [line["row"]["hala_row"] for line in lines(hala, run, "-n", 12)] == drawn
    assert all(line["shard"] == line["row"]["hala_row"] // 10 for line in lines(hala, run, "-n", 12))


def test_conditions_and_quarantine(hala: Hala, run: Path) -> None:
    assert numbers(hala("sample", run, "--where", "matches(text, '55')").stdout) == [55, 155]
    held = hala("sample", run, "--quarantine").stdout
    assert len(numbers(held)) == 11 and "row 8 (shard 0)  failed: fail_on 'text 8'" in held
    both = hala("sample", run, "--where", "hala_row < 3", "--quarantine", "failed", "-n", 50).stdout
    assert numbers(both) == [0, 1, 2, 8, *range(80, 90)][: len(numbers(both))] and len(numbers(both)) == 14
    assert numbers(hala("sample", run, "--where", "hala_row > 500").stdout) == []
    assert "rows have no 'flags'" in hala("sample", run, "--where", "'x' in flags", code=2).stderr


def test_a_terminal_gets_isolated_text_and_no_orders(hala: Hala, tmp_path: Path) -> None:
    run = conversations(tmp_path)
    said = hala("sample", run).stdout
    assert not set(re.findall("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e]", said))
    for line in said.splitlines():
        opened = 0
        for letter in line:
            opened += (letter in "\u2067\u2068") - (letter == "\u2069")
            assert opened in (0, 1)
        assert opened == 0, "each line closes what it opens"
    arabic = [line for line in said.splitlines() if "\u2067" in line]
    assert len(arabic) >= 3, "its lines are broken, and each is isolated"
    shown = " ".join(part for line in arabic for part in re.findall("\u2067(.*?)\u2069", line)[:1])
    assert shown == ARABIC
    assert "<U+001B>" in said and "<U+009B>" in said and "<U+202E>" in said and "[bold]markup[/bold]" in said
    assert "user" in said and "assistant" in said
    hala.env["COLUMNS"] = "200"
    wide = hala("sample", run).stdout
    assert "<U+001B>[31m" in wide and max(map(len, wide.splitlines())) > 120


def test_json_lines_hold_the_rows_as_they_are(hala: Hala, tmp_path: Path) -> None:
    run = conversations(tmp_path)
    said = hala("sample", run, "--json").stdout
    assert not re.findall("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e\u2069]", said) and "\u2067" not in said
    (line,) = said.splitlines()
    (row,) = pq.read_table(run / "shards/000/000000.parquet").to_pylist()
    assert json.loads(line) == {"shard": 0, "row": row}
    assert row["messages"][1]["content"] == HOSTILE


def test_runs_that_are_not_finished(hala: Hala, tmp_path: Path) -> None:
    begun = plan(tmp_path, texts(100), "begun", capacity=1, seconds=0.02)
    assert "no shard is finished yet" in hala("sample", begun, code=2).stderr
    process = start(begun)
    wait_until(lambda: len(list((begun / "shards/000").iterdir())) >= 2)
    process.terminate()
    process.communicate()
    done = hala("sample", begun, "-n", 100)
    assert 20 <= len(numbers(done.stdout)) < 100 and "not finished yet, and not looked at" in done.stderr
    output = begun / "shards/000" / sorted(path.name for path in (begun / "shards/000").iterdir())[0]
    output.write_bytes(b"nothing")
    assert "1 damaged shard left out" in hala("sample", begun).stderr


def test_flags_and_numbers_stand_beside_the_row(hala: Hala, tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text(json.dumps({"text": "This plain sentence with 3 words stays English."}) + "\n")
    recipe = {"name": "r", "task": {"kind": "translate", "prompt": "{text}"}, "engine": {"kind": "echo"}}
    (tmp_path / "r.yaml").write_text(json.dumps(recipe | {"data": {"path": "r.jsonl"}}))
    hala("plan", "r.yaml", "--create")
    finish(tmp_path / "runs" / "r")
    said = hala("sample", "r").stdout.splitlines()
    assert said[0].startswith("row 0 (shard 0)  copied, ") and "script" in said[0]
    assert "copied 1" in said[1] and "rung apart" in said[1]
