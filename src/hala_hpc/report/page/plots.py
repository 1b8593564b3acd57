"""Plots as Vega-Lite specifications, drawn by the page itself and as PNG from the same few lines."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from hala_hpc.config.errors import HalaError

Rows = Sequence[dict[str, Any]]

ENDING_COLOURS: Final = {
    "done": "#009e73",
    "given back": "#56b4e9",
    "lost to another": "#cc79a7",
    "not ended": "#e69f00",
    "failed": "#d55e00",
}
STEP: Final = 16
"""Pixels of a line of points or bars. Heights are given as numbers: Vega-Lite complains of its own steps in a page."""
WIDE_STEP: Final = 24
TILTED: Final = {"orient": "top", "labelAngle": -50}
MOST_TICKS: Final = 10
MOST_COLOURS: Final = 8
"""Of the page's own palette; more curves than that have one of twenty."""
ROOM: Final = 1.15
"""So much longer than the longest bar is its axis: for the number behind it."""


@dataclass(frozen=True)
class Plot:
    """``name`` is safe as a file's; ``title`` stands over it; ``says`` is for people who cannot see it."""

    name: str
    title: str
    says: str
    spec: dict[str, Any]


def bars(rows: Rows, group: str, value: str, colours: tuple[str, Sequence[str]], label: str) -> dict[str, Any]:
    """Points with standard errors (``low``, ``high``): one line for each colour in each ``group``.

    ``colours``: the key that they go by, and all its values, also those that are not drawn: so two plots agree.
    """
    colour, domain = colours
    shared = {
        "y": {"field": group, "type": "nominal", "sort": None, "title": None},
        "yOffset": {"field": colour, "type": "nominal", "sort": None},
        "color": {"field": colour, "type": "nominal", "title": None, "scale": {"domain": list(domain)}},
        "tooltip": _tips(rows),
    }
    number = {"type": "quantitative", "title": label, "scale": {"zero": False}}
    return {
        "data": {"values": list(rows)},
        "height": STEP * len(domain) * len({row[group] for row in rows}),
        "encoding": shared,
        "layer": [
            {"mark": "rule", "encoding": {"x": {"field": "low", **number}, "x2": {"field": "high"}}},
            {
                "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
                "encoding": {"x": {"field": value, **number}},
            },
        ],
    }


def forest(rows: Rows, group: str, value: str, colours: tuple[str, Sequence[str]], label: str) -> dict[str, Any]:
    """``bars`` around a line at nothing."""
    drawn = bars(rows, group, value, colours, label)
    zero = {"mark": {"type": "rule", "strokeDash": [4, 4]}, "data": {"values": [{}]}, "encoding": {"x": {"datum": 0}}}
    layers = [{**layer, "encoding": {**drawn["encoding"], **layer["encoding"]}} for layer in drawn["layer"]]
    return {"data": drawn["data"], "height": drawn["height"], "layer": [zero, *layers]}


def grid(rows: Rows, across: tuple[str, Sequence[str]], down: tuple[str, Sequence[str]], value: str) -> dict[str, Any]:
    """A coloured cell for each pair with its number, for more things than there are colours.

    ``place``, from 0 to 1, is how dark a cell is; ``across`` and ``down`` are keys with their values in order.
    """
    shared = {
        "x": {"field": across[0], "type": "nominal", "sort": list(across[1]), "title": None, "axis": TILTED},
        "y": {"field": down[0], "type": "nominal", "sort": list(down[1]), "title": None},
        "tooltip": _tips(rows),
    }
    shade = {"field": "place", "type": "quantitative", "legend": None, "scale": {"scheme": "blues", "domain": [0, 1]}}
    ink = {"condition": {"test": "datum.place > 0.6", "value": "white"}, "value": "black"}
    number = {"field": value, "type": "quantitative", "format": ".0f"}
    return {
        "data": {"values": list(rows)},
        "height": WIDE_STEP * len(down[1]),
        "encoding": shared,
        "layer": [
            {"mark": {"type": "rect"}, "encoding": {"color": shade}},
            {"mark": {"type": "text", "fontSize": 11}, "encoding": {"text": number, "color": ink}},
        ],
    }


def lines(rows: Rows, x: str, y: str, colour: str, titles: tuple[str, str], points: bool = False) -> dict[str, Any]:
    """Curves by ``colour``; rows with ``low`` and ``high`` have a band of standard errors. y is cut at the data."""
    coloured: dict[str, Any] = {"field": colour, "type": "nominal", "sort": None, "title": None}
    if len({row[colour] for row in rows}) > MOST_COLOURS:
        coloured["scale"] = {"scheme": "tableau20"}
    across = {"field": x, "type": "quantitative", "title": titles[0], "scale": {"nice": False}}
    up = {"field": y, "type": "quantitative", "title": titles[1], "scale": {"zero": False}}
    band = {
        "mark": {"type": "area", "opacity": 0.15},
        "encoding": {"x": across, "y": {**up, "field": "low"}, "y2": {"field": "high"}, "color": coloured},
    }
    curve = {
        "mark": {"type": "line", "point": points, "strokeWidth": 1.8},
        "encoding": {"x": across, "y": up, "color": coloured, "tooltip": _tips(rows)},
    }
    layers = [band, curve] if any("low" in row for row in rows) else [curve]
    return {"data": {"values": list(rows)}, "height": 260, "layer": layers}


def area(rows: Rows, x: str, y: str, titles: tuple[str, str]) -> dict[str, Any]:
    """One quantity over time, from 0."""
    return {
        "data": {"values": list(rows)},
        "height": 160,
        "mark": {"type": "area", "opacity": 0.5, "line": True, "interpolate": "step-after"},
        "encoding": {
            "x": {"field": x, "type": "quantitative", "title": titles[0], "scale": {"nice": False}},
            "y": {"field": y, "type": "quantitative", "title": titles[1]},
            "tooltip": _tips(rows),
        },
    }


