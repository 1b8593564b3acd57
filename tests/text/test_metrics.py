"""What a score must be: 1 for the same text, less for a worse one, sacrebleu's own where sacrebleu has one."""

import csv
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.significance import PairedTest

from hala_hpc.text import metrics
from hala_hpc.text.metrics import KINDS, words
from tests.text.strategies import texts

LIST = "Three tips:\n\n- Eat well.\n- Sleep enough.\n- Move every day.\n"
SHORTER = LIST.replace("- Sleep enough.\n", "")
ARABIC = "ما هي عاصمة جمهورية مصر العربية؟"
OF_ONE = ("rouge_l", "tree_sim", "node_chrf")


def score(name: str, hypothesis: str, reference: str, source: str | None = None) -> float:
    metric = KINDS[name].make([reference], None if source is None else [source])
    return metrics.scored(metric, metrics.statistics(metric, [hypothesis])).score


def questions(data: Path, name: str, most: int = 400) -> list[str]:
    """Questions of one subject of MMLU in Arabic."""
    path = data / "arabic_bench" / "mmlu_arabic" / "test" / f"{name}_test.csv"
    with path.open(encoding="utf-8") as file:
        return [" ".join(row[0].split()) for row in csv.reader(file)][:most]


def test_rouge_of_identical_arabic_is_one(data: Path) -> None:
    for question in questions(data, "anatomy"):
        assert score("rouge_l", question, question) == 1


def test_rouge_knows_order_and_overlooks_marks() -> None:
    vowelled = "مَا هِيَ عَاصِمَةُ جُمْهُورِيَّةِ مِصْرَ العَرَبِيَّـــةِ؟"
    assert score("rouge_l", vowelled, ARABIC) == 1
    assert 0 < score("rouge_l", " ".join(reversed(ARABIC.split())), ARABIC) < 1
    assert score("rouge_l", "شيء آخر تماما", ARABIC) == 0
    assert score("rouge_l", "", ARABIC) == 0


def test_words_of_every_script() -> None:
    assert words("Ünïts: 12,5 kg_x") == ["ünïts", "12", "5", "kg", "x"]
    assert words("हिन्दी में") == ["हिन्दी", "में"], "vowel signs are part of a word"
    assert words("می\u200cخواهم ١٢") == ["میخواهم", "١٢"]
    assert words("ﻻ") == ["لا"], "presentation forms are the letters that they show"
    assert words("שָׁלוֹם") == ["שלום"]


def test_a_lost_item_of_a_list() -> None:
    """Eight blocks (paragraph, list, three items of two), of which two are gone."""
    assert score("tree_sim", LIST, LIST) == score("node_chrf", LIST, LIST) == 1
    assert score("tree_sim", SHORTER, LIST) == pytest.approx(1 - 2 / 8)
    assert score("node_chrf", SHORTER, LIST) == pytest.approx(3 / 4), "it is known which one is gone"
    assert score("tree_sim", "", LIST) == score("node_chrf", "", LIST) == 0


@pytest.mark.parametrize(
    ("damaged", "similarity"),
    [
        ("# Title\n\ntext\n\n```py\nx = 1\n```\n", 1.0),
        ("## Title\n\ntext\n\n```py\nx = 1\n```\n", 1 - 1 / 3),
        ("# Title\n\ntext\n\n```js\nx = 1\n```\n", 1 - 1 / 3),
        ("# Title\n\ntext\n\n    x = 1\n", 1 - 1 / 3),
        ("Title\n\ntext\n\nx = 1\n", 1 - 2 / 3),
        ("# Title\n\ntext\n\n```py\nx = 1\n```\n\n- new\n", 1 - 3 / 6),
    ],
)
def test_blocks_of_another_kind(damaged: str, similarity: float) -> None:
    whole = "# Title\n\ntext\n\n```py\nx = 1\n```\n"
    assert score("tree_sim", damaged, whole) == pytest.approx(similarity)


