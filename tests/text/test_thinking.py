"""What a model thinks before it answers is no answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hala_hpc.text.prompts import MARKS, EndlessThought, answer_of, is_opened

plain = st.text().filter(lambda text: "think" not in text.lower())


@given(thought=plain, answer=plain, marks=st.sampled_from(MARKS))
def test_a_thought_at_the_beginning_is_taken_off_and_nothing_else(
    thought: str, answer: str, marks: tuple[str, str]
) -> None:
    opening, closing = marks
    assert answer_of(f"{opening}{thought}{closing}\n\n{answer}") == answer.lstrip()
    assert answer_of(f"{thought}{closing}{answer}", opened=True) == answer.lstrip(), "the prompt opened it"
    assert answer_of(f"{thought}{closing}{answer}") == answer.lstrip(), "the endpoint's template opened it"
    assert answer_of(answer) == answer


@given(thought=plain, marks=st.sampled_from(MARKS))
def test_a_thought_without_end_is_no_answer(thought: str, marks: tuple[str, str]) -> None:
    with pytest.raises(EndlessThought, match="never closed"):
        answer_of(f" {marks[0]}{thought}")
    with pytest.raises(EndlessThought, match="the prompt opens"):
        answer_of(thought, opened=True)


def test_a_translated_thought_is_part_of_the_translation() -> None:
    source = "<think>It is two.</think> 2"
    assert answer_of("<think>إنه اثنان.</think> 2", given=source) == "<think>إنه اثنان.</think> 2"
    assert answer_of("<think>hm</think><think>إنه</think> 2", given=source) == "<think>إنه</think> 2"
    assert answer_of("<think> هو وسم", given="What is <think>?") == "<think> هو وسم"
    assert answer_of("hm</think><think>إنه</think> 2", given=source, opened=True) == "<think>إنه</think> 2"


def test_whether_a_prompt_opens_a_thought() -> None:
    assert is_opened("<|assistant|>\n<think>\n")
    assert not is_opened("<|assistant|>\n<think>\n\n</think>\n\n")
