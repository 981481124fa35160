"""Shared parts of all figures: the figure record, its CSV, colours, axes and the SYNTHETIC mark.

Figures are plain dictionaries in plotly's JSON schema; the page renders them with the vendored plotly.js, so
Python's plotly is not needed to write a report.
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
FONT = '"Inter", "Source Sans 3", "Segoe UI", "Helvetica Neue", Arial, sans-serif'

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
class Figure:
    """A plotly figure with the data behind it.

    ``data`` and ``layout`` follow plotly's schema; ``table`` is the content of the CSV file; ``how_to_read`` is
    one or two sentences for a reader who has not seen such a figure before.
    """

    slug: str
    title: str
    data: Sequence[dict[str, Any]]
    layout: dict[str, Any]
    how_to_read: str
    table: pd.DataFrame = field(repr=False)
    height: int = 380
    wide: bool = False

    def spec(self, *, synthetic: bool) -> dict[str, Any]:
        """Plotly JSON without NaN; figures of synthetic data contain the word SYNTHETIC, also when copied."""
        layout = {**self.layout, "height": self.height}
        if synthetic:
            layout["annotations"] = [*layout.get("annotations", []), _SYNTHETIC]
        return plain({"data": list(self.data), "layout": layout})

    def download(self, *, synthetic: bool) -> Download:
        """The data behind the figure."""
        return Download(("SYNTHETIC-" if synthetic else "") + self.slug + ".csv", self.table)


_SYNTHETIC = {
    "text": "SYNTHETIC DATA",
    "xref": "paper",
    "yref": "paper",
    "x": 0.5,
    "y": 0.5,
    "showarrow": False,
    "textangle": -24,
    "opacity": 0.1,
    "font": {"size": 26, "color": "#b3342b"},
}


def layout(x: str, y: str, **extra: Any) -> dict[str, Any]:
    """The common layout with axis titles; keyword arguments are merged into it one level deep."""
    base: dict[str, Any] = {
        "font": {"family": FONT, "size": 12.5, "color": INK},
        "margin": {"l": 58, "r": 18, "t": 36, "b": 52},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "xaxis": axis(x),
        "yaxis": axis(y),
        "hoverlabel": {"bgcolor": "#ffffff", "bordercolor": FAINT, "font": {"color": INK, "size": 12}},
        "legend": LEGEND,
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": FAINT, "activecolor": SOFT},
        "autosize": True,
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
        "automargin": True,
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
    """Text for plotly, which reads a subset of HTML: tags of user data must stay text."""
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
