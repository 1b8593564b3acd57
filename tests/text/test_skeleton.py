"""What of a text stays as it is, and what is translated."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hala_hpc.text import skeleton as module
from hala_hpc.text.patterns import Kind
from hala_hpc.text.skeleton import Skeleton, skeleton
from tests.text.strategies import texts


def protected(text: str) -> list[tuple[str, str]]:
    source = skeleton(text)
    return [(str(span.kind), source.text_of(span)) for span in source.protected()]


def units(text: str) -> list[str]:
    source = skeleton(text)
    return [source.text_of(unit) for unit in source.units]


def assert_tiles(source: Skeleton) -> None:
    at = 0
    for piece in source.pieces:
        for span in piece.spans:
            assert span.start == at and span.end > at
            at = span.end
    assert at == len(source.text)


@given(texts)
def test_the_pieces_are_the_text(text: str) -> None:
    assert_tiles(skeleton(text))


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("Use `x = 1` here.", [("inline_code", "`x = 1`")]),
        ("Use ``a ` b`` here.", [("inline_code", "``a ` b``")]),
        ("So $x^2$ and $$y$$ and \\(z\\).", [("math", "$x^2$"), ("math", "$$y$$"), ("math", "\\(z\\)")]),
        ("It costs $5 and $10, or US$5/US$6.", []),
        ("You save $800 ($5 each).", []),
        ("See https://a.org/x_(y). Then go.", [("url", "https://a.org/x_(y)")]),
        ("Mail me@a.org.", [("email", "me@a.org")]),
        ("Open /usr/bin/python or ~/x, and/or 5 km/h.", [("path", "/usr/bin/python"), ("path", "~/x")]),
        (
            "Hi {name}, {{ user }}, %s and %(n)d, [[x]].",
            [("placeholder", p) for p in ("{name}", "{{ user }}", "%s", "%(n)d", "[[x]]")],
        ),
        ("A 50% discount, 100%", []),
        (
            "One<br>two <b class='x'>bold</b> &amp; more",
            [("tag", t) for t in ("<br>", "<b class='x'>", "</b>", "&amp;")],
        ),
        ("if x <b and c> d hold", []),
        ("They say <|im_end|> ends it, <<3*4=12>>12.", [("placeholder", "<|im_end|>"), ("placeholder", "<<3*4=12>>")]),
        ('Sort [3, 1, 2] and {"a": null} please.', [("json", "[3, 1, 2]"), ("json", '{"a": null}')]),
        ("See [the docs](page.md#x).", [("url", "(page.md#x)")]),
    ],
)
def test_what_is_protected_in_a_sentence(text: str, spans: list[tuple[str, str]]) -> None:
    assert protected(text) == spans


@pytest.mark.parametrize(
    ("text", "blocks", "prose"),
    [
        ("Do:\n```py\nx\n```\nDone.", ["```py\nx\n```"], ["Do:", "Done."]),
        ("~~~~\n```\nx\n```\n~~~~\nEnd.", ["~~~~\n```\nx\n```\n~~~~"], ["End."]),
        ("A:\n\n    x = f()\n\nB.", ["    x = f()"], ["A:", "B."]),
        ('Call:\n{\n  "a": 1,\n\n  "b": [2]\n}\nnow.', ['{\n  "a": 1,\n\n  "b": [2]\n}'], ["Call:", "now."]),
        ("Say:\ndef f(x):\n    return x\n\nGood.", ["def f(x):\n    return x"], ["Say:", "Good."]),
        ("So\n\\[\na\n\n- b\n\\]\nholds.", ["\\[\na\n\n- b\n\\]"], ["So", "holds."]),
        ("<!-- a\nb -->\nText.", ["<!-- a\nb -->"], ["Text."]),
    ],
)
def test_blocks_that_stay(text: str, blocks: list[str], prose: list[str]) -> None:
    assert [span for _, span in protected(text)] == blocks
    assert units(text) == prose


@pytest.mark.parametrize(
    ("text", "prose"),
    [
        ("1.Eat well.\n2. Sleep.\n3) Run.", ["Eat well.", "Sleep.", "Run."]),
        ("- a b\n- c\n  - d e", ["a b", "c", "d e"]),
        ("# Title #\n\nText.", ["Title", "Text."]),
        ("Title\n=====\nText.", ["Title", "Text."]),
        ("| a | b |\n|---|---|\n| 1 | two words |", ["a", "b", "two words"]),
        ("> first\n> second", ["first\n> second"]),
        ("One.\r\n\r\nTwo.", ["One.", "Two."]),
        ("A line\nand its next.", ["A line\nand its next."]),
        ("42", []),
        ("", []),
    ],
)
def test_units(text: str, prose: list[str]) -> None:
    assert units(text) == prose


def test_own_patterns_are_protected_first() -> None:
    import re

    source = skeleton("Ask TICKET-12 about `TICKET-13`.", [re.compile(r"TICKET-\d+")])
    assert [(span.kind, source.text_of(span)) for span in source.protected()] == [
        (Kind.OWN, "TICKET-12"),
        (Kind.OWN, "TICKET-13"),
    ]


def test_every_real_text_is_tiled(data: Path) -> None:
    for path in sorted((data / "instructions" / "alpaca_52k").glob("*.json"))[:2]:
        for row in json.loads(path.read_text()):
            for text in row.values():
                assert_tiles(skeleton(text))
    assert_tiles(skeleton((data / "raw_text" / "wiki_demo.txt").read_text()))


_LINES = st.one_of(
    st.sampled_from(["Words here.", "More of `it` and $x$.", "Ends here\t", "é. ü", "text $$a", "b$$ more", "", "  "]),
    st.sampled_from(["1. An item", "2) Another", "12.    Far off", "3. 4. both", "100. y", "1000. z", "1.      code?"]),
    st.sampled_from(["a. lettered", "word |", "| a | b |", "|---|---|", "---", "===", "[a]: b", "- x", "<div>"]),
    st.sampled_from(["x = f(y)", "import os", '{"a":', "1}"]),
    st.sampled_from(
        ["- An item", "* a. b", "+    far", "-     code?", "- - x", "(a) x", "(see) x", '"Said." He', "'(a) y"]
    ),
    st.sampled_from(["100 degrees", "12 - x", "7", "1.Eat", "2.5 of it", "- 3 of it", "- 4. x", "“¿Qué?”", "((x)) y"]),
)


@given(st.lists(_LINES, max_size=6).map("\n".join))
def test_plain_lines_are_seen_without_a_parser(text: str) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "_PLAIN", re.compile(r"(?!)"))
        parsed = skeleton(text)
    assert skeleton(text) == parsed


@pytest.mark.slow
def test_real_texts_are_seen_without_a_parser(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = sorted((data / "instructions" / "alpaca_52k").glob("*.json"))[:4]
    texts = [text for path in paths for row in json.loads(path.read_text()) for text in row.values()]
    seen = [skeleton(text) for text in texts]
    assert sum(module._PLAIN.match(text) is not None for text in texts) > 0.9 * len(texts)
    monkeypatch.setattr(module, "_PLAIN", re.compile(r"(?!)"))
    assert seen == [skeleton(text) for text in texts]
