"""The report as one page: styles, plots and the program that draws them are in it, so it needs no network."""

import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from hala_hpc.config.errors import plural
from hala_hpc.report import plots
from hala_hpc.report.plots import Plot
from hala_hpc.report.table import Example, Report, Section, Table, hypertext

HERE: Final = Path(__file__).parent


def render(report: Report) -> str:
    """The page. Raises HalaError where the plot library is not there."""
    parts = {
        "title": html.escape(report.title),
        "made": html.escape(report.made),
        "style": _asset("page.css"),
        "contents": " ".join(
            f'<a href="#{html.escape(section.name)}">{html.escape(section.title)}</a>' for section in report.sections
        ),
        "sections": "\n".join(map(_section, report.sections)),
        "plots": _json(report.plots),
        "script": _script() if report.plots else "",
    }
    return re.sub(r"@([a-z]+)@", lambda match: parts[match[1]], _asset("page.html"))


def _section(section: Section) -> str:
    lines = [f'<section id="{html.escape(section.name)}">', f"<h2>{html.escape(section.title)}</h2>"]
    lines += [f"<p>{html.escape(text)}</p>" for text in section.text]
    tables = [*map(_table, section.tables)]
    figures = "".join(map(_figure, section.plots))
    lines += [*tables[:1], *([f'<div class="plots">{figures}</div>'] if figures else []), *tables[1:]]
    if shown := "".join(map(_example, section.examples)):
        lines.append(f"<details open><summary>Examples ({len(section.examples)})</summary>{shown}</details>")
    return "\n".join([*lines, "</section>"])


def _figure(plot: Plot) -> str:
    name, title, says = map(html.escape, (plot.name, plot.title, plot.says))
    return (
        f'<figure data-plot="{name}"><figcaption>{title}</figcaption>'
        f'<div class="plot" role="img" aria-label="{says}"></div></figure>'
    )


def _table(table: Table) -> str:
    title = html.escape(table.title)
    drawn = f'<div class="scroll" tabindex="0" role="region" aria-label="{title}">{hypertext(table)}</div>'
    drawn += f'<p class="note">{html.escape(table.note)}</p>' if table.note else ""
    if table.folded:
        return f"<details><summary>{title} ({plural(len(table.rows), 'row')})</summary>{drawn}</details>"
    return f"<h3>{title}</h3>{drawn}"


def _example(example: Example) -> str:
    texts = "".join(
        f'<dt dir="auto">{html.escape(name)}</dt><dd dir="auto">{html.escape(text)}</dd>'
        for name, text in example.texts
    )
    return f'<article class="example"><h4>{html.escape(example.title)}</h4><dl>{texts}</dl></article>'


def _json(drawn: Sequence[Plot]) -> str:
    """Data for the program; nothing in it can end the script element that holds it."""
    data = {
        "specs": {plot.name: plot.drawing.spec() for plot in drawn},
        "light": plots.colours(light=True),
        "dark": plots.colours(light=False),
    }
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _script() -> str:
    """Vega, Vega-Lite, Vega-Embed and ours in one program."""
    bundle: str = plots.converter().javascript_bundle(_asset("page.js"))
    return re.sub("</(?=script)", r"<\\/", bundle, flags=re.IGNORECASE).replace("<!--", r"<\!--")


def _asset(name: str) -> str:
    return (HERE / name).read_text("utf-8")
