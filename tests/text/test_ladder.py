"""No translator, however bad, spoils in silence what must survive."""

import csv
import json
from collections import Counter
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hala_hpc.data.cut import estimated_tokens
from hala_hpc.text import ladder
from hala_hpc.text.checks import Pair
from hala_hpc.text.forms import Marked, Turns
from hala_hpc.text.glossary import Glossary
from hala_hpc.text.inside import CHOICES, COMMENTS, JSON
from hala_hpc.text.ladder import Answer, Ask, Manner, Rung, Translation
from hala_hpc.text.languages import language
from hala_hpc.text.patterns import Kind
from hala_hpc.text.skeleton import shape_faults, skeleton
from tests.text.strategies import texts
from tests.text.translators import TRANSLATORS, Translator, driven, upper

SAME = Pair(language("English"), language("English"))
"""The fake translators write the letters that they read."""


def translated(text: str, translate: Translator, pair: Pair = SAME, **manner: Any) -> tuple[Translation, list[Ask]]:
    return rows_translated([text], translate, pair, **manner)


def rows_translated(
    texts: list[str], translate: Translator, pair: Pair = SAME, **manner: Any
) -> tuple[Translation, list[Ask]]:
    given = {"rungs": (Rung.ALONE, Rung.APART)} | manner
    asks: list[Ask] = []
    form = given.get("form", Marked())

    def answer(ask: Ask) -> Answer:
        asks.append(ask)
        return Answer(translate(form.write(ask.texts, ask.roles)))

    roles = [("user", "assistant")[number % 2] for number in range(len(texts))]
    whole = Manner(pair, estimated_tokens, **given)
    result = driven(ladder.translation(texts, whole, roles), answer)
    assert result.asks == asks
    for ask in asks:  # where each was is enough to know what it was
        again = ladder.asked(result.sources, roles, ask.places, ask.rung, whole)
        assert (again.texts, again.roles, again.terms) == (ask.texts, ask.roles, ask.terms)
    return result, asks


def text_of(result: Translation) -> str:
    assert result.texts is not None
    (text,) = result.texts
    return text


def assert_nothing_silent(texts: list[str], result: Translation) -> None:
    if result.texts is None:
        assert result.error
        return
    for text, written in zip(texts, result.texts, strict=True):
        source = skeleton(text)
        needed = Counter(source.text_of(span) for span in source.protected())
        lost = [span for span, count in needed.items() if written.count(span) < count]
        assert not lost, "what is protected is never lost: no model sees it"
        assert not shape_faults(source, written) or result.flags["shape"]


@settings(deadline=None)
@given(st.lists(texts, max_size=4), st.sampled_from(sorted(TRANSLATORS)), st.sampled_from([4, 40, 400]), st.booleans())
def test_no_damage_is_silent(row: list[str], name: str, tokens: int, context: bool) -> None:
    result, _ = rows_translated(row, TRANSLATORS[name], tokens=tokens, with_context=context)
    assert_nothing_silent(row, result)


def in_turns(translate: Translator) -> Translator:
    """One that writes JSON, as a model whose answer a grammar holds."""

    def translated_turns(prompt: str) -> str:
        turns = [{**turn, "content": translate(turn["content"])} for turn in json.loads(prompt)]
        return f"{json.dumps(turns)}\n```"

    return translated_turns


@settings(deadline=None)
@given(st.lists(texts, max_size=4), st.sampled_from(sorted(TRANSLATORS)), st.sampled_from([40, 400]))
def test_no_damage_to_turns_is_silent(row: list[str], name: str, tokens: int) -> None:
    result, _ = rows_translated(row, in_turns(TRANSLATORS[name]), tokens=tokens, form=Turns())
    assert_nothing_silent(row, result)


@settings(deadline=None)
@given(texts, st.sampled_from(sorted(TRANSLATORS)))
def test_no_damage_to_json_and_comments_is_silent(text: str, name: str) -> None:
    opened = frozenset(CHOICES)
    result, _ = translated(text, TRANSLATORS[name], inside=opened)
    if result.texts is not None:
        assert result.flags["shape"] or not shape_faults(skeleton(text, (), opened), result.texts[0], (), opened)


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
    for row in batched(real_texts(data), 3):
        result, _ = rows_translated(row, TRANSLATORS[name])
        assert_nothing_silent(row, result)


def texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from texts_in(inner)


