"""Figures that compare methods: critical-difference diagram and paired differences."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from equipoise.platform.evaluation.comparison import Ranking
from equipoise.platform.report.formatting import interval, label, number, p_value, percent
from equipoise.platform.report.style import FAINT, INK, INTERNAL, SOFT, Figure, layout, slug, text


def critical_difference_diagram(ranking: Ranking) -> Figure:
    """Mean ranks, best on top; bars at the right join methods that do not differ significantly.

    Source: Demšar (2006), Figure 1, rotated by a right angle so that many names stay readable.
    """
    names, k = [str(name) for name in ranking.mean_ranks.index], len(ranking.mean_ranks)
    ranks = ranking.mean_ranks.to_numpy(float)
    height = {name: k - 1 - index for index, name in enumerate(names)}
    data: list[dict[str, Any]] = [_stem(ranks, k), _dots(names, ranks, height)]
    end = k + 0.25
    for index, clique in enumerate(ranking.cliques):
        x = end + 0.3 * (index + 1) * max(1, k / 10)
        data.append(_bar([x, x], [height[clique[0]] + 0.25, height[clique[-1]] - 0.25], clique))
    data.append(_bar([1, 1 + ranking.critical_difference], [k - 0.2, k - 0.2], ()))
    right = end + 0.3 * (len(ranking.cliques) + 1) * max(1, k / 10)
    shape = layout(
        "Mean rank (1 is the best)",
        "",
        xaxis={
            "range": [0.8, max(right, 1.15 + ranking.critical_difference)],
            "tickvals": list(range(1, k + 1, 1 if k <= 20 else 2)),
        },
        yaxis={
            "tickvals": [height[n] for n in names], "ticktext": [text(n) for n in names], "showgrid": False,
            "ticks": "", "range": [-0.6, k + 0.5], "tickfont": {"size": 12.5}, "fixedrange": True,
        },
        showlegend=False,
        annotations=[
            {"x": 1 + ranking.critical_difference / 2, "y": k - 0.2, "yshift": 11, "showarrow": False,
             "text": f"critical difference {ranking.critical_difference:.2f}", "font": {"size": 11.5, "color": SOFT}}
        ],
    )  # fmt: skip
    table = ranking.mean_ranks.rename_axis("method").rename("mean_rank").reset_index()
    return Figure(
        "critical-difference",
        "Mean ranks and critical difference",
        data,
        shape,
        f"Methods from best to worst by their mean rank over {len(ranking.datasets)} independent data sets. The bar on "
        "top is the distance from which two methods differ; methods joined by a bar at the right do not differ "
        "significantly.",
        table.assign(critical_difference=ranking.critical_difference, datasets=len(ranking.datasets)),
        height=130 + 30 * k,
        wide=True,
    )


def differences_figure(
    rows: Sequence[dict[str, Any]], task: str, metric: str, reference: str, confidence: float
) -> Figure | None:
    """Paired differences to a reference with their intervals, in the order of the rows.

    Parameters
    ----------
    rows
        Rows of a table of paired differences (``paired.DIFFERENCE_COLUMNS``) of one metric on one data set.
    """
    shown = [r for r in rows if pd.notna(r["difference"])]
    if not shown:
        return None
    heights = list(range(len(shown)))[::-1]
    plus = [r["high"] - r["difference"] if pd.notna(r["high"]) else None for r in shown]
    minus = [r["difference"] - r["low"] if pd.notna(r["low"]) else None for r in shown]
    hover = [
        f"{text(r['run'])}: {number(r['difference'])} ({interval(r['low'], r['high'])}), "
        f"{p_value(r['p_pairs'])} over all pairs"
        for r in shown
    ]
    points = {
        "type": "scatter", "mode": "markers", "x": [r["difference"] for r in shown], "y": heights,
        "error_x": {"type": "data", "symmetric": False, "array": plus, "arrayminus": minus,
                    "color": INTERNAL, "thickness": 1.8, "width": 0},
        "marker": {"color": INTERNAL, "size": 9, "symbol": "square"},
        "text": hover, "hovertemplate": "%{text}<extra></extra>",
    }  # fmt: skip
    shape = layout(
        f"{label(metric)} minus that of {text(reference)}",
        "",
        yaxis={
            "tickvals": heights, "ticktext": [text(r["run"]) for r in shown], "showgrid": False, "ticks": "",
            "range": [-0.6, len(shown) - 0.4], "tickfont": {"size": 12.5}, "fixedrange": True,
        },
        showlegend=False,
        shapes=[
            {"type": "line", "x0": 0, "x1": 0, "y0": 0, "y1": 1, "yref": "paper",
             "line": {"color": FAINT, "width": 1.4, "dash": "dot"}}
        ],
    )  # fmt: skip
    return Figure(
        slug("differences", task, metric, reference),
        f"{label(metric)} of {task}: difference to {reference}",
        [points],
        shape,
        f"Each point is a run minus {reference} on the same patients, the bar its {percent(confidence)} interval (not "
        "corrected for the number of runs; p in the table is). If a bar crosses the dotted line, the sign of "
        "the difference is uncertain.",
        pd.DataFrame(shown),
        height=110 + 28 * len(shown),
        wide=len(shown) > 6,
    )


def _stem(ranks: Sequence[float], k: int) -> dict[str, Any]:
    """Faint lines from the axis of names to the dots."""
    xs: list[float | None] = []
    ys: list[float | None] = []
    for index, rank in enumerate(ranks):
        xs += [0.8, float(rank), None]
        ys += [k - 1 - index, k - 1 - index, None]
    return {"type": "scatter", "mode": "lines", "x": xs, "y": ys, "hoverinfo": "skip",
            "line": {"color": FAINT, "width": 1}}  # fmt: skip


def _dots(names: Sequence[str], ranks: Sequence[float], height: dict[str, int]) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "markers+text", "x": list(ranks), "y": [height[n] for n in names],
        "text": [number(r, 2) for r in ranks], "textposition": "middle right",
        "textfont": {"size": 11.5, "color": SOFT}, "marker": {"color": INTERNAL, "size": 10},
        "customdata": [text(n) for n in names], "hovertemplate": "%{customdata}: %{x:.2f}<extra></extra>",
        "cliponaxis": False,
    }  # fmt: skip


def _bar(x: Sequence[float], y: Sequence[float], clique: Sequence[str]) -> dict[str, Any]:
    hover = (
        f"no significant difference: {', '.join(text(n) for n in clique)}"
        if clique
        else "critical difference"
    )
    return {
        "type": "scatter", "mode": "lines", "x": list(x), "y": list(y), "line": {"color": INK, "width": 4},
        "text": [hover] * 2, "hovertemplate": "%{text}<extra></extra>",
    }  # fmt: skip
