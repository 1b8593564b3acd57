"""The data of Hala in miniature: what its recipes and its numbers rely on."""

import json
from collections import Counter
from typing import Any

import yaml

from hala_hpc.text.checks import Pair, checks, flags
from hala_hpc.text.languages import language
from hala_hpc.text.rules import PAIRS, broken
from tests.conftest import ROOT

MINI = ROOT / "jobs" / "mini"
ENGLISH_TO_ARABIC = Pair(language("English"), language("Arabic"))


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (MINI / "data" / name).read_text("utf-8").splitlines()]


def right() -> dict[str, str]:
    """Arabic by English, of the pairs that are not damaged."""
    return {row["en"]: row["ar"] for row in rows("pairs.jsonl") if row["good"]}


def instructions() -> list[dict[str, Any]]:
    return rows("instructions/world.jsonl") + rows("instructions/things.jsonl")


def test_pairs_are_unique_in_both_languages() -> None:
    pairs, arabic = rows("pairs.jsonl"), list(right().values())
    assert len({row["en"] for row in pairs}) == len(pairs) == 336 == len({row["id"] for row in pairs})
    assert len(set(arabic)) == len(arabic) == 320
    assert all(text == text.strip() for pair in right().items() for text in pair)


def test_rules_alone_tell_good_pairs_from_damaged_ones() -> None:
    """And no check flags a right translation, which `where: not flags` would leave out of the training."""
    for row in rows("pairs.jsonl"):
        assert bool(broken(row["en"], row["ar"], ENGLISH_TO_ARABIC, PAIRS)) != bool(row["good"]), row
    for english, arabic in right().items():
        assert flags(checks(english, arabic, ENGLISH_TO_ARABIC)) == [], english


def test_instructions_are_made_of_sentences_of_the_pairs() -> None:
    known, instructed = right(), [row["instruction"] for row in instructions()]
    assert len(set(instructed)) == len(instructed) == 112
    for row in instructions():
        assert known[row["instruction"]].endswith("؟") and row["instruction"].endswith("?")
        assert known[row["output"]].endswith(".") and row["output"].endswith(".")


def test_questions_have_one_right_answer_which_an_instruction_teaches() -> None:
    known, questions = right(), rows("facts/test.jsonl")
    taught = {known[row["instruction"]]: known[row["output"]] for row in instructions()}
    assert len({row["question"] for row in questions}) == len(questions) == 40
    for row in questions:
        assert len(set(row["choices"])) == len(row["choices"]) == 4
        assert row["choices"][row["answer"]] == taught[row["question"]]
    assert set(Counter(row["answer"] for row in questions).values()) == {10}, "no place is the likelier one"
    topics = Counter(row["topic"] for row in questions)
    assert topics.keys() == {row["topic"] for row in instructions()} and min(topics.values()) >= 4


def test_the_translator_is_asked_as_it_was_taught() -> None:
    prompt = yaml.safe_load((ROOT / "jobs" / "prompts" / "hala-light.yaml").read_text("utf-8"))["task"]["prompt"]
    taught = yaml.safe_load((MINI / "mix-pairs.yaml").read_text("utf-8"))["task"]["prompt"]
    assert prompt.replace("{target}", "Arabic") == taught


def test_files_are_small() -> None:
    assert sum(path.stat().st_size for path in (MINI / "data").rglob("*") if path.is_file()) < 100_000