def every_text(data: Path) -> Iterator[str]:
    for path in sorted(path for path in data.rglob("*") if path.is_file()):
        if path.suffix == ".json":
            yield from texts_in(json.loads(path.read_text()))
        elif path.suffix == ".jsonl":
            yield from (text for line in path.read_text().splitlines() for text in texts_in(json.loads(line)))
        elif path.suffix == ".csv":
            with path.open(newline="") as lines:
                yield from texts_in(list(csv.reader(lines)))
        elif path.suffix in (".txt", ".tex", ".md"):
            yield path.read_text()
        else:
            yield from path.read_text().splitlines()


@pytest.mark.exhaustive
def test_no_damage_of_any_real_text_is_silent(data: Path) -> None:
    translators = cycle(sorted(TRANSLATORS))
    for row, name in zip(batched(every_text(data), 3), translators, strict=False):
        result, _ = rows_translated(row, TRANSLATORS[name])
        assert_nothing_silent(row, result)


def batched(items: Iterator[str], size: int) -> Iterator[list[str]]:
    while batch := list(islice(items, size)):
        yield batch


def test_only_what_failed_is_asked_for_again() -> None:
    text = "A first part that fills a segment of its own.\n\nUse `a` and `b` now.\n\nA last part as long as the first."

    def fails_on_the_second(prompt: str) -> str:
        return prompt.replace("⟦1⟧", "").upper() if "⟦" in prompt else prompt.upper()

    result, asks = translated(text, fails_on_the_second, tokens=24)
    assert text_of(result) == text.upper().replace("`A`", "`a`").replace("`B`", "`b`")
    assert result.rung is Rung.APART and not result.flags
    assert [ask.texts for ask in asks] == [
        ("A first part that fills a segment of its own.",),
        ("Use ⟦1⟧ and ⟦2⟧ now.",),
        ("A last part as long as the first.",),
        ("Use",),
        ("and",),
        ("now.",),
    ]
    assert [ask.attempt for ask in asks] == [0, 0, 0, 2, 2, 2]
    assert [text[start:end] for ask in asks for _, start, end in ask.places][3:] == ["Use", "and", "now."]
    assert asks[1].outcome == "markers: 1 lost, 0 too many" and not asks[0].outcome


def test_what_comes_right_at_the_second_time_is_kept() -> None:
    answers = iter(["Hi", "A QUARTER PAST FIVE IS WHEN THE TRAIN COMES."])
    text = "The train arrives at a quarter past five."
    result, asks = translated(text, lambda _: next(answers), rungs=[Rung.AGAIN])
    assert text_of(result) == "A QUARTER PAST FIVE IS WHEN THE TRAIN COMES."
    assert result.rung is Rung.AGAIN and len(asks) == 2 and not result.flags


def test_the_best_answer_is_kept_and_flagged() -> None:
    arabic = Pair(SAME.source, language("Arabic"))
    result, asks = translated("Is it five o'clock already, my friend?", upper, arabic)
    assert text_of(result) == "IS IT FIVE O'CLOCK ALREADY, MY FRIEND?"
    assert set(result.flags) == {"copied", "language", "script"} and result.rung is Rung.APART
    assert len(asks) == 2
    all_of_them = frozenset({"copied", "language", "script"})
    result, asks = translated("Is it five o'clock already, my friend?", upper, arabic, only_flag=all_of_them)
    assert set(result.flags) == all_of_them and len(asks) == 1, "for these nothing is asked again"


def test_a_text_without_prose_is_not_asked_for() -> None:
    result, asks = translated("```\ncode\n```\n42", upper)
    assert text_of(result) == "```\ncode\n```\n42" and not asks


def test_a_refused_request_climbs_and_at_last_is_an_error() -> None:
    steps = ladder.translation(["Some text."], Manner(SAME, estimated_tokens))
    result = driven(steps, lambda _: Answer("", error="too long: for the model"))
    assert result.texts is None and result.error == "too long: for the model" and len(result.asks) == 3


def test_texts_of_a_row_are_asked_for_together() -> None:
    row = ["One `x` two.", "42", "Three.\n\nFour."]
    result, asks = rows_translated(row, upper)
    assert result.texts == ["ONE `x` TWO.", "42", "THREE.\n\nFOUR."]
    assert [ask.texts for ask in asks] == [("One ⟦1⟧ two.", "Three.\n\nFour.")]
    assert Marked().write(asks[0].texts, ()) == "⟦#1⟧\nOne ⟦1⟧ two.\n\n⟦#2⟧\nThree.\n\nFour."
    assert len(rows_translated(row, upper, together=False)[1]) == 2
    long = ["A text that is too long to share a request with another.", "Short."]
    assert len(rows_translated(long, upper, tokens=18)[1]) == 2


