"""Conversations as JSON lists of turns: whatever a model makes of one is asked for again, or told with its reason."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from hala_hpc.data.cut import estimated_tokens
from hala_hpc.text import ladder
from hala_hpc.text.forms import Form, Marked, Turns
from hala_hpc.text.ladder import Answer, Ask, Manner, Rung
from tests.text.test_ladder import SAME, rows_translated
from tests.text.translators import Translator, driven


def test_a_lost_turn_is_seen() -> None:
    def loses(prompt: str) -> str:
        turns = json.loads(prompt)
        return json.dumps(turns[:-1] if len(turns) > 1 else [{**turns[0], "content": turns[0]["content"].upper()}])

    row = ["How are you?", "I am well.", "Good."]
    result, asks = rows_translated(row, loses, form=Turns(), rungs=(Rung.AGAIN,))
    assert asks[0].outcome == "turns: the answer has 2 of 3, or of other roles"
    assert result.texts == ["HOW ARE YOU?", "I AM WELL.", "GOOD."] and len(asks) == 4
    schema = json.loads(Turns().schema(asks[0].roles))
    assert schema["minItems"] == schema["maxItems"] == 3
    spoken = [turn["properties"]["role"] for turn in schema["prefixItems"]]
    assert spoken == [{"const": "user"}, {"const": "assistant"}, {"const": "user"}] and schema["items"] is False


Turn = dict[str, str]


def damaged_once(damage: Callable[[list[Turn]], Any]) -> Translator:
    """A good one whose answer to several turns at once is damaged."""

    def translated_turns(prompt: str) -> str:
        turns = [turn | {"content": turn["content"].upper()} for turn in json.loads(prompt)]
        written = damage(turns) if len(turns) > 1 else turns
        return written if isinstance(written, str) else json.dumps(written)

    return translated_turns


OTHER_ROLES = "turns: the answer has 3 of 3, or of other roles"
NO_LIST = "json: the answer is no list of turns"


@pytest.mark.parametrize(
    ("damage", "outcome"),
    [
        (lambda turns: [*turns, {"role": "assistant", "content": "MORE."}], "turns: the answer has 4 of 3"),
        (lambda turns: [turns[1], turns[0], turns[2]], OTHER_ROLES),
        (lambda turns: [turn | {"role": "system"} for turn in turns], OTHER_ROLES),
        (lambda turns: [{"content": turn["content"]} for turn in turns], OTHER_ROLES),
        (lambda turns: [turn["content"] for turn in turns], NO_LIST),
        (lambda turns: [turn | {"content": None} for turn in turns], NO_LIST),
        (lambda turns: [turn | {"content": "\ud83d"} for turn in turns], "json: a text has half of a surrogate pair"),
        (lambda turns: json.dumps(turns)[:-5], f"{NO_LIST}: Unterminated string"),
        (lambda turns: "The turns are: HOW ARE YOU? I AM WELL.", NO_LIST),
        (lambda turns: "[" * 10_000, NO_LIST),
    ],
    ids=["added", "swapped", "renamed", "no roles", "texts", "no text", "half a sign", "ended", "prose", "deep"],
)
@pytest.mark.parametrize("rung", [Rung.AGAIN, Rung.ALONE, Rung.APART])
def test_damaged_turns_are_asked_for_again(damage: Callable[[list[Turn]], Any], outcome: str, rung: Rung) -> None:
    row = ["How are you?", "I am well.", "Good."]
    result, asks = rows_translated(row, damaged_once(damage), form=Turns(), rungs=(rung,))
    assert asks[0].outcome.startswith(outcome)
    assert [ask.roles for ask in asks] == [("user", "assistant", "user"), ("user",), ("assistant",), ("user",)]
    assert result.texts == ["HOW ARE YOU?", "I AM WELL.", "GOOD."] and result.rung is rung and not result.flags


def test_turns_that_no_answer_has_are_an_error_with_its_reason() -> None:
    def adds(prompt: str) -> str:
        turns = json.loads(prompt)
        return json.dumps([*turns, turns[0]])

    result, asks = rows_translated(["How are you?", "I am well."], adds, form=Turns(), rungs=ladder.RUNGS)
    assert result.texts is None and result.error == "turns: the answer has 2 of 1, or of other roles"
    assert [ask.outcome.split(",")[0] for ask in asks] == [
        "turns: the answer has 3 of 2", *["turns: the answer has 2 of 1"] * 4
    ]  # fmt: skip


def test_of_turns_only_those_climb_that_lost_a_mark() -> None:
    def loses(prompt: str) -> str:
        turns = json.loads(prompt)
        texts = [turn["content"].upper().replace("⟦2⟧", "") for turn in turns]
        return json.dumps([turn | {"content": text} for turn, text in zip(turns, texts, strict=True)])

    row = ["What is `x`?", "Of `x` and `y` the first.\n\n```\nx\n```", "Thanks for `x`."]
    result, asks = rows_translated(row, loses, form=Turns(), rungs=(Rung.AGAIN, Rung.APART))
    assert result.texts == ["WHAT IS `x`?", "OF `x` AND `y` THE FIRST.\n\n```\nx\n```", "THANKS FOR `x`."]
    assert asks[0].texts == ("What is ⟦1⟧?", "Of ⟦1⟧ and ⟦2⟧ the first.", "Thanks for ⟦1⟧.")
    assert asks[0].outcome == "markers: 1 lost, 0 too many"
    assert [ask.texts for ask in asks[1:]] == [("Of ⟦1⟧ and ⟦2⟧ the first.",), ("Of",), ("and",), ("the first.",)]
    assert {ask.roles for ask in asks[1:]} == {("assistant",)}


def test_turns_are_read_from_what_is_written_around_and_between() -> None:
    """As from an endpoint that enforces nothing: words before, a fence and more after, lines that are not escaped."""
    turns = '[{"role": "user", "content": "A\nB ```x``` \\u27e61⟧"}]'
    written = f"Here:\n```json\n{turns}\n```\n\nEnglish:\n```json\n[]"
    assert Turns().read(written, ["a"], ["user"]) == ["A\nB ```x``` ⟦1⟧"]


@pytest.mark.parametrize("form", [Turns(), Marked()], ids=["json", "marked"])
@pytest.mark.parametrize("comes_right", [True, False])
def test_an_answer_that_was_cut_off_is_asked_for_again(form: Form, comes_right: bool) -> None:
    texts = ["Is `x` the one that you know?", "It is the one."]

    def cut(ask: Ask) -> Answer:
        written = form.write([text.upper() for text in ask.texts], ask.roles)
        is_cut = not comes_right or len(ask.texts) > 1
        return Answer(written[:3] if is_cut else written, is_cut)

    manner = Manner(SAME, estimated_tokens, form=form, rungs=(Rung.AGAIN,))
    result = driven(ladder.translation(texts, manner, ["user", "assistant"]), cut)
    assert [ask.outcome.startswith("truncated") for ask in result.asks] == [True, not comes_right, not comes_right]
    assert result.asks[0].outcome.startswith("truncated: max_tokens cut the answer off (")
    if comes_right:
        assert result.texts == ["IS `x` THE ONE THAT YOU KNOW?", "IT IS THE ONE."] and not result.flags
    else:
        assert result.texts is None and result.error.startswith("truncated: max_tokens cut the answer off (")


def test_what_an_engine_refused_is_not_called_cut_off() -> None:
    steps = ladder.translation(["Some text."], Manner(SAME, estimated_tokens, rungs=()))
    assert driven(steps, lambda _: Answer("", truncated=True, error="thinking: no end")).error == "thinking: no end"