def test_html_and_tables_are_trees_too() -> None:
    html = "<div><p>one</p><p>two <b>three</b></p><br></div>\n"
    assert score("tree_sim", html, html) == 1
    assert score("tree_sim", html.replace("<br>", ""), html) == pytest.approx(1 - 1 / 6)
    assert score("node_chrf", html.replace("three", ""), html) == pytest.approx(2 / 3)
    table = "| a | b |\n|---|---|\n| c | d |\n"
    assert score("tree_sim", table.replace("| c | d |\n", ""), table) < 1


def test_the_structure_may_be_the_sources() -> None:
    assert score("tree_sim", LIST, SHORTER, source=LIST) == 1
    assert score("tree_sim", LIST, SHORTER) < 1
    assert "of:source" in metrics.signature(KINDS["tree_sim"].make([LIST], [LIST]))


def test_a_text_in_a_loop_costs_little() -> None:
    """Trees of so many blocks are laid upon each other as far as memory allows; the rest counts as added."""
    loop = "".join(f"- item {number}\n" for number in range(3_000))
    assert score("tree_sim", loop, LIST) == pytest.approx(1 - (6_001 - 6) / 6_001, abs=2e-4)
    deep = "<div>" * 3_000 + "x"
    assert 0 <= score("tree_sim", deep, LIST) < 0.1


@settings(max_examples=150, deadline=None)
@given(texts, texts)
def test_every_score_lies_between_nothing_and_the_same(one: str, other: str) -> None:
    for name in OF_ONE:
        assert 0 <= score(name, one, other) <= 1
    assert score("tree_sim", one, one) == 1
    assert score("tree_sim", one, other) == pytest.approx(score("tree_sim", other, one)), "a distance has no direction"
    assert score("node_chrf", one, one) == pytest.approx(1)
    if words(one):
        assert score("rouge_l", one, one) == 1


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_characters_are_a_tree(text: str) -> None:
    assert score("tree_sim", f"<p>{text}", f"<p>{text}") == 1


def test_intervals_and_tests_are_those_of_sacrebleu(data: Path) -> None:
    """Of a metric of ours as well: the same choices of rows, the same arithmetic."""
    references = questions(data, "anatomy")
    systems = {
        "one": [text.replace("ال", "") for text in references],
        "two": [" ".join(text.split()[1:]) for text in references],
    }
    for name in KINDS:
        metric = KINDS[name].make(references, None)
        signatures, expected = PairedTest([*systems.items()], {name: metric}, None, "bs", 1000)()
        (label, *_) = signatures
        scored = {
            system: metrics.scored(metric, metrics.statistics(metric, texts), 1000) for system, texts in systems.items()
        }
        for at, one in enumerate(scored.values()):
            wanted = expected[label][at]
            assert not isinstance(wanted, str)
            assert one.score == pytest.approx(wanted.score, rel=1e-12)
            assert one.interval(is_paired=True) == (wanted.mean, wanted.ci)
        wanted_p = expected[label][1].p_value if scored["two"].score != scored["one"].score else 1
        assert scored["two"].p_value(scored["one"]) == wanted_p
        assert metrics.signature(metric, 1000) == str(signatures[label])
    assert scored["one"].p_value(scored["one"]) == 1


def test_scores_of_single_rows(data: Path) -> None:
    references = questions(data, "anatomy", 20)
    hypotheses = [*references[:10], *("" for _ in references[10:])]
    for name, kind in KINDS.items():
        metric = kind.make(references, None)
        rows = metrics.row_scores(metric, metrics.statistics(metric, hypotheses))
        most = 100 if name in ("bleu", "chrf") else 1
        assert rows[:10] == pytest.approx([most] * 10) and rows[10:] == [0] * 10
    alone = BLEU(effective_order=True).sentence_score("ما هي عاصمة مصر", [ARABIC]).score
    metric = KINDS["bleu"].make([ARABIC], None)
    assert metrics.row_scores(metric, metrics.statistics(metric, ["ما هي عاصمة مصر"])) == [pytest.approx(alone)]
