"""Figures of a search: parallel coordinates, importance, ranks of methods, best value so far."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from equipoise.platform.report.formatting import count, number
from equipoise.platform.report.style import (
    EXTERNAL,
    FAINT,
    GRID,
    INK,
    INTERNAL,
    SOFT,
    Figure,
    layout,
    line,
    text,
)
from equipoise.platform.search.analysis import AGGREGATION, METHOD_PARTS, PARAM, WEIGHTING, values_text
from equipoise.platform.search.importance import Importance

#: Maximum number of axes of parallel coordinates, without method and objective; more are unreadable.
MOST_AXES = 8
#: Height that means "the parameter does not apply", below the axis range from 0 to 1.
_ABSENT = -0.14
#: Numbers with a larger ratio of maximum to minimum are drawn on a logarithmic axis.
_LOG_RATIO = 30
#: Colours from the worst third of trials to the best.
_SHADES = ("#d5dde4", "#8fb0cd", INTERNAL)
#: Settings of a categorical axis.
_NAMES = {"showgrid": False, "ticks": "", "type": "category"}


@dataclass(frozen=True)
class _Axis:
    """Heights of the values between 0 and 1, and tick labels."""

    title: str
    heights: np.ndarray
    ticks: Sequence[tuple[float, str]]


def parallel_coordinates(trials: pd.DataFrame, names: Sequence[str], metric: str) -> Figure | None:
    """Every finished trial as a line through its settings; the best one in another colour.

    Parameters
    ----------
    trials
        :func:`~equipoise.platform.search.analysis.rank_trials`.
    names
        Columns of parameters, the most important first.
    metric
        Description of the metric that is maximised.
    """
    done = trials[trials["rank"].notna()].reset_index(drop=True)
    shown = [name for name in names if name not in (WEIGHTING, AGGREGATION)][:MOST_AXES]
    if len(done) < 2 or not (shown or done["method"].nunique() > 1):
        return None
    axes = [_categories("balancing", done["method"])] if done["method"].nunique() > 1 else []
    axes += [_axis(name.removeprefix(PARAM), done[name]) for name in shown]
    axes.append(_axis(metric, done["objective"]))
    heights_MA = np.column_stack([axis.heights for axis in axes])
    third = np.minimum((len(_SHADES) * (1 - done["rank"].to_numpy() / (len(done) + 1))).astype(int), 2)
    data = [
        _lines(heights_MA[third == level], shade, f"{name} third", 1.2)
        for level, (shade, name) in enumerate(zip(_SHADES, ("worst", "middle", "best"), strict=True))
    ]
    as_written = done["index"].to_numpy() == 0
    if as_written.any():
        data.append(
            {
                **_lines(heights_MA[as_written], INK, "the study as written", 2),
                "line": {"color": INK, "width": 2, "dash": "dot"},
            }
        )
    data.append(_lines(heights_MA[:1], EXTERNAL, "the best", 3))
    data.append(_names_of_lines(done, heights_MA, list(names), metric))
    return Figure(
        "search-parallel",
        "Settings and results",
        data,
        _axes_layout(axes),
        "Each line is a trial: it crosses every axis at its setting, and the axis at the right at its result on inner "
        "validation. A line below an axis has no such setting. Where the dark lines are close together, good trials "
        "agree; a setting for which they are spread out has little influence.",
        done[["name", "method", *shown, "objective"]],
        height=480,
        wide=True,
    )


def importance_figure(importance: Importance) -> Figure | None:
    """Bars of permutation importance, the largest on top."""
    if importance.reason or importance.table.empty:
        return None
    table = importance.table.iloc[:12].iloc[::-1]
    bars = {
        "type": "bar", "orientation": "h", "x": table["importance"], "y": [text(n) for n in table["parameter"]],
        "error_x": {"type": "data", "array": table["se"], "color": SOFT, "thickness": 1.2, "width": 0},
        "marker": {"color": INTERNAL}, "customdata": table["trials"],
        "hovertemplate": "%{y}: %{x:.3f}, in %{customdata} trials<extra></extra>",
    }  # fmt: skip
    return Figure(
        "search-importance",
        "Importance of the settings",
        [bars],
        layout("Loss of R² when permuted", "", yaxis=_NAMES),
        "How much worse a random forest predicts held-out trials when the values of one setting are "
        f"permuted between them; thin lines are standard errors. The forest explains {number(importance.r2, 2)} of the "
        f"variance of {count(importance.trials)} trials (R²). A setting that exists in some trials only is permuted "
        "among those.",
        importance.table,
        height=max(300, 90 + 26 * len(table)),
    )


def ranks_of_methods(ranked: pd.DataFrame, methods: pd.DataFrame) -> Figure | None:
    """Ranks of all finished trials by balancing method and by strategy, the best of them on top.

    Parameters
    ----------
    ranked
        :func:`~equipoise.platform.search.analysis.rank_trials`.
    methods
        :func:`~equipoise.platform.search.analysis.rank_methods`, in the order to draw.
    """
    done = ranked[ranked["rank"].notna()]
    data: list[dict[str, Any]] = []
    tables = []
    for part, method in [(str(row["part"]), str(row["method"])) for row in methods.to_dict("records")][::-1]:
        trials = done[done[METHOD_PARTS[part]] == method]
        if trials.empty:
            continue
        tables.append(trials[["name", "rank", "objective"]].assign(method=method))
        data.append(
            {
                "type": "box", "orientation": "h", "x": trials["rank"], "name": text(method), "boxpoints": "all",
                "jitter": 0.4, "pointpos": 0, "line": {"color": INTERNAL, "width": 1.4}, "fillcolor": GRID,
                "marker": {"color": EXTERNAL, "size": 5, "opacity": 0.75}, "showlegend": False,
                "text": [text(n) for n in trials["name"]], "hovertemplate": "%{text}: rank %{x}<extra></extra>",
            }
        )  # fmt: skip
    if len(data) < 2:
        return None
    return Figure(
        "search-methods",
        f"Ranks of the trials by {methods_text(methods)}",
        data,
        layout("Rank among finished trials (1 is the best)", "", yaxis=_NAMES),
        "Each dot is a trial; a box spans the middle half of a method's trials and its line is their median. If a "
        "method leads because of one lucky trial, only one dot is at the left and its box is like the others.",
        pd.concat(tables, ignore_index=True),
        height=max(320, 90 + 30 * len(data)),
    )


def methods_text(methods: pd.DataFrame) -> str:
    """``balancing method``, ``strategy``, or both, after what was searched."""
    names = {"balancing": "balancing method", "strategy": "federation strategy"}
    return " and ".join(names[part] for part in names if (methods["part"] == part).any())


def best_over_trials(curve: pd.DataFrame, metric: str) -> Figure | None:
    """Every trial and the best value so far, in the order in which the trials ended."""
    if curve["best"].isna().all():
        return None
    data = [
        {
            "type": "scatter", "mode": "markers", "x": curve["trials"], "y": curve["objective"], "name": "a trial",
            "marker": {"color": FAINT, "size": 7}, "text": [text(n) for n in curve["name"]],
            "hovertemplate": "%{text}: %{y:.4f}<extra></extra>",
        },
        line(curve["trials"], curve["best"], "the best so far", INTERNAL, 2.4, line={"shape": "hv"}),
    ]  # fmt: skip
    return Figure(
        "search-trials",
        "Best value so far, by trials",
        data,
        layout("Trials that have ended", text(metric)),
        "The line rises where a trial improved on all trials before it. A line that was flat for a long time suggests "
        "that more trials of the same kind will hardly help; failed and stopped trials are counted but have no dot.",
        curve,
    )


def best_over_time(curve: pd.DataFrame, metric: str) -> Figure | None:
    """The best value so far over CPU time and over wall time."""
    if curve["best"].isna().all():
        return None
    whole = max(curve["cpu_seconds"].max(), curve["elapsed_seconds"].max())
    unit, scale = ("hours", 3600) if whole > 7200 else ("minutes", 60) if whole > 300 else ("seconds", 1)
    data = []
    for column, name, colour in (
        ("cpu_seconds", "CPU time of the trials", INTERNAL),
        ("elapsed_seconds", "wall time", EXTERNAL),
    ):
        known = curve[curve[column].notna() & curve["best"].notna()]
        if len(known):
            data.append(line(known[column] / scale, known["best"], name, colour, 2.4, line={"shape": "hv"}))
    return Figure(
        "search-time",
        "Best value so far, by time",
        data,
        layout(f"Time in {unit}", text(metric)),
        "How soon the search found its best value. Wall time runs from the start of the first trial and "
        "includes interruptions of the search; it is short if many trials ran at the same time.",
        curve,
    )


def _axis(title: str, values: pd.Series) -> _Axis:
    """Numbers scaled to their range, logarithmically if it is wide; categories evenly spaced."""
    if not pd.api.types.is_numeric_dtype(values):
        return _categories(title, values)
    numbers = values.to_numpy(float)
    known = numbers[np.isfinite(numbers)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    log = low > 0 and high / low > _LOG_RATIO
    scaled = np.log(numbers) if log else numbers
    start, end = (math.log(low), math.log(high)) if log else (low, high)
    heights = (scaled - start) / (end - start) if end > start else np.where(np.isfinite(numbers), 0.5, np.nan)
    few = np.unique(known)
    if len(few) <= 4:  # a list of values: each of them, and nothing between
        heights_of_few = np.unique(heights[np.isfinite(heights)])
        ticks = [(float(height), f"{value:.3g}") for height, value in zip(heights_of_few, few, strict=True)]
    else:
        shares = (0.0, 0.5, 1.0)
        middle = [start + share * (end - start) for share in shares]
        ticks = [(s, f"{math.exp(v) if log else v:.3g}") for s, v in zip(shares, middle, strict=True)]
    return _Axis(title, np.where(np.isfinite(heights), heights, _ABSENT), ticks)


def _categories(title: str, values: pd.Series) -> _Axis:
    names = sorted({str(value) for value in values if value is not None and value == value and value != ""})
    height_of = {name: (k + 0.5) / len(names) for k, name in enumerate(names)}
    heights = np.array([height_of.get(str(value), _ABSENT) for value in values])
    return _Axis(title, heights, [(height, name) for name, height in height_of.items()])


def _lines(heights_MA: np.ndarray, colour: str, name: str, width: float) -> dict[str, Any]:
    """Polylines, one trace for all."""
    xs: list[float | None] = []
    ys: list[float | None] = []
    for row in heights_MA:
        xs += [*range(len(row)), None]
        ys += [*row, None]
    return line(xs, ys, name, colour, width, hoverinfo="skip")


def _names_of_lines(
    done: pd.DataFrame, heights_MA: np.ndarray, names: list[str], metric: str
) -> dict[str, Any]:
    """Dots at the right with the name and settings of each line's trial."""
    labels = [
        f"{text(row['name'])}: {text(metric)} {row['objective']:.4f}<br>{text(values_text(row, names))}"
        for row in done.to_dict("records")
    ]
    return {
        "type": "scatter", "mode": "markers", "x": [heights_MA.shape[1] - 1] * len(done), "y": heights_MA[:, -1],
        "marker": {"color": INTERNAL, "size": 6}, "text": labels, "hovertemplate": "%{text}<extra></extra>",
        "showlegend": False,
    }  # fmt: skip


