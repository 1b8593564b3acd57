"""Rules that reject a pair: each at what it is made for, and none at human translations it knows nothing of."""

import pytest

from hala_hpc.text.checks import Pair
from hala_hpc.text.languages import language
from hala_hpc.text.rules import ANSWERS, MORE, PAIRS, broken

ARABIC, ONLY = Pair(language("en"), language("ar")), Pair(language("ar"), language("ar"))
ALL = (*PAIRS, *MORE)
GOOD = (
    "In 1984 she moved to the large city with her two brothers.",
    "في عام 1984 انتقلت إلى المدينة الكبيرة مع أخويها.",
)


@pytest.mark.parametrize(
    ("rule", "source", "target"),
    [
        ("empty", "Good morning.", ""),
        ("empty", "", "صباح الخير."),
        ("empty", "Good morning.", " … "),
        ("same", "Good morning.", "good  morning"),
        ("same", "صباح الخير", "صباح الخير"),
        ("numbers", GOOD[0], GOOD[1].replace("1984", "1985")),
        ("script", GOOD[0], "In 1984 mudatu zen hiri handira bere bi anaiekin batera."),
        ("language", GOOD[0], "در سال 1984 او با دو برادرش به شهر بزرگ نقل مکان کرد و آنجا ماند."),
        ("length", GOOD[0], "انتقلت."),
        ("loops", GOOD[0], GOOD[1] + " مع أخويها" * 6),
        ("copied", GOOD[0], "in 1984 انتقلت she moved to the large city with her two brothers."),
        ("source", "انتقلت إلى المدينة الكبيرة مع أخويها الصغيرين.", GOOD[1]),
        ("source", "Hiru urte eman zituen hiri handian bere bi anaiekin batera bizitzen.", GOOD[1]),
        ("unfinished", GOOD[0] + " They stayed there.", GOOD[1][:-1]),
        ("ending", "Where is the large city?", "أين تقع المدينة الكبيرة."),
    ],
)
def test_a_broken_rule_is_named(rule: str, source: str, target: str) -> None:
    assert rule in broken(source, target, ARABIC, ALL)
    assert broken(source, target, ARABIC, (rule,)) == [rule]
    assert rule not in broken(source, target, ARABIC, [other for other in ALL if other != rule])


def test_good_pairs_break_none() -> None:
    assert broken(*GOOD, ARABIC, ALL) == []
    assert broken("42", "42", ARABIC, ALL) == [], "a number has no translation"
    assert broken("Use `x = 1` here.", "استخدم `x = 1` هنا.", ARABIC, ALL) == []


def test_reasons_come_in_the_order_of_the_rules() -> None:
    pair = (GOOD[0], GOOD[0])
    assert broken(*pair, ARABIC, PAIRS)[0] == "same"
    assert broken(*pair, ARABIC, ("copied", "same")) == ["copied", "same"]
    assert broken(*pair, ARABIC, ()) == []


def test_an_answer_may_be_short_and_may_repeat_words() -> None:
    question = "ما هي عاصمة مصر؟ اكتب اسم المدينة فقط من فضلك."
    assert broken(question, "القاهرة", ONLY, ANSWERS) == []
    assert broken(question, question, ONLY, ANSWERS) == ["same"]
    assert broken(question, "The capital of Egypt is the city of Cairo.", ONLY, ANSWERS) == ["script", "language"]
    assert broken(question, "", ONLY, ANSWERS) == ["empty"]
