"""Forest plot: one metric with its interval per cohort and site."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from equipoise.platform.report.formatting import estimate, label, percent
from equipoise.platform.report.style import EXTERNAL, FAINT, INTERNAL, Figure, layout, slug, text


def forest(
    rows: Sequence[dict[str, Any]],
    task: str,
    metric: str,
    chance: float | None,
    confidence: float,
    what: str = "cohort or site",
    overlap: str = "do not show a difference between sites",
) -> Figure | None:
    """Points with horizontal intervals, the first row on top.

    Parameters
    ----------
    rows
        Rows of the metrics table with ``name`` (label of the point) and ``role``; rows without value are
        left out (the table next to the figure gives the reason).
    chance
        Value of a predictor without information, drawn as a line.
    what, overlap
        What a row is, and the meaning of overlapping bars.
    """
    shown = [r for r in rows if pd.notna(r["value"])]
    if not shown:
        return None
    data = []
    for role, colour in (("test", INTERNAL), ("external", EXTERNAL)):
        part = [(len(shown) - 1 - i, r) for i, r in enumerate(shown) if r["role"] == role]
        if part:
            data.append(_points(part, "internal test" if role == "test" else "external", colour))
    names = [text(r["name"]) for r in shown]
    return Figure(
        slug("forest", task, metric),
        f"{label(metric)} by {what.replace(' or ', ' and ')}",
        data,
        _layout(names, metric, chance, _limits(shown, chance)),
        f"Each point is one {what}, the bar its {percent(confidence)} interval for these models (none where "
        "it is not estimable). "
        f"{'The dotted line is a predictor without information. ' if chance is not None else ''}"
        f"Overlapping bars {overlap}.",
        pd.DataFrame(shown)[["name", "role", "value", "low", "high", "n", "n_pos", "method", "note"]],
        height=110 + 30 * len(shown),
        wide=True,
    )


def _points(part: list[tuple[int, dict[str, Any]]], name: str, colour: str) -> dict[str, Any]:
    plus = [r["high"] - r["value"] if pd.notna(r["high"]) else None for _, r in part]
    minus = [r["value"] - r["low"] if pd.notna(r["low"]) else None for _, r in part]
    return {
        "type": "scatter", "mode": "markers", "name": name,
        "x": [r["value"] for _, r in part], "y": [height for height, _ in part],
        "error_x": {"type": "data", "symmetric": False, "array": plus, "arrayminus": minus,
                    "color": colour, "thickness": 1.8, "width": 0},
        "marker": {"color": colour, "size": 9, "symbol": "square"},
        "text": [f"{text(r['name'])}: {estimate(r)}, n = {r['n']}" for _, r in part],
        "hovertemplate": "%{text}<extra></extra>",
    }  # fmt: skip


def _limits(rows: Sequence[dict[str, Any]], chance: float | None) -> list[float]:
    """Range of the axis: every interval and the line of no information, with a margin."""
    ends = [r[c] for r in rows for c in ("value", "low", "high") if pd.notna(r[c])]
    ends += [] if chance is None else [chance]
    pad = 0.05 * (max(ends) - min(ends) or 1.0)
    return [min(ends) - pad, max(ends) + pad]


def _layout(names: list[str], metric: str, chance: float | None, limits: list[float]) -> dict[str, Any]:
    shown = layout(
        label(metric),
        "",
        xaxis={"range": limits},
        yaxis={
            "tickvals": list(range(len(names))), "ticktext": names[::-1], "showgrid": False, "ticks": "",
            "range": [-0.6, len(names) - 0.4], "tickfont": {"size": 12.5}, "fixedrange": True,
        },
    )  # fmt: skip
    if chance is not None:
        shown["shapes"] = [
            {"type": "line", "x0": chance, "x1": chance, "y0": 0, "y1": 1, "yref": "paper",
             "line": {"color": FAINT, "width": 1.4, "dash": "dot"}}
        ]  # fmt: skip
    return shown
