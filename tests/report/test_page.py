"""The page in a real headless Chromium: a real translation, and evaluations, at phone and desktop width."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Hala
from tests.report import browser, made
from tests.report.browser import Browser
from tests.report.made import Model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.PROGRAM is None, reason="no chromium (apt-get install chromium)"),
]
ARABIC = "هلا للترجمة"
NASTY = "</script><img src=x onerror=alert(1)>"
SIZES = {"phone": (390, 844), "desktop": (1280, 900)}
DRAWN = "document.documentElement.dataset.drawn"
MARKS = """[...document.querySelectorAll('figure[data-plot]')].map(figure => ({
    name: figure.dataset.plot,
    marks: figure.querySelectorAll(
        ['symbol', 'line', 'area', 'rect'].map(kind => `svg .mark-${kind} path`).join()).length,
    width: figure.querySelector('svg').getBoundingClientRect().width,
    room: figure.getBoundingClientRect().width,
}))"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of a real run that two workers did, and of an evaluation of merges."""
    folder = tmp_path_factory.mktemp("page")
    hala = Hala(folder)
    rows = [{"instruction": f"ما معنى كلمة word{number}؟", "response": f"معناها {number}."} for number in range(60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    recipe = {
        "name": "translate",
        "task": {"kind": "translate", "prompt": "{text}", "segments": {"tokens": 0}},
        "engine": {"kind": "echo", "seconds": 0.02, "capacity": 8},
        "data": {"path": "rows.jsonl", "shape": "columns", "columns": ["instruction", "response"]},
        "run": {"shard_rows": 5},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    hala("plan", "recipe.yaml", "--create")
    hala("worker", "translate")
    base, tuned = Model("base", 0.45), Model(ARABIC, 0.62)
    path = made.merge_report(folder / "t0.50", "t0.50", 0.5, base.weights, tuned.weights)
    made.evaluation(
        folder / "runs" / "evaluate", [base, tuned, Model("merged-t0.50", 0.66, str(path)), Model(NASTY, 0.5)]
    )
    hala("report", "evaluate", "translate", "--to", "report", "--format", "html")
    return folder / "report" / "report.html"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser.chromium(tmp_path_factory.mktemp("chromium")) as started:
        yield started


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_the_page_is_drawn_without_an_error(
    page: Path, chromium: Browser, size: str, scheme: str, tmp_path: Path
) -> None:
    chromium.open(page, *SIZES[size], scheme, until=DRAWN)
    assert chromium.seen.errors == []
    assert chromium.seen.asked == [page.as_uri()]
    figures = chromium.evaluate(MARKS)
    assert {figure["name"] for figure in figures} >= {
        *("scores", "differences", "curve", "work-translate-rows", "work-translate-shards"),
        *("work-evaluate-shards", "work-evaluate-failures"),
    }
    for figure in figures:
        assert figure["marks"] > 0, figure
        assert 0.9 * figure["room"] < figure["width"] <= figure["room"] + 1, figure
    assert chromium.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    chromium.screenshot(tmp_path / f"{size}-{scheme}.png")


def test_a_label_is_text_whatever_is_in_it(page: Path, chromium: Browser) -> None:
    chromium.open(page, *SIZES["desktop"], until=DRAWN)
    cells = chromium.evaluate("[...document.querySelectorAll('tbody th')].map(each => each.textContent)")
    legend = chromium.evaluate("[...document.querySelectorAll('svg text')].map(each => each.textContent)")
    assert NASTY in cells
    assert NASTY in legend
    assert chromium.evaluate("document.querySelectorAll('img').length") == 0


def test_arabic_runs_from_right_to_left(page: Path, chromium: Browser) -> None:
    chromium.open(page, *SIZES["desktop"], until=DRAWN)
    directions = chromium.evaluate(
        """Object.fromEntries([...document.querySelectorAll('th, td, dd')].map(
            each => [each.textContent, getComputedStyle(each).direction]))"""
    )
    assert directions[ARABIC] == "rtl"
    assert directions["base"] == "ltr"
    assert directions["ما معنى كلمة word0؟"] == "rtl"
    # A range over the first letter lies to the right of one over the last where the line runs from right to left.
    letters = chromium.evaluate(
        """(() => {
            const all = [...document.querySelectorAll('dd')];
            const text = all.find(each => each.textContent.startsWith('ما')).firstChild;
            const at = place => { const range = document.createRange(); range.setStart(text, place);
                range.setEnd(text, place + 1); return range.getBoundingClientRect().left; };
            return [at(0), at(text.length - 1)];
        })()"""
    )
    assert letters[0] > letters[1]


def test_arabic_is_drawn_in_a_font_that_has_it(page: Path, chromium: Browser) -> None:
    """Boxes for letters that a font lacks are all of a width; and a word, its letters joined, is narrower than they."""
    chromium.open(page, *SIZES["desktop"], until=DRAWN)
    assert chromium.fonts("dd[dir=auto]")
    widths = chromium.evaluate(
        """(() => {
            const pen = document.createElement('canvas').getContext('2d');
            pen.font = '32px ' + getComputedStyle(document.body).fontFamily;
            const word = 'معنى', wide = text => pen.measureText(text).width;
            return [wide(word), [...word].map(wide)];
        })()"""
    )
    assert widths[0] < sum(widths[1])
    assert len(set(widths[1])) > 1


def test_the_page_follows_the_scheme(page: Path, chromium: Browser) -> None:
    backgrounds = []
    for scheme in ("light", "dark"):
        chromium.open(page, *SIZES["desktop"], scheme, until=DRAWN)
        drawn = "document.querySelector('svg.marks, .plot svg').style.backgroundColor"
        backgrounds.append(
            [chromium.evaluate("getComputedStyle(document.body).backgroundColor"), chromium.evaluate(drawn)]
        )
    assert backgrounds == [["rgb(255, 255, 255)"] * 2, ["rgb(13, 17, 23)"] * 2]
