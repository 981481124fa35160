"""Figures about balancing: weights and conflicts over the epochs, how the tasks' gradients point."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from equipoise.platform.report.figures.style import (
    HIGH_RISK,
    INK,
    INTERNAL,
    SERIES,
    Figure,
    band,
    layout,
    line,
    text,
)
from equipoise.platform.report.formatting import number

#: Red for gradients that point against each other, white for right angles, blue for the same way.
_SCALE = [[0.0, HIGH_RISK], [0.5, "#ffffff"], [1.0, INTERNAL]]
#: Bands of more tasks than this would hide each other.
_MOST_BANDS = 3


def over_folds(histories: Mapping[str, pd.DataFrame], column: str) -> pd.DataFrame:
    """Mean, least and greatest value of a column per epoch over the folds that reached it.

    Columns ``epoch``, ``mean``, ``low``, ``high``, ``folds``; epochs without a value are absent.
    """
    parts = [t[["epoch", column]] for t in histories.values() if column in t]
    if not parts:
        return pd.DataFrame(columns=["epoch", "mean", "low", "high", "folds"])
    of_epoch = pd.concat(parts).dropna().groupby("epoch")[column]
    table = of_epoch.agg(["mean", "min", "max", "count"]).reset_index()
    return table.set_axis(["epoch", "mean", "low", "high", "folds"], axis=1)


def weight_curves(histories: Mapping[str, pd.DataFrame], tasks: Sequence[str]) -> Figure | None:
    """Weight of each task's loss over the epochs: mean of the folds, and their range for up to three tasks."""
    data: list[dict[str, Any]] = []
    tables = []
    for place, task in enumerate(tasks):
        table = over_folds(histories, f"weight/{task}")
        if table.empty:
            continue
        tables.append(table.assign(task=task))
        colour = SERIES[place % len(SERIES)]
        dash = {} if place < len(SERIES) else {"line": {"dash": "dot"}}
        hover = f"{text(task)}, epoch %{{x}}: %{{y:.3f}}<extra></extra>"
        if len(tasks) <= _MOST_BANDS:
            data += band(
                table["epoch"], table["low"], table["high"], colour, f"{text(task)}, range", showlegend=False
            )
        data.append(line(table["epoch"], table["mean"], text(task), colour, 2, hovertemplate=hover, **dash))
    if not tables:
        return None
    shaded = " the shade is their range;" if len(tasks) <= _MOST_BANDS else ""
    return Figure(
        "balancing-weights",
        "Weights of the tasks over the epochs",
        data,
        layout("Epoch", "Weight of the loss", yaxis={"rangemode": "tozero"}),
        f"Each line is the mean over the folds that reached the epoch;{shaded} flat lines at one height are equal "
        "weighting. A task whose weight falls towards 0 is hardly learned any more.",
        pd.concat(tables, ignore_index=True)[["task", "epoch", "mean", "low", "high", "folds"]],
        height=330,
    )


def conflict_curve(histories: Mapping[str, pd.DataFrame]) -> Figure | None:
    """Share of (step, pair of tasks) with opposing gradients over the epochs: mean and range of the folds."""
    table = over_folds(histories, "conflict_rate")
    if table.empty:
        return None
    hover = "epoch %{x}: %{y:.1%}<extra></extra>"
    data = [
        *band(table["epoch"], table["low"], table["high"], INTERNAL, "range of the folds"),
        line(table["epoch"], table["mean"], "mean of the folds", INTERNAL, 2, hovertemplate=hover),
    ]
    return Figure(
        "balancing-conflicts",
        "Conflicts between tasks over the epochs",
        data,
        layout("Epoch", "Opposing gradients", yaxis={"range": [-0.02, 1.02], "tickformat": ".0%"}),
        "Share of training steps and pairs of tasks in which the two gradients on shared parameters had a negative "
        "product. One half is what unrelated directions give; far above it, tasks work against each other.",
        table,
        height=330,
    )


def cosine_matrix(histories: Mapping[str, pd.DataFrame], tasks: Sequence[str]) -> pd.DataFrame:
    """Mean cosine of the tasks' gradients over epochs and folds, ``[T, T]``; NaN where it was not measured.

    Every fold counts the same, however many epochs it ran.
    """
    size = len(tasks)
    cosine = np.full((size, size), np.nan)
    np.fill_diagonal(cosine, 1.0)
    for i, a in enumerate(tasks):
        for j in range(i + 1, size):
            names = (f"cosine/{a}|{tasks[j]}", f"cosine/{tasks[j]}|{a}")
            found = [table[name].mean() for table in histories.values() for name in names if name in table]
            known = [value for value in found if pd.notna(value)]
            cosine[i, j] = cosine[j, i] = np.mean(known) if known else np.nan
    return pd.DataFrame(cosine, index=list(tasks), columns=list(tasks))


def cosine_figure(cosine: pd.DataFrame) -> Figure | None:
    """The matrix as squares with their numbers."""
    values = cosine.to_numpy()
    if np.isnan(values[~np.eye(len(values), dtype=bool)]).all():
        return None
    names = [text(name) for name in cosine.index]
    shown = [["" if np.isnan(v) else number(float(v), 2) for v in row] for row in values]
    data = [
        {
            "type": "heatmap", "x": names, "y": names, "z": values, "zmin": -1, "zmax": 1, "colorscale": _SCALE,
            "text": shown, "texttemplate": "%{text}", "textfont": {"size": 12}, "xgap": 2, "ygap": 2,
            "colorbar": {"thickness": 10, "outlinewidth": 0, "tickvals": [-1, 0, 1],
                         "tickfont": {"size": 11, "color": INK}},
            "hovertemplate": "%{y} and %{x}: %{z:.3f}<extra></extra>",
        }
    ]  # fmt: skip
    axes = {"showgrid": False, "ticks": "", "type": "category"}
    shape = layout(
        "",
        "",
        xaxis=axes,
        yaxis={**axes, "autorange": "reversed"},
        margin={"l": 40, "r": 10, "t": 12, "b": 40},
    )
    table = cosine.rename_axis("task").reset_index()
    return Figure(
        "balancing-cosines",
        "How the tasks' gradients point",
        data,
        shape,
        "Mean cosine between the gradients of two tasks on shared parameters, over all epochs and folds: 1 the same "
        "way, 0 at right angles, below 0 against each other.",
        table,
        height=max(330, 90 + 44 * len(names)),
    )