def spans(rows: Rows, title: str, length: float) -> dict[str, Any]:
    """Bars from ``start`` to ``end``, of ``length`` in all, a line for each ``worker``, coloured by ``ending``."""
    endings = [ending for ending in ENDING_COLOURS if any(row["ending"] == ending for row in rows)]
    domain = {"domain": endings, "range": [ENDING_COLOURS[ending] for ending in endings]}
    return {
        "data": {"values": list(rows)},
        "height": STEP * len({row["worker"] for row in rows}),
        "mark": {"type": "bar", "opacity": 0.85, "height": {"band": 0.8}, "stroke": None},
        "encoding": {
            "x": {"field": "start", "type": "quantitative", "title": title, "scale": {"domain": [0, length]}},
            "x2": {"field": "end"},
            "y": {"field": "worker", "type": "nominal", "sort": None, "title": None},
            "color": {"field": "ending", "type": "nominal", "title": None, "scale": domain},
            "tooltip": _tips(rows),
        },
    }


def counts(rows: Rows, name: str, count: str) -> dict[str, Any]:
    """How often each thing was."""
    most = max(row[count] for row in rows)
    return {
        "data": {"values": list(rows)},
        "height": WIDE_STEP * len(rows),
        "encoding": {
            "x": {"field": count, "type": "quantitative", "axis": None, "scale": {"domainMax": most * ROOM}},
            "y": {"field": name, "type": "nominal", "sort": None, "title": None},
            "tooltip": _tips(rows),
        },
        "layer": [
            {"mark": {"type": "bar", "color": ENDING_COLOURS["failed"]}},
            {"mark": {"type": "text", "align": "left", "dx": 4}, "encoding": {"text": {"field": count}}},
        ],
    }


def dots(rows: Rows, x: str, y: str, colour: str, titles: tuple[str, str]) -> dict[str, Any]:
    """One dot a row, by ``colour``; x counts something."""
    return {
        "data": {"values": list(rows)},
        "height": 260,
        "mark": {"type": "point", "filled": True, "size": 30, "opacity": 0.75},
        "encoding": {
            "x": {
                "field": x,
                "type": "quantitative",
                "title": titles[0],
                "axis": {"values": _whole(rows, x), "format": "d"},
            },
            "y": {"field": y, "type": "quantitative", "title": titles[1], "scale": {"zero": False}},
            "color": {"field": colour, "type": "nominal", "title": None},
            "tooltip": _tips(rows),
        },
    }


def _whole(rows: Rows, x: str) -> list[int]:
    """At most MOST_TICKS whole numbers, evenly spread over those that there are."""
    most = max(row[x] for row in rows)
    return list(range(0, most + 1, most // MOST_TICKS + 1))


def _tips(rows: Rows) -> list[dict[str, Any]]:
    """What is shown on hovering: every key of a row but the bounds."""
    keys = dict.fromkeys(key for row in rows[:1] for key in row if key not in ("low", "high"))
    numeric = {key for key in keys if isinstance(rows[0][key], float)}
    return [
        {"field": key, "type": "quantitative", "format": ",.4~g"} if key in numeric else {"field": key} for key in keys
    ]


PALETTE: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#7f7f7f")
"""Okabe and Ito (2008): told apart also by people who do not see some colours; without their yellow and black, which
one of the backgrounds would swallow."""
DARK_PALETTE: Final = (
    "#56b4e9",
    "#ff8f45",
    "#2fc79f",
    "#e8a3c9",
    "#f2c14e",
    "#a9d6f5",
    "#c9a66b",
    "#b5b5b5",
)
"""The same hues, lighter."""
PNG_WIDTH: Final = 640
PNG_SCALE: Final = 2
LABELS: Final = 170
"""Most pixels of a label beside an axis: a phone has 390 in all."""


def colours(light: bool) -> dict[str, Any]:
    """Vega's configuration of the light or the dark page."""
    palette = PALETTE if light else DARK_PALETTE
    text, faint = ("#1f2328", "#d8dee4") if light else ("#e6edf3", "#3d444d")
    axis = {"labelColor": text, "titleColor": text, "gridColor": faint, "domainColor": faint, "tickColor": faint}
    sized = {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"}
    return {
        "background": "#ffffff" if light else "#0d1117",
        "font": "system-ui, 'Noto Sans', 'Noto Sans Arabic', 'DejaVu Sans', sans-serif",
        "view": {"stroke": None},
        "axis": {**axis, **sized, "labelLimit": LABELS},
        "legend": {
            "labelColor": text,
            "titleColor": text,
            "orient": "top",
            "columns": 2,
            "labelLimit": 300,
            "symbolOpacity": 1,
            **sized,
        },
        "title": {"anchor": "start", "color": text, "fontSize": 14, "offset": 12},
        "header": {"labelColor": text, "titleColor": text},
        "range": {"category": list(palette)},
        "mark": {"color": palette[0]},
        "rule": {"color": text},
        "text": {"color": text},
    }


def png(plot: Plot) -> bytes:
    """The plot on white, 1,280 pixels wide and a little more. Raises HalaError where the library is not there."""
    spec = {**plot.spec, "width": PNG_WIDTH, "title": plot.title, "padding": 12}
    data: bytes = converter().vegalite_to_png(spec, scale=PNG_SCALE, config=colours(light=True))
    return data


def converter() -> Any:
    """vl-convert: Vega and Vega-Lite with all they need, no browser and no network. Raises HalaError."""
    try:
        import vl_convert
    except ImportError as error:
        raise HalaError("plots need the package vl-convert-python", "pip install 'hala-hpc[report]'") from error
    return vl_convert
