"""Shared parts of all figures: the figure record, its CSV, colours, axes and the SYNTHETIC mark.

A figure is described by plain dictionaries in the manner of plotly's JSON schema; ``charts`` draws them as SVG.
"""

import base64
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

#: Colour-blind safe (after Okabe and Ito, darkened for white paper).
INTERNAL = "#1c5d99"
EXTERNAL = "#b8560f"
LOW_RISK, HIGH_RISK = "#1c5d99", "#b3342b"
INK, SOFT, GRID, FAINT = "#22303c", "#5b6b7a", "#e6eaee", "#b9c4ce"
SERIES = ("#1c5d99", "#b8560f", "#1b7f6b", "#8a4f8f", "#8c6d00", "#4a6fa5", "#a33b4f", "#4c7a2d")
PAPER = "#ffffff"
FONT = '"Inter", "Source Sans 3", "Segoe UI", "Helvetica Neue", Arial, sans-serif'

#: Light colour → name of its CSS variable. A figure's colours are these, so that dark mode can replace them.
NAMES = {
    INTERNAL: "blue", EXTERNAL: "orange", HIGH_RISK: "red", SERIES[2]: "teal", SERIES[3]: "purple",
    SERIES[4]: "olive", SERIES[5]: "steel", SERIES[6]: "rose", SERIES[7]: "green",
    INK: "figure-ink", SOFT: "figure-soft", GRID: "grid", FAINT: "rule", PAPER: "paper",
}  # fmt: skip
#: Name of the variable → its colour on a dark page.
DARK = {
    "blue": "#6cb0ee", "orange": "#f09a57", "red": "#f2897e", "teal": "#56c4ab", "purple": "#cf97d4",
    "olive": "#d8b53e", "steel": "#90b3e3", "rose": "#ec8c9e", "green": "#93c66d",
    "figure-ink": "#e3eaf0", "figure-soft": "#aab7c3", "grid": "#2a343e", "rule": "#5a6875", "paper": "#12181f",
}  # fmt: skip

#: Position of the legend: above the plot, where it hides no data.
LEGEND = {
    "orientation": "h", "x": 0, "y": 1.015, "xanchor": "left", "yanchor": "bottom", "traceorder": "normal",
    "bgcolor": "rgba(0,0,0,0)", "font": {"size": 11.5},
}  # fmt: skip

#: Maximum number of points of a scatter plot, so that a page stays small; larger plots are thinned.
MAX_POINTS = 1500


@dataclass(frozen=True)
class Download:
    """A table as CSV in a data URI."""

    name: str
    table: pd.DataFrame = field(repr=False)

    @property
    def uri(self) -> str:
        """``data:text/csv;base64,…``"""
        text = self.table.to_csv(index=False, float_format="%.6g")
        return "data:text/csv;charset=utf-8;base64," + base64.b64encode(text.encode()).decode()


@dataclass(frozen=True)
class TextFile:
    """A text as a file in a data URI."""

    name: str
    text: str = field(repr=False)
    mime: str = "text/plain"

    @property
    def uri(self) -> str:
        """``data:text/plain;base64,…``"""
        return f"data:{self.mime};charset=utf-8;base64," + base64.b64encode(self.text.encode()).decode()


@dataclass(frozen=True)
class Figure:
    """A figure with the data behind it.

    ``data`` and ``layout`` are as in plotly's schema, of which ``charts`` draws the part that figures use; ``table``
    is the content of the CSV file; ``how_to_read`` is one or two sentences for a reader who has not seen such a figure
    before. A ``wide`` figure is drawn a second time for narrow screens; one that is ``scrolled`` keeps its width and
    is moved sideways there, because its columns cannot be narrower.
    """

    slug: str
    title: str
    data: Sequence[dict[str, Any]]
    layout: dict[str, Any]
    how_to_read: str
    table: pd.DataFrame = field(repr=False)
    height: int = 380
    wide: bool = False
    scrolled: bool = False

    def name(self, *, synthetic: bool) -> str:
        """Name of its files without an extension."""
        return ("SYNTHETIC-" if synthetic else "") + self.slug

    def download(self, *, synthetic: bool) -> Download:
        """The data behind the figure."""
        return Download(f"{self.name(synthetic=synthetic)}.csv", self.table)


def colour_variables() -> str:
    """The colours of figures as CSS variables; on screens that ask for it those of a dark page."""
    light = "".join(f"--{name}:{colour};" for colour, name in NAMES.items())
    dark = "".join(f"--{name}:{colour};" for name, colour in DARK.items())
    return f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"


def layout(x: str, y: str, **extra: Any) -> dict[str, Any]:
    """The common layout with axis titles; keyword arguments are merged into it one level deep."""
    base: dict[str, Any] = {
        "font": {"family": FONT, "size": 12.5, "color": INK},
        "xaxis": axis(x),
        "yaxis": axis(y),
        "legend": LEGEND,
    }
    for key, value in extra.items():
        merge = isinstance(value, dict) and isinstance(base.get(key), dict)
        base[key] = {**base[key], **value} if merge else value
    return base


def axis(title: str, **extra: Any) -> dict[str, Any]:
    """An axis with a light grid, no zero line and ticks outside."""
    return {
        "title": {"text": title, "font": {"size": 12.5, "color": SOFT}, "standoff": 8},
        "gridcolor": GRID,
        "zeroline": False,
        "linecolor": FAINT,
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": FAINT,
        "tickfont": {"size": 11.5, "color": SOFT},
        **extra,
    }


def unit_square(x: str, y: str, **extra: Any) -> dict[str, Any]:
    """Layout of a square from 0 to 1 on both axes."""
    return layout(
        x,
        y,
        xaxis={"range": [-0.015, 1.015], "dtick": 0.2, "constrain": "domain"},
        yaxis={"range": [-0.015, 1.015], "dtick": 0.2, "scaleanchor": "x", "constrain": "domain"},
        **extra,
    )


def line(x: Any, y: Any, name: str, colour: str, width: float = 2, **extra: Any) -> dict[str, Any]:
    """A line trace; a dictionary under ``line`` adds to its style."""
    style = {"color": colour, "width": width, **extra.pop("line", {})}
    return {"type": "scatter", "mode": "lines", "x": x, "y": y, "name": name, "line": style, **extra}


def band(x: Any, low: Any, high: Any, colour: str, name: str, **extra: Any) -> list[dict[str, Any]]:
    """Two traces that shade the area between two lines."""
    hidden = {
        "line": {"width": 0, **extra.pop("line", {})},
        "hoverinfo": "skip",
        "mode": "lines",
        "type": "scatter",
    }
    return [
        {**hidden, "x": x, "y": low, "showlegend": False, **extra},
        {
            **hidden,
            "x": x,
            "y": high,
            "fill": "tonexty",
            "fillcolor": fade(colour, 0.15),
            "name": name,
            **extra,
        },
    ]


def fade(colour: str, alpha: float) -> str:
    """``#rrggbb`` with transparency."""
    r, g, b = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({r},{g},{b},{alpha:g})"


def slug(*parts: str) -> str:
    """A file name and HTML id made of the parts; characters other than letters, digits and dots become dashes."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(parts)).strip("-").lower() or "figure"


def text(value: object) -> str:
    """Text of a figure, whose ``<br>`` is a line break: tags of user data must stay text."""
    return str(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def plain(value: Any) -> Any:
    """JSON without NaN and numpy types, numbers to six significant digits."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
