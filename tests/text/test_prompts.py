"""Prompts: the text goes in as it is, whatever it holds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hala_hpc.text.prompts import problem_of, render

texts = st.text() | st.sampled_from(["{text}", "{target}", "{}", "{source}{text}", "a\\{b}", "%s", "${x}"])


@given(text=texts)
def test_the_text_goes_in_untouched(text: str) -> None:
    filled, (start, end) = render("To {target}: [{text}] of {source}", {"text": text}, source="A", target="B")
    assert filled == f"To B: [{text}] of A" and filled[start:end] == text


def test_other_braces_mean_nothing() -> None:
    assert render('{"a": {b}} {text} {c}', {"text": "x"}, source="A")[0] == '{"a": {b}} x {c}'


@pytest.mark.parametrize(("template", "count"), [("", 0), ("{ text }", 0), ("{text} {text}", 2)])
def test_a_template_needs_its_place_once(template: str, count: int) -> None:
    assert problem_of(template) == f"holds {{text}} {count} times, it must hold it once"
    assert problem_of("a {text} b") is None
