"""Kaplan-Meier curves of predicted-risk groups with numbers at risk."""

import numpy as np
import pandas as pd

from equipoise.platform.evaluation.survival_curves import (
    SurvivalCurve,
    kaplan_meier,
    log_rank,
    number_at_risk,
)
from equipoise.platform.report.figures.style import (
    HIGH_RISK,
    LOW_RISK,
    SOFT,
    Figure,
    axis,
    band,
    layout,
    line,
    slug,
)
from equipoise.platform.report.formatting import p_value, percent

_GROUPS = (("low risk", False, LOW_RISK), ("high risk", True, HIGH_RISK))
_YEAR = 365.25


def kaplan_meier_figure(groups: pd.DataFrame, task: str, place: str, confidence: float) -> Figure | None:
    """Curves of the low and the high predicted risk.

    Parameters
    ----------
    groups
        One row per patient: ``time`` (days), ``event``, ``positive`` (high risk).

    Returns
    -------
    None if there is no patient. With one group only, its curve stands alone and there is no test.
    """
    if groups.empty:
        return None
    unit, per = ("years", _YEAR) if groups["time"].max() > 3 * _YEAR else ("months", _YEAR / 12)
    longest = float(groups["time"].max() / per)
    step = next(s for s in (1, 2, 3, 6, 12, 24, 60, 120, 1e9) if longest / s <= 7)
    ticks = np.arange(0, longest + 1e-9, step)
    data, tables = [], []
    for row, (name, high, colour) in enumerate(_GROUPS):
        part = groups[groups["positive"] == high]
        if part.empty:
            continue
        curve = kaplan_meier(part["time"], part["event"], confidence)
        at = number_at_risk(part["time"], ticks * per)
        stairs = {"line": {"shape": "hv"}}
        data += band(curve.time / per, curve.low, curve.high, colour, "", showlegend=False, **stairs)
        label = f"{name} (n = {len(part)}, events {int(part['event'].sum())})"
        hover = f"%{{x:.1f}} {unit}<br>%{{y:.0%}} without event<extra>{name}</extra>"
        data.append(line(curve.time / per, curve.survival, label, colour, 2.4, hovertemplate=hover, **stairs))
        data.append(_censored(part, curve, per, colour))
        data.append(_risk_row(ticks, at, 1 - row, colour))
        steps = {"survival": curve.survival, "low": curve.low, "high": curve.high}
        tables.append(pd.DataFrame({"group": name, f"time_{unit}": curve.time / per, **steps}))
        tables.append(pd.DataFrame({"group": name, f"time_{unit}": ticks, "at_risk": at}))
    test = log_rank(groups["time"], groups["event"], groups["positive"])
    return Figure(
        slug("kaplan-meier", task, place),
        f"Kaplan–Meier by predicted risk, {place}",
        data,
        _layout(unit, longest, step, f"log-rank {p_value(test.p)}"),
        "Patients above the median predicted risk of the validation patients (never of these patients) form "
        "the "
        "high-risk group. Curves that part early and stay apart mean that the prediction separates courses; "
        "ticks are "
        f"censored patients, bands the {percent(confidence)} intervals, numbers below the patients still "
        "followed.",
        pd.concat(tables, ignore_index=True),
        height=430,
    )


def _layout(unit: str, longest: float, step: float, test: str) -> dict:
    shown = layout(
        f"Time ({unit})",
        "Without event",
        xaxis={"range": [-0.02 * longest, 1.03 * longest], "dtick": step, "anchor": "y"},
        margin={"b": 14},
        yaxis={"range": [-0.02, 1.04], "tickformat": ".0%", "domain": [0.33, 1]},
    )
    shown["yaxis2"] = axis(
        "", domain=[0, 0.1], range=[-0.6, 1.6], showgrid=False, ticks="", fixedrange=True,
        tickvals=[1, 0], ticktext=["low", "high"], showline=False,
        ticklabelstandoff=14,
    )  # fmt: skip
    shown["annotations"] = [
        {"text": test, "xref": "paper", "yref": "paper", "x": 0.99, "y": 0.99, "xanchor": "right",
         "yanchor": "top", "showarrow": False, "font": {"size": 12.5}},
        {"text": "Number at risk", "xref": "paper", "yref": "paper", "x": 0, "y": 0.145, "xanchor": "left",
         "yanchor": "middle", "showarrow": False, "font": {"size": 11.5, "color": SOFT}},
    ]  # fmt: skip
    return shown


def _censored(part: pd.DataFrame, curve: SurvivalCurve, per: float, colour: str) -> dict:
    """Ticks on the curve where follow-up ended without event."""
    times = np.sort(part.loc[part["event"] == 0, "time"].to_numpy(float))
    place = np.searchsorted(curve.time, times, side="right") - 1
    return {
        "type": "scatter", "mode": "markers", "x": times / per, "y": curve.survival[place],
        "marker": {"symbol": "line-ns-open", "size": 6, "color": colour}, "showlegend": False,
        "hoverinfo": "skip", "name": "censored",
    }  # fmt: skip


def _risk_row(ticks: np.ndarray, at: np.ndarray, height: int, colour: str) -> dict:
    return {
        "type": "scatter", "mode": "text", "x": ticks, "y": np.full(len(ticks), height), "yaxis": "y2",
        "text": [str(n) for n in at], "textfont": {"size": 11.5, "color": colour}, "showlegend": False,
        "hoverinfo": "skip", "name": "at risk", "cliponaxis": False,
    }  # fmt: skip
