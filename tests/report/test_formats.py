import csv
import io
from html.parser import HTMLParser

import pytest

from hala_hpc.report import table
from hala_hpc.report.table import Cell, Table

NASTY = "a|b & <i>50%</i> $x_1$ {~^\\}"


@pytest.fixture
def shown() -> Table:
    rows = [
        ["هلا ١٫٢", Cell(51.4444, 0.3333, best=True, mark="*"), 1_234, Cell(-0.5, signed=True)],
        [NASTY, Cell(float("nan"), float("nan")), None, Cell(2.0, signed=True)],
    ]
    return table.of("scores", "Scores", ["model", "arabic_mmlu", "questions", "to base"], rows)


def test_markdown_keeps_its_columns(shown: Table) -> None:
    lines = table.markdown(shown).splitlines()
    assert lines[1] == "| --- | ---: | ---: | ---: |"
    assert lines[2] == "| هلا ١٫٢ | **51.44** ± 0.33\\* | 1,234 | −0.50 |"
    assert lines[3] == "| a\\|b &amp; &lt;i&gt;50%&lt;/i&gt; $x_1$ {~^\\\\} | – | – | +2.00 |"


def test_latex_escapes_what_it_would_read(shown: Table) -> None:
    text = table.latex(shown)
    assert "a|b \\& <i>50\\%</i> \\$x\\_1\\$ \\{\\textasciitilde{}\\textasciicircum{}\\textbackslash{}\\}" in text
    assert "\\textbf{51.44}{\\tiny\\,$\\pm$\\,0.33}\\textsuperscript{*} & 1,234 & $-$0.50 \\\\" in text
    assert text.startswith("% needs \\usepackage{booktabs}\n\\begin{tabular}{lrrr}\n\\toprule")


def test_csv_has_full_numbers_and_errors_of_their_own(shown: Table) -> None:
    read = list(csv.DictReader(io.StringIO(table.comma_separated(shown))))
    assert read[0]["arabic_mmlu"] == "51.4444"
    assert read[0]["arabic_mmlu (standard error)"] == "0.3333"
    assert "questions (standard error)" not in read[0]
    assert (read[1]["model"], read[1]["arabic_mmlu"], read[1]["questions"]) == (NASTY, "", "")


class Cells(HTMLParser):
    """Texts of cells, and all tags that were met."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag in ("th", "td"):
            self.texts.append("")

    def handle_data(self, data: str) -> None:
        self.texts[-1] += data


def test_html_shows_texts_as_they_are(shown: Table) -> None:
    parser = Cells()
    parser.feed(table.hypertext(shown))
    assert NASTY in parser.texts
    assert "i" not in parser.tags
    assert "51.44 ± 0.33*" in parser.texts


def test_columns_of_which_nothing_is_known_are_left_out() -> None:
    made = table.of("t", "T", ["run", "mfu", "loss"], [["a", None, 1.0], ["b", float("nan"), None]])
    assert made.columns == ("run", "loss")
    assert all(len(row) == 2 for row in made.rows)
