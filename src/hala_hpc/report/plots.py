"""Plots as Vega-Lite specifications, drawn by the page itself and as PNG from the same few lines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from hala_hpc.config.errors import HalaError

Json = Mapping[str, object]
"""A part of a specification, as Vega-Lite has it."""
Row = Mapping[str, str | int | float]
Rows = Sequence[Row]

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
MOST_TICKS: Final = 10
MOST_COLOURS: Final = 8
"""The page's own palette has this many colours; more curves than that get one of twenty."""


@dataclass(frozen=True)
class Drawing:
    """Rows, and how they are shown: ``height`` is in pixels, ``shared`` the encoding of all layers."""

    rows: Rows
    height: int
    layers: Sequence[Json]
    shared: Json = field(default_factory=dict)

    def spec(self) -> Json:
        """The Vega-Lite specification, but for its width and colours."""
        return {"data": {"values": self.rows}, "height": self.height, "encoding": self.shared, "layer": self.layers}


@dataclass(frozen=True)
class Plot:
    """``name`` is safe as a file's; ``title`` stands over it; ``says`` is for people who cannot see it."""

    name: str
    title: str
    says: str
    drawing: Drawing


def _layer(mark: str | Json, **channels: object) -> Json:
    """One kind of mark, and which keys of the rows its channels (x, y, color, …) show."""
    return {"mark": mark, "encoding": channels}


def _number(key: str, title: str | None = None, **more: object) -> Json:
    return {"field": key, "type": "quantitative", "title": title, **more}


def _label(key: str, **more: object) -> Json:
    """Labels in the order of the rows."""
    return {"field": key, "type": "nominal", "sort": None, "title": None, **more}


def bars(
    rows: Rows, group: str, value: str, colours: tuple[str, Sequence[str]], title: str, with_zero: bool = False
) -> Drawing:
    """Points with standard errors (``low``, ``high``): one line for each colour in each ``group``.

    ``colours``: the key that they go by, and all its values, also those that are not drawn, so that two plots agree.
    ``with_zero`` draws a line at 0.
    """
    colour, domain = colours
    shared = {
        "y": _label(group),
        "yOffset": _label(colour),
        "color": _label(colour, scale={"domain": domain}),
        "tooltip": _tips(rows),
    }
    cut, point = {"zero": False}, {"type": "point", "filled": True, "size": 60, "opacity": 1}
    inner, outer = (shared, {}) if with_zero else ({}, shared)  # the line at 0 has no place in a group
    layers = [
        _layer("rule", **inner, x=_number("low", title, scale=cut), x2={"field": "high"}),
        _layer(point, **inner, x=_number(value, title, scale=cut)),
    ]
    if with_zero:
        layers.insert(0, {**_layer({"type": "rule", "strokeDash": [4, 4]}, x={"datum": 0}), "data": {"values": [{}]}})
    return Drawing(rows, STEP * len(domain) * len({row[group] for row in rows}), layers, outer)


def grid(rows: Rows, across: tuple[str, Sequence[str]], down: tuple[str, Sequence[str]], value: str) -> Drawing:
    """A coloured cell for each pair with its number, for more things than there are colours.

    ``place``, from 0 to 1, is how dark a cell is; ``across`` and ``down`` are keys with their values in order.
    """
    shared = {
        "x": _label(across[0], sort=across[1], axis={"orient": "top", "labelAngle": -50}),
        "y": _label(down[0], sort=down[1]),
        "tooltip": _tips(rows),
    }
    shade = _number("place", legend=None, scale={"scheme": "blues", "domain": [0, 1]})
    ink = {"condition": {"test": "datum.place > 0.6", "value": "white"}, "value": "black"}
    layers = [
        _layer("rect", color=shade),
        _layer({"type": "text", "fontSize": 11}, text=_number(value, format=".0f"), color=ink),
    ]
    return Drawing(rows, WIDE_STEP * len(down[1]), layers, shared)


def lines(rows: Rows, x: str, y: str, colour: str, titles: tuple[str, str], points: bool = False) -> Drawing:
    """Curves by ``colour``; rows with ``low`` and ``high`` have a band of standard errors. y is cut at the data."""
    is_many = len({row[colour] for row in rows}) > MOST_COLOURS
    shared = {
        "x": _number(x, titles[0], scale={"nice": False}),
        "color": _label(colour, **({"scale": {"scheme": "tableau20"}} if is_many else {})),
    }
    low, value = (_number(key, titles[1], scale={"zero": False}) for key in ("low", y))
    layers = [_layer({"type": "line", "point": points, "strokeWidth": 1.8}, y=value, tooltip=_tips(rows))]
    if any("low" in row for row in rows):
        layers.insert(0, _layer({"type": "area", "opacity": 0.15}, y=low, y2={"field": "high"}))
    return Drawing(rows, 260, layers, shared)