def test_of_texts_asked_for_together_only_those_that_failed_climb() -> None:
    def drops(prompt: str) -> str:
        return upper(prompt).replace("⟦1⟧", "")

    result, asks = rows_translated(["Good as it is.", "Use `x` now."], drops)
    assert result.texts == ["GOOD AS IT IS.", "USE `x` NOW."]
    assert [ask.texts for ask in asks] == [("Good as it is.", "Use ⟦1⟧ now."), ("Use ⟦1⟧ now.",), ("Use",), ("now.",)]
    for rung in (Rung.AGAIN, Rung.ALONE):
        result, asks = rows_translated(["First text.", "Second text."], drops_a_heading, rungs=(rung,))
        assert asks[0].outcome == "texts: the answer has 1 of 2, or in another order"
        assert result.texts == ["FIRST TEXT.", "SECOND TEXT."] and len(asks) == 3 and result.rung is rung


def drops_a_heading(prompt: str) -> str:
    return upper(prompt).replace("⟦#2⟧", "")


def test_each_segment_may_have_the_one_before_it() -> None:
    text = "The first part of it.\n\nThe second part of it.\n\nThe third part of it."
    result, asks = translated(text, upper, tokens=7, with_context=True)
    assert text_of(result) == text.upper()
    assert [ask.before for ask in asks] == [
        None,
        ("The first part of it.", "THE FIRST PART OF IT."),
        ("The second part of it.", "THE SECOND PART OF IT."),
    ]


def test_kinds_may_be_left_out_from_the_beginning() -> None:
    text = "Use `a` and see https://example.org now.\n\nA second part."
    result, asks = translated(text, upper, apart=frozenset({Kind.INLINE_CODE}))
    assert text_of(result) == "USE `a` AND SEE https://example.org NOW.\n\nA SECOND PART."
    assert [ask.texts[0] for ask in asks] == ["A second part.", "Use", "and see", "now."]
    assert result.rung is Rung.APART


def test_terms_are_hints_and_checked() -> None:
    glossary = Glossary({"machine learning": "ikasketa automatikoa", "bias": "alborapen"})
    text = "Machine learning has no bias towards biases."
    result, asks = translated(text, upper, glossary=glossary, rungs=())
    assert asks[0].terms == dict(glossary.translations)
    assert result.numbers[0].glossary == 2 and result.flags["glossary"] == 1
    assert glossary.missing(text, "Ikasketa automatikoak ez du alborapenik.") == 0
    assert glossary.missing("Nothing of it here: biased.", "") is None


def test_values_of_json_are_translated_by_choice() -> None:
    text = 'Take this:\n\n{"title": "A \\"good\\" day", "id": "abc", "list": ["two words", 3]}'
    opened = frozenset({JSON})
    kept = '"title": "A \\"GOOD\\" DAY", "id": "abc", "list": ["TWO WORDS", 3]'
    result, _ = translated(text, upper, inside=opened)
    assert text_of(result) == f"TAKE THIS:\n\n{{{kept}}}" and not result.flags
    quoting, _ = translated('{"a": "two words"}', lambda _: 'He said "so" \\ it', inside=opened)
    assert json.loads(text_of(quoting)) == {"a": 'He said "so" \\ it'}
    assert text_of(translated(text, upper)[0]).endswith(text[10:])


def test_comments_of_code_are_translated_by_choice() -> None:
    text = '```python\n#!/bin/x\n# Add them up.\ntotal = a + b  # both of them\ns = "# not this"\n```'
    result, _ = translated(text, upper, inside=frozenset({COMMENTS}))
    changed = text.replace("Add them up.", "ADD THEM UP.").replace("both of them", "BOTH OF THEM")
    assert text_of(result) == changed and not result.flags
    many = "```c\n/*\n * First line.\n * Second line.\n */\nint x; // a number\n```"
    result, _ = translated(many, upper, inside=frozenset({COMMENTS}))
    assert text_of(result) == many.replace("First line.", "FIRST LINE.").replace(
        "Second line.", "SECOND LINE."
    ).replace("a number", "A NUMBER")


@pytest.mark.parametrize("size", [100_000, 1_000_000])
def test_one_long_line_comes_out_whole(data: Path, size: int) -> None:
    line = (data / "raw_text" / "wiki_demo.txt").read_text().replace("\n", " ")[:size]
    result, asks = translated(line, upper)
    assert text_of(result).casefold() == upper(line).casefold()
    assert max(estimated_tokens(ask.texts[0]) for ask in asks) <= 420
