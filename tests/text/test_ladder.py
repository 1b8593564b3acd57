"""No translator, however bad, spoils in silence what must survive."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hala_hpc.data.cut import estimated_tokens
from hala_hpc.text import ladder
from hala_hpc.text.checks import Pair
from hala_hpc.text.ladder import Answer, Ask, Manner, Rung, Translation
from hala_hpc.text.languages import language
from hala_hpc.text.skeleton import shape_faults, skeleton
from tests.text.strategies import texts
from tests.text.translators import TRANSLATORS, Translator, upper

SAME = Pair(language("English"), language("English"))
"""The fake translators write the letters that they read."""


def translated(text: str, translate: Translator, pair: Pair = SAME, **manner: int) -> tuple[Translation, list[Ask]]:
    steps = ladder.translation(text, Manner(pair, estimated_tokens, **{"again": 0} | manner))
    asked: list[Ask] = []
    answers: list[Answer] | None = None
    while True:
        try:
            asks = next(steps) if answers is None else steps.send(answers)
        except StopIteration as end:
            return end.value, asked
        asked += asks
        answers = [Answer(translate(ask.text)) for ask in asks]


def assert_nothing_silent(text: str, result: Translation) -> None:
    source = skeleton(text)
    if result.text is None:
        assert result.error
        return
    needed = Counter(source.text_of(span) for span in source.protected())
    lost = [span for span, count in needed.items() if result.text.count(span) < count]
    assert not lost, "what is protected is never lost: no model sees it"
    assert not shape_faults(source, result.text) or result.flags["shape"]


@settings(deadline=None)
@given(texts, st.sampled_from(sorted(TRANSLATORS)), st.sampled_from([4, 40, 400]))
def test_no_damage_is_silent(text: str, name: str, tokens: int) -> None:
    result, _ = translated(text, TRANSLATORS[name], tokens=tokens)
    assert_nothing_silent(text, result)


def real_texts(data: Path) -> Iterator[str]:
    for path in sorted((data / "instructions" / "alpaca_52k").glob("*.json"))[:2]:
        for row in json.loads(path.read_text()):
            yield from row.values()
    for row in json.loads((data / "math_code" / "gpteacher_codegen-instruct.json").read_text())[:300]:
        yield from row.values()
    for row in json.loads((data / "multiturn" / "llamafactory_glaive_toolcall_en_demo.json").read_text())[:100]:
        yield from (turn["value"] for turn in row["conversations"])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TRANSLATORS))
def test_no_damage_of_real_texts_is_silent(data: Path, name: str) -> None:
    for text in real_texts(data):
        result, _ = translated(text, TRANSLATORS[name])
        assert_nothing_silent(text, result)


def test_only_what_failed_is_asked_for_again() -> None:
    text = "A first part that fills a segment of its own.\n\nUse `a` and `b` now.\n\nA last part as long as the first."

    def fails_on_the_second(asked: str) -> str:
        return asked.replace("⟦1⟧", "").upper() if "⟦" in asked else asked.upper()

    result, asked = translated(text, fails_on_the_second, tokens=24)
    assert result.text == text.upper().replace("`A`", "`a`").replace("`B`", "`b`")
    assert result.rung is Rung.APART and not result.flags
    assert [ask.text for ask in asked] == [
        "A first part that fills a segment of its own.",
        "Use ⟦1⟧ and ⟦2⟧ now.",
        "A last part as long as the first.",
        "Use",
        "and",
        "now.",
    ]
    assert [ask.attempt for ask in asked] == [0, 0, 0, 2, 2, 2]


def test_what_comes_right_at_the_second_time_is_kept() -> None:
    answers = iter(["Hi", "A QUARTER PAST FIVE IS WHEN THE TRAIN COMES."])
    result, asked = translated("The train arrives at a quarter past five.", lambda _: next(answers), again=1)
    assert result.text == "A QUARTER PAST FIVE IS WHEN THE TRAIN COMES."
    assert result.rung is Rung.AGAIN and len(asked) == 2 and not result.flags


def test_the_best_answer_is_kept_and_flagged() -> None:
    result, _ = translated("Is it five o'clock already, my friend?", upper, Pair(SAME.source, language("Arabic")))
    assert result.text == "IS IT FIVE O'CLOCK ALREADY, MY FRIEND?"
    assert set(result.flags) == {"copied", "language", "script"} and result.rung is Rung.APART


def test_a_text_without_prose_is_not_asked_for() -> None:
    result, asked = translated("```\ncode\n```\n42", upper)
    assert result.text == "```\ncode\n```\n42" and not asked


def test_a_refused_request_climbs_and_at_last_is_an_error() -> None:
    steps = ladder.translation("Some text.", Manner(SAME, estimated_tokens, again=0))
    asks = next(steps)
    with pytest.raises(StopIteration) as end:
        while True:
            asks = steps.send([Answer("", error="too long: for the model") for _ in asks])
    assert end.value.value.text is None and end.value.value.error == "too long: for the model"


def test_several_texts_go_abreast() -> None:
    manner = Manner(SAME, estimated_tokens)
    steps = ladder.abreast([ladder.translation(text, manner) for text in ("One `x` two.", "42", "Three.")])
    asks = next(steps)
    assert [ask.text for ask in asks] == ["One ⟦1⟧ two.", "Three."]
    asks = steps.send([Answer("EINS ZWEI."), Answer("DREI.")])
    assert [ask.text for ask in asks] == ["One ⟦1⟧ two."]
    with pytest.raises(StopIteration) as end:
        steps.send([Answer("EINS ⟦1⟧ ZWEI.")])
    assert [translation.text for translation in end.value.value] == ["EINS `x` ZWEI.", "42", "DREI."]


@pytest.mark.parametrize("size", [100_000, 1_000_000])
def test_one_long_line_comes_out_whole(data: Path, size: int) -> None:
    line = (data / "raw_text" / "wiki_demo.txt").read_text().replace("\n", " ")[:size]
    result, asked = translated(line, upper)
    assert result.text is not None and result.text.casefold() == upper(line).casefold()
    assert max(estimated_tokens(ask.text) for ask in asked) <= 420
