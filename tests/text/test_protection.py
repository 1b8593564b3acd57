"""Cut and joined, protected and restored: any text comes back byte for byte."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hala_hpc.text import protection
from hala_hpc.text.protection import Damage
from hala_hpc.text.segments import Segment, segments
from hala_hpc.text.skeleton import skeleton
from tests.text.strategies import texts


def tokens(text: str) -> int:
    return -(-len(text.encode()) // 4)


@given(texts, st.sampled_from([1, 3, 20, 300]))
def test_what_is_restored_is_the_text(text: str, budget: int) -> None:
    source = skeleton(text)
    back = {}
    for segment in segments(source, budget, tokens):
        try:
            request = protection.masked(source, segment)
        except Damage:  # its parts alone then
            requests = [(Segment((part,)), protection.masked(source, Segment((part,)))) for part in segment.parts]
        else:
            requests = [(segment, request)]
        for asked, request in requests:
            back.update(zip(asked.parts, protection.restored(request, request.text), strict=True))
    assert protection.assembled(source, back) == text


@given(texts, st.sampled_from([1, 20, 300]))
def test_what_is_left_out_is_put_back(text: str, budget: int) -> None:
    source = skeleton(text)
    parts = [part for segment in segments(source, budget, tokens) for part in segment.parts]
    back = {
        part: protection.joined(source, part, [source.text_of(span) for span in protection.stretches(source, part)])
        for part in parts
    }
    assert protection.assembled(source, back) == text


@given(texts, st.sampled_from([5, 50]))
def test_segments_follow_each_other_and_keep_to_their_budget(text: str, budget: int) -> None:
    source = skeleton(text)
    at = 0
    for segment in segments(source, budget, tokens):
        for part in segment.parts:
            assert at <= part.start < part.end
            at = part.end
        asked = protection.unmarked(protection.masked(source, Segment(segment.parts[:1])).text, "⟦⟧")
        assert len(segment.parts) > 1 or tokens(asked) <= budget + 1 or "\N{SPACE}" not in asked
    for span in source.protected():
        assert not any(span.start < part.start < span.end for s in segments(source, budget, tokens) for part in s.parts)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("Benutze ⟦1⟧ nicht.", "markers"),
        ("Benutze ⟦1⟧ ⟦2⟧ ⟦2⟧ nicht.", "markers"),
        ("Benutze ⟦1⟧ ⟦3⟧ nicht.", "markers"),
        ("Benutze ⟦1⟧ ⟦2 nicht.", "markers"),
        ("Hier ist sie:\n\nBenutze ⟦1⟧ ⟦2⟧ nicht.", "lines"),
        ("", "empty"),
    ],
)
def test_damage_is_found(answer: str, reason: str) -> None:
    source = skeleton("Do not use `a` or `b`.")
    (segment,) = segments(source, 100, tokens)
    request = protection.masked(source, segment)
    assert request.text == "Do not use ⟦1⟧ or ⟦2⟧."
    with pytest.raises(Damage, match=reason):
        protection.restored(request, answer)


def test_markers_may_move_and_have_other_digits() -> None:
    source = skeleton("Do not use `a` or `b`.")
    (segment,) = segments(source, 100, tokens)
    request = protection.masked(source, segment)
    assert protection.restored(request, "لا تستخدم ⟦ ٢ ⟧ أو ⟦١⟧.") == ["لا تستخدم `b` أو `a`."]


def test_a_list_is_asked_for_in_one_piece_and_keeps_its_own_marks() -> None:
    source = skeleton("Three tips:\n\n1. Eat well.\n2.  Sleep.\n\n```\ncode\n```\n\n* Run.")
    (segment,) = segments(source, 100, tokens)
    request = protection.masked(source, segment)
    assert request.text == "Three tips:\n\n1. Eat well.\n2.  Sleep.\n\n⟦1⟧\n\n* Run."
    answer = "ثلاث نصائح:\n\n١. كل جيدا.\n٢. نم.\n\n⟦١⟧\n\n- اركض."
    back = dict(zip(segment.parts, protection.restored(request, answer), strict=True))
    assert protection.assembled(source, back) == "ثلاث نصائح:\n\n1. كل جيدا.\n2.  نم.\n\n```\ncode\n```\n\n* اركض."
    with pytest.raises(Damage, match="parts"):
        protection.restored(request, "ثلاث نصائح: كل جيدا، نم، اركض ⟦1⟧.")


def test_a_text_that_has_all_brackets_is_asked_for_apart() -> None:
    source = skeleton("Use `x` as " + "".join(protection.BRACKETS))
    (segment,) = segments(source, 100, tokens)
    with pytest.raises(Damage, match="brackets"):
        protection.masked(source, segment)


@pytest.mark.parametrize(
    ("answer", "asked", "text"),
    [
        ("Sure! Here it is:\n\nمرحبا.", "Hello.", "مرحبا."),
        ("ثلاث نصائح:\n1. كل.", "Three tips:\n1. Eat.", "ثلاث نصائح:\n1. كل."),
        ("```\nمرحبا.\n```", "Hello.", "مرحبا."),
        ("«مرحبا.»", "Hello.", "مرحبا."),
        ('"Hi," he said, "bye."', "«Kaixo»", '"Hi," he said, "bye."'),
        ('"مرحبا."', '"Hello."', '"مرحبا."'),
        ("مرحبا.", "Hello.", "مرحبا."),
        ("نصائح:\nكل.", "Tips.\nEat.", "نصائح:\nكل."),
    ],
)
def test_chatter_is_taken_off(answer: str, asked: str, text: str) -> None:
    assert protection.without_chatter(answer, asked) == text