def area(rows: Rows, x: str, y: str, titles: tuple[str, str]) -> Drawing:
    """One quantity over time, from 0."""
    mark = {"type": "area", "opacity": 0.5, "line": True, "interpolate": "step-after"}
    across, up = _number(x, titles[0], scale={"nice": False}), _number(y, titles[1])
    return Drawing(rows, 160, [_layer(mark, x=across, y=up, tooltip=_tips(rows))])


def spans(rows: Rows, title: str, length: float) -> Drawing:
    """Bars from ``start`` to ``end``, of ``length`` in all, a line for each ``worker``, coloured by ``ending``."""
    colours = {name: colour for name, colour in ENDING_COLOURS.items() if any(row["ending"] == name for row in rows)}
    layer = _layer(
        {"type": "bar", "opacity": 0.85, "height": {"band": 0.8}, "stroke": None},
        x=_number("start", title, scale={"domain": [0, length]}),
        x2={"field": "end"},
        y=_label("worker"),
        color=_label("ending", scale={"domain": list(colours), "range": list(colours.values())}),
        tooltip=_tips(rows),
    )
    return Drawing(rows, STEP * len({row["worker"] for row in rows}), [layer])


def counts(rows: Rows, name: str, count: str) -> Drawing:
    """How often each thing was."""
    longest = 1.15 * max(float(row[count]) for row in rows)  # with room for the number behind the bar
    across = _number(count, axis=None, scale={"domainMax": longest})
    shared = {"x": across, "y": _label(name), "tooltip": _tips(rows)}
    bar, text = {"type": "bar", "color": ENDING_COLOURS["failed"]}, {"type": "text", "align": "left", "dx": 4}
    return Drawing(rows, WIDE_STEP * len(rows), [_layer(bar), _layer(text, text={"field": count})], shared)


def dots(rows: Rows, x: str, y: str, colour: str, titles: tuple[str, str]) -> Drawing:
    """One dot a row, by ``colour``; x counts something, with at most MOST_TICKS whole numbers at its axis."""
    most = max(int(row[x]) for row in rows)
    ticks = list(range(0, most + 1, most // MOST_TICKS + 1))
    layer = _layer(
        {"type": "point", "filled": True, "size": 30, "opacity": 0.75},
        x=_number(x, titles[0], axis={"values": ticks, "format": "d"}),
        y=_number(y, titles[1], scale={"zero": False}),
        color=_label(colour, sort="ascending"),
        tooltip=_tips(rows),
    )
    return Drawing(rows, 260, [layer])


def _tips(rows: Rows) -> Sequence[Json]:
    """What is shown on hovering: every key of a row but the bounds."""
    shown = {key: value for row in rows[:1] for key, value in row.items() if key not in ("low", "high")}
    number = {"type": "quantitative", "format": ",.4~g"}
    return [{"field": key} | (number if isinstance(value, float) else {}) for key, value in shown.items()]


PALETTE: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#7f7f7f")
"""Okabe and Ito (2008): told apart also by people who do not see some colours; without their yellow and black, which
one of the backgrounds would swallow."""
DARK_PALETTE: Final = ("#56b4e9", "#ff8f45", "#2fc79f", "#e8a3c9", "#f2c14e", "#a9d6f5", "#c9a66b", "#b5b5b5")
"""The same hues, lighter."""
LABELS: Final = 170
"""Most pixels of a label beside an axis: a phone has 390 in all."""


def colours(light: bool) -> Json:
    """Vega's configuration of the light or the dark page."""
    palette = PALETTE if light else DARK_PALETTE
    text, faint = ("#1f2328", "#d8dee4") if light else ("#e6edf3", "#3d444d")
    ink = {"labelColor": text, "titleColor": text}
    sized = {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"}
    rules = {"gridColor": faint, "domainColor": faint, "tickColor": faint}
    return {
        "background": "#ffffff" if light else "#0d1117",
        "font": "system-ui, 'Noto Sans', 'Noto Sans Arabic', 'DejaVu Sans', sans-serif",
        "view": {"stroke": None},
        "axis": {**ink, **rules, **sized, "labelLimit": LABELS},
        "legend": {**ink, "orient": "top", "columns": 2, "labelLimit": 300, "symbolOpacity": 1, **sized},
        "title": {"anchor": "start", "color": text, "fontSize": 14, "offset": 12},
        "header": ink,
        "range": {"category": palette},
        "mark": {"color": palette[0]},
        "rule": {"color": text},
        "text": {"color": text},
    }


def png(plot: Plot) -> bytes:
    """The plot on white, 1,280 pixels wide and a little more. Raises HalaError where the library is not there."""
    spec = {**plot.drawing.spec(), "width": 640, "title": plot.title, "padding": 12}
    data: bytes = converter().vegalite_to_png(spec, scale=2, config=colours(light=True))
    return data


def converter() -> Any:
    """vl-convert: Vega and Vega-Lite with all they need, no browser and no network. Raises HalaError."""
    try:
        import vl_convert
    except ImportError as error:
        raise HalaError("plots need the package vl-convert-python", "pip install 'hala-hpc[report]'") from error
    return vl_convert