def _axes_layout(axes: Sequence[_Axis]) -> dict[str, Any]:
    """Vertical axes with tick labels as annotations; those of the last axis are at its right."""
    last = len(axes) - 1
    notes = []
    for index, axis in enumerate(axes):
        ticks = list(axis.ticks)
        if (axis.heights == _ABSENT).any():
            ticks.append((_ABSENT, "none"))
        right = index == last
        notes += [
            {"x": index, "y": height, "text": text(label), "showarrow": False, "xanchor": "left" if right else "right",
             "xshift": 6 if right else -5, "font": {"size": 10.5, "color": SOFT}, "bgcolor": "rgba(255,255,255,0.75)"}
            for height, label in ticks
        ]  # fmt: skip
        notes.append(
            {"x": index, "y": 1.06 + 0.06 * (index % 2), "text": text(axis.title), "showarrow": False,
             "yanchor": "bottom", "font": {"size": 11.5, "color": INK}}
        )  # fmt: skip
    rules = [
        {"type": "line", "x0": index, "x1": index, "y0": _ABSENT, "y1": 1.03, "layer": "below",
         "line": {"color": FAINT, "width": 1.2}}
        for index in range(len(axes))
    ]  # fmt: skip
    return layout(
        "",
        "",
        xaxis={"visible": False, "range": [-0.75 if last < 6 else -0.95, last + 0.35], "fixedrange": True},
        yaxis={"visible": False, "range": [_ABSENT - 0.06, 1.24], "fixedrange": True},
        annotations=notes,
        shapes=rules,
        legend={"y": -0.02, "yanchor": "top"},
        margin={"l": 16, "r": 16, "t": 8, "b": 30},
    )
