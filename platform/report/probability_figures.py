"""Figures of probabilities: calibration curves and decision curves, with what they say in a sentence."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from equipoise.platform.evaluation.decision_curves import useful_range
from equipoise.platform.evaluation.survival_calibration import YEAR
from equipoise.platform.report.datasets import Dataset
from equipoise.platform.report.formatting import number, percent, plural
from equipoise.platform.report.style import (
    FAINT,
    INK,
    SERIES,
    SOFT,
    Figure,
    band,
    layout,
    line,
    slug,
    text,
    unit_square,
)

#: Data sets of a figure whose bands can still be told apart.
_BANDS = 2


def calibration_figure(datasets: Sequence[Dataset], task: str, confidence: float) -> Figure | None:
    """Observed against predicted for the data sets of a binary task; None without a curve."""
    curves = [(data.name, data.colour, data.rows) for data in datasets]
    return _calibration(curves, task, "data sets", confidence)


def class_calibration_figure(data: Dataset, task: str, confidence: float) -> Figure | None:
    """Observed against predicted for every class of a multiclass task in one data set."""
    parts = data.rows.groupby("class", sort=True)
    curves = [(str(name), SERIES[k % len(SERIES)], part) for k, (name, part) in enumerate(parts)]
    return _calibration(curves, task, data.name, confidence)


def _calibration(
    curves: Sequence[tuple[str, str, pd.DataFrame]], task: str, what: str, confidence: float
) -> Figure | None:
    shown = [(name, colour, rows) for name, colour, rows in curves if len(rows)]
    if not shown:
        return None
    data = [line([0, 1], [0, 1], "perfect", FAINT, 1.2, line={"dash": "dot"}, hoverinfo="skip")]
    for index, (name, colour, rows) in enumerate(shown):
        smooth, bins = rows[rows["kind"] == "smooth"], rows[rows["kind"] == "bin"]
        if len(smooth):
            if index < _BANDS:
                limits = (smooth["low"].to_numpy(), smooth["high"].to_numpy())
                data += band(smooth["predicted"].to_numpy(), *limits, colour, "", showlegend=False)
            curve = (smooth["predicted"].to_numpy(), smooth["observed"].to_numpy())
            data.append(line(*curve, text(name), colour, 2.2, hoverinfo="skip"))
        data.append(_bins(bins, name, colour, legend=not len(smooth)))
    table = pd.concat([rows.assign(curve=name) for name, _, rows in shown], ignore_index=True)
    return Figure(
        slug("calibration", task, what),
        "Calibration" if what == "data sets" else f"Calibration per class, {what}",
        data,
        unit_square("Predicted probability", "Observed share"),
        "Points are groups of equally many patients: the share with the finding against the mean prediction, with "
        f"{percent(confidence)} intervals. Lines are smooth fits (splines), drawn with 10 or more patients of each "
        "class. Below the dotted line predictions are too high. Probabilities of all test folds are read together.",
        table[["curve", "kind", "predicted", "observed", "low", "high", "n", "n_pos"]],
    )


def _bins(bins: pd.DataFrame, name: str, colour: str, *, legend: bool) -> dict:
    observed = bins["observed"].to_numpy()
    return {
        "type": "scatter", "mode": "markers", "x": bins["predicted"].to_numpy(), "y": observed,
        "name": text(name), "showlegend": legend,
        "error_y": {"type": "data", "symmetric": False, "array": bins["high"].to_numpy() - observed,
                    "arrayminus": observed - bins["low"].to_numpy(), "color": colour, "thickness": 1.2, "width": 0},
        "marker": {"color": colour, "size": 7},
        "text": [f"{int(k)} of {int(n)} patients" for k, n in zip(bins["n_pos"], bins["n"], strict=True)],
        "hovertemplate": "predicted %{x:.2f}<br>observed %{y:.2f}<br>%{text}<extra></extra>",
    }  # fmt: skip


def decision_figure(data: Dataset, task: str, confidence: float) -> Figure | None:
    """Net benefit of the model, of treating all and of treating none, in one data set.

    A table of a survival task has the column ``horizon``, in days.
    """
    rows = data.rows
    if rows.empty:
        return None
    at = f" at {number(float(rows['horizon'].iloc[0]) / YEAR, 1)} years" if "horizon" in rows else ""
    first = float(rows["threshold"].iloc[0])
    share = first + float(rows["treat_all"].iloc[0]) * (1 - first)  # of patients with an event
    alive = rows["threshold"][(rows["net_benefit"] > 0) | (rows["treat_all"] > 0)]
    last = float(np.clip(1.15 * alive.max() if len(alive) else 0.5, 0.2, 0.99))
    inside = rows[rows["threshold"] <= last]
    x = inside["threshold"].to_numpy()
    low, high = -0.25 * share, 1.15 * max(share, float(inside["net_benefit"].max()))
    clipped = inside[["low", "high"]].clip(low, high).to_numpy()
    everybody = inside[inside["treat_all"] >= low]
    drawn = [
        *band(x, clipped[:, 0], clipped[:, 1], data.colour, f"{percent(confidence)} interval"),
        line([x[0], x[-1]], [0, 0], "treat none", INK, 1.2, line={"dash": "dot"}, hoverinfo="skip"),
        line(everybody["threshold"].to_numpy(), everybody["treat_all"].to_numpy(), "treat all", SOFT, 1.6,
             line={"dash": "dash"}),
        line(x, inside["net_benefit"].to_numpy(), "model", data.colour, 2.4,
             hovertemplate="threshold %{x:.0%}<br>net benefit %{y:.3f}<extra>model</extra>"),
    ]  # fmt: skip
    return Figure(
        slug("decision-curve", task, data.name),
        f"Decision curve{at}, {data.name}",
        drawn,
        layout(
            "Threshold probability", "Net benefit", xaxis={"range": [0, last], "tickformat": ".0%"},
            yaxis={"range": [low, high]},
        ),
        "Net benefit counts findings that are acted on, less needless actions at the rate that the threshold stands "
        "for (at 20 % four needless actions weigh as much as one finding). A model is of use where its line lies above "
        f"both others. {decision_sentence(data)}",
        rows[["threshold", "net_benefit", "low", "high", "treat_all", "gain", "gain_low", "gain_high"]],
    )  # fmt: skip


def decision_sentence(data: Dataset) -> str:
    """At which thresholds the model is better than both simple strategies with its whole interval."""
    useful = useful_range(data.rows)
    who = f"{data.name}, {plural(int(data.rows['n'].iloc[0]), 'patient')}"
    if useful is None:
        return f"At no threshold is it above both by more than its interval ({who})."
    return f"Its interval lies above both between {percent(useful[0])} and {percent(useful[1])} ({who})."
