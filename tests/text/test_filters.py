"""Filters of conversations that a model made up: each rejects what it is made for, and can be switched off."""

import re
from dataclasses import replace
from typing import Any

import pytest

from hala_hpc.text.filters import NUMBERS, Filters, Looking, summed
from hala_hpc.text.languages import language

ASKED = "Which rivers flow through the city of Cairo, and where do they end?"
ANSWER = "The Nile flows through Cairo. It ends in the Mediterranean Sea, where it forms a wide delta."
BASQUE = "Zein ibai igarotzen dira Kairo hiritik, eta non amaitzen dira ibai horiek azkenean?"
OFF = Filters(
    truncated=False,
    min_instruction=None,
    max_instruction=None,
    min_response=None,
    max_response=None,
    leftovers=False,
    loops=None,
    zlib=None,
    words=None,
    same=False,
    refusals=False,
)
"""Nothing is rejected, but a turn that says nothing."""


def looked(text: str, before: str | None = None, is_cut: bool = False, filters: Filters | None = None) -> str:
    looking = Looking(filters or Filters(), language("English"))
    return looking.rejection(looking.at(text, before, is_cut))


@pytest.mark.parametrize(
    ("reason", "key", "text", "before"),
    [
        ("truncated", "truncated", ASKED, None),
        ("truncated", "truncated", ANSWER, ASKED),
        ("short instruction", "min_instruction", "Hello.", None),
        ("long instruction", "max_instruction", " ".join(f"{ASKED} {n}" for n in range(150)), None),
        ("leftovers", "leftovers", f"{ASKED}<|eot_id|>", None),
        ("leftovers", "leftovers", f"{ANSWER}\nHuman: And then?", ASKED),
        ("loops", "loops", f"{ASKED} And then?{' And then?' * 3}", None),
        ("zlib", "zlib", "The Nile ends in the sea. It ends in the sea. " * 20 + "So it is said.", ASKED),
        ("words", "words", " ".join(f"the {n * 7919 % 10007}" for n in range(101)), ASKED),
        ("same", "same", ASKED.upper(), ASKED),
        ("refusal", "refusals", "I'm sorry, but I can't help with that.", ASKED),
    ],
)
def test_each_rejects_what_it_is_for_and_can_be_switched_off(
    reason: str, key: str, text: str, before: str | None
) -> None:
    is_cut = reason == "truncated"
    only = replace(OFF, **{key: getattr(Filters(), key)})
    assert looked(text, before, is_cut).partition(":")[0] == reason
    assert looked(text, before, is_cut, only).partition(":")[0] == reason
    assert looked(text, before, is_cut, OFF) == ""


def test_lengths_of_answers_are_bounded_where_one_says_so() -> None:
    assert looked("4", "What is two times two?") == ""
    assert looked("4", "What is two times two?", filters=Filters(min_response=2)) == "short response: 1 characters"
    assert looked(ANSWER, ASKED, filters=Filters(max_response=50)).startswith("long response: ")


def test_good_turns_are_kept() -> None:
    assert looked(ASKED) == looked(ANSWER, ASKED) == ""
    assert looked("What is 12 * 7?") == looked("84", "What is 12 * 7?") == ""
    code = "```python\nfor i in range(10):\n    print(i)\n```\n" * 2
    assert looked(f"What does this do?\n\n{code}") == ""


@pytest.mark.parametrize("text", ["", " … ", "?!"])
def test_a_turn_that_says_nothing_is_always_rejected(text: str) -> None:
    assert looked(text, None, filters=OFF) == "empty: the instruction has neither a letter nor a digit"
    assert looked(text, ASKED, filters=OFF) == "empty: the answer has neither a letter nor a digit"


def test_another_language() -> None:
    assert looked(BASQUE) == "language: the instruction is not English"
    assert looked(f"Here is the text: `{BASQUE}`") == "", "only prose counts"
    looking = Looking(Filters(), language("English"))
    assert looking.rejection(looking.at(BASQUE, None, False, any_language=True)) == ""
    assert Looking(Filters(), None).at(BASQUE, None, False).language is None
    assert looking.at("Kaixo", None, False).language is None, "too short to tell"


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, but I can’t assist with that request.",
        "I cannot provide instructions on that.",
        "I am unable to generate such a text.",
        "Sorry, I won't write that.",
        "Unfortunately, I cannot directly create images.",
        "I apologize, but I cannot fulfill this request.",
        "As an AI language model, I have no opinions.",
        "I'm just an AI, so I have never been there.",
        "**I can't discuss that.**",
    ],
)
def test_refusals_are_known_by_their_beginning(text: str) -> None:
    assert looked(text, ASKED) == "refusal: the answer begins as a refusal"
    assert looked(f"{ANSWER} {text}", ASKED) == "", "elsewhere it is part of an answer"
    assert looked(text) == "" or looked(text).startswith("short"), "a user may say so"


@pytest.mark.parametrize(
    "text",
    [
        "I can't wait to see what you make of it! Here is a plan for the party.",
        "I cannot stress enough how much the first step matters.",
        "Unfortunately, the river ends in a desert.",
        "Sorry is the word that most languages have for this.",
        "Assuming an ideal gas, the pressure doubles.",
        "I'm an early riser, said the bird.",
    ],
)
def test_what_only_looks_like_a_refusal_is_none(text: str) -> None:
    assert looked(text, ASKED) == ""


def test_refusals_of_ones_own() -> None:
    own = Filters(refusals=False, patterns=["Sentitzen dut"])
    looking = Looking(own, None)
    assert looking.rejection(looking.at("Sentitzen dut, ezin dut.", ASKED, False)).startswith("refusal")
    assert looking.rejection(looking.at("Barkatu. Sentitzen dut.", ASKED, False)) == ""
    with pytest.raises(re.error):
        Looking(Filters(patterns=["("]), None)


def test_the_numbers_of_a_row_are_those_of_its_turns() -> None:
    looking = Looking(OFF, language("English"))
    said = [(ASKED, None, False), (ANSWER, ASKED, True), ("And then what happens there?", None, True)]
    turns = [looking.at(*turn) for turn in said]
    numbers: dict[str, Any] = summed(turns)
    assert tuple(sorted(numbers)) == tuple(sorted(NUMBERS))
    assert (numbers["shortest_instruction"], numbers["longest_instruction"]) == (28, len(ASKED))
    assert numbers["shortest_response"] == numbers["longest_response"] == len(ANSWER)
    assert (numbers["truncated"], numbers["leftovers"], numbers["same"], numbers["refusals"]) == (2, 0, 0, 0)
    assert (numbers["loops"], numbers["words"], numbers["language"]) == (1, 1, 1)
    assert summed(turns[:1])["shortest_response"] is None
