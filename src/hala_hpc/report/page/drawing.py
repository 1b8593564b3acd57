"""Plots drawn: the colours of the light and the dark page, and pictures of them."""

from typing import Any, Final

from hala_hpc.config.errors import HalaError
from hala_hpc.report.page.plots import Plot

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
