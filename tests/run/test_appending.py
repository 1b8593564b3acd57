"""Answers outlive the worker that got them."""

import json
from pathlib import Path

from hala_hpc.run.appending import Answers


def test_the_next_worker_finds_what_was_kept_and_a_torn_line_is_asked_again(tmp_path: Path) -> None:
    first = Answers(tmp_path)
    first.add("a", [-1.5, True])
    first.add("b", {"x": float("-inf")})
    first.close()
    (torn,) = tmp_path.glob("*.jsonl")
    with torn.open("a") as file:
        file.write('["c", [-2.')
    second = Answers(tmp_path)
    assert second["a"] == [-1.5, True] and second["b"] == {"x": float("-inf")}
    assert "c" not in second
    second.add("c", 1)
    second.close()
    third = Answers(tmp_path)
    assert all(key in third for key in "abc")
    assert len(list(tmp_path.glob("*.jsonl"))) == 2, "a file for each writer"


def test_strange_lines_are_no_answers(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('5\n["a"]\n["a", 1, 2]\nnull\n{"a": 1}\n["b", 1]\n[["c"], 1]\n')
    kept = Answers(tmp_path)
    assert "a" not in kept and kept["b"] == 1


def test_without_a_folder_answers_stay_in_memory() -> None:
    kept = Answers(None)
    kept.add("a", 1)
    kept.close()
    assert kept["a"] == 1


def test_an_answer_is_on_the_disk_before_the_end(tmp_path: Path) -> None:
    kept = Answers(tmp_path, flush_seconds=0)
    kept.add("a", 1)
    (path,) = tmp_path.glob("*.jsonl")
    assert [json.loads(line.partition("\t")[0]) for line in path.read_text().split("\n") if line] == [["a", 1]]
