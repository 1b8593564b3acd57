"""What is seen of a translation without a model: human translations pass, damaged ones do not."""

from pathlib import Path

import pytest

from hala_hpc.text.checks import BOUNDS, Pair, changed_numbers, checks, flags, repeats, worst
from hala_hpc.text.languages import is_in, language

ARABIC = Pair(language("English"), language("Arabic"))
BASQUE = Pair(language("English"), language("Basque"))
MOST_FALSE = 0.02
"""Share of human translations that a check may flag."""


def lines(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines()


def human(data: Path, name: str) -> tuple[Pair, list[tuple[str, str]]]:
    flores, tatoeba = data / "parallel" / "flores200", data / "parallel" / "tatoeba"
    english = lines(flores / "eng_Latn.devtest")
    if name == "flores-eu":
        return BASQUE, list(zip(english, lines(flores / "eus_Latn.devtest"), strict=True))
    if name == "flores-ar":
        return ARABIC, list(zip(english, lines(flores / "arb_Arab.devtest"), strict=True))
    (stem,) = tatoeba.glob("*.ara")
    labels = lines(stem.with_name(f"{stem.name}.labels"))
    pairs = zip(lines(stem.with_suffix(".eng")), lines(stem), labels, strict=True)
    return ARABIC, [(source, target) for source, target, label in pairs if label == "ara"]


@pytest.mark.parametrize("name", ["flores-ar", "flores-eu", "tatoeba"])
def test_human_translations_pass(data: Path, name: str) -> None:
    pair, pairs = human(data, name)
    flagged = [flags(checks(source, target, pair)) for source, target in pairs]
    for check in BOUNDS:
        assert sum(check in own for own in flagged) <= MOST_FALSE * len(pairs), check
    assert sum(map(bool, flagged)) <= 0.05 * len(pairs)


@pytest.mark.parametrize(
    ("source", "target", "check"),
    [
        ("The meeting is at 15:30 in room 204.", "الاجتماع في الساعة 15:30 في الغرفة 240.", "numbers"),
        ("The library opens early every morning.", "The library opens early every morning.", "language"),
        ("The library opens early every morning.", "این کتابخانه هر روز صبح زود باز می‌شود و شلوغ است.", "language"),
        ("The library opens early every morning.", "نعم.", "length"),
        ("Where does the train leave?", "من أين يغادر القطار.", "ending"),
        ("Eat well and sleep enough every day.", "كل جيدا ونم جيدا ونم جيدا ونم جيدا ونم جيدا", "loops"),
        ("The library opens early every morning.", "المكتبة The library opens every morning مبكرا", "copied"),
    ],
)
def test_what_is_wrong_is_flagged(source: str, target: str, check: str) -> None:
    assert check in flags(checks(source, target, ARABIC))


@pytest.mark.parametrize(
    ("source", "target", "changed"),
    [
        ("10,000 goats", "10 آلاف ماعز", 0),
        ("at 8:30 p.m.", "في 20:30", 0),
        ("in the 1960s", "في الستينيات", 0),
        ("nineteen of them", "١٩ منهم", 0),
        ("3.5 of 12", "٣٫٥ من ١٢", 0),
        ("3.5 of 12", "٣٫٦ من ١٢", 1),
        ("12 and 15", "21 و51", 2),
    ],
)
def test_numbers(source: str, target: str, changed: int) -> None:
    assert changed_numbers(source, target) == changed


@pytest.mark.parametrize(
    ("text", "times"), [("abc abc", 1), ("no no no no no", 2), ("......", 1), ("=" * 60, 60), ("", 1)]
)
def test_repeats(text: str, times: int) -> None:
    assert repeats(text) == times


def test_the_worst_of_several_texts() -> None:
    good = checks("Is it five o'clock already, my dear friend?", "هل الساعة الخامسة الآن يا صديقي العزيز؟", ARABIC)
    bad = good._replace(numbers=2, script=0.9, length=-3.0, ending=0.0, copied=None, chatter=1)
    assert not flags(good)
    together = worst([good, bad])
    assert together == dict(bad.named()) | {"copied": good.copied}
    assert set(together) == set(BOUNDS) and set(worst([]).values()) == {None}


@pytest.mark.parametrize(
    ("answer", "flag"),
    [
        ("Sure! Here is the translation", "chatter"),
        ("Here's the Arabic translation of it", "chatter"),
        ("يا صديقي<|im_end|>", "leftovers"),
        ("<think>Hm</think> يا صديقي", "leftovers"),
        ("### Response:\nيا صديقي", "leftovers"),
        ("يا صديقي ⟦3⟧", "leftovers"),
        ("نعم " + "لا أعرف، " * 60 + "ولكن", "zlib"),
    ],
)
def test_what_models_add(answer: str, flag: str) -> None:
    assert flag in flags(checks("My friend", answer, ARABIC))
    assert flag not in flags(checks(answer, answer, Pair(language("ar"), language("ar"))))


@pytest.mark.parametrize(
    ("words", "code", "script"),
    [("Arabic", "ar", "ARABIC"), ("euskara", "eu", "LATIN"), ("pt-BR", "pt", "LATIN"), ("Japanese", "ja", "CJK")],
)
def test_languages_by_name_or_code(words: str, code: str, script: str) -> None:
    assert (language(words).code, language(words).script) == (code, script)


@pytest.mark.parametrize("words", ["", "Nowhereish", "x-?"])
def test_a_word_that_is_no_language(words: str) -> None:
    with pytest.raises(LookupError):
        language(words)


def test_a_language_that_the_identifier_does_not_know() -> None:
    assert is_in("ئەم کتێبە زۆر باشە و هەموو ڕۆژێک دەیخوێنمەوە", "ckb") is None


@pytest.mark.parametrize(
    ("text", "code", "is_so"),
    [
        ("Liburutegia goizero goiz irekitzen da eta jendez betetzen da.", "eu", True),
        ("La biblioteca abre temprano todas las mañanas y se llena de gente.", "eu", False),
        ("Knjižnica se otvara rano svakog jutra i puna je ljudi.", "bs", True),  # Croatian is too near to be told apart
        ("Biblioteket åpner tidlig hver morgen, og det er alltid fullt.", "nb", True),
        ("Ok.", "ar", True),  # too short to be sure
        ("The library\0 opens early \ud800 every morning.", "ar", False),  # characters that are none
    ],
)
def test_whether_a_text_is_in_a_language(text: str, code: str, is_so: bool) -> None:
    assert is_in(text, code) is is_so
