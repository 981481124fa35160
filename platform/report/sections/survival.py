"""Survival tasks: Kaplan-Meier curves of predicted-risk groups, concordances, and Cox models of the risk."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from equipoise.platform.evaluation.predictions import labelled
from equipoise.platform.evaluation.survival import (
    LogRank,
    SurvivalCurve,
    kaplan_meier,
    log_rank,
    median_follow_up,
    median_survival,
    number_at_risk,
    stratified_log_rank,
)
from equipoise.platform.evaluation.survival_calibration import YEAR
from equipoise.platform.evaluation.thresholds import (
    apply_cutoffs,
    fold_risk_cutoffs,
    risk_scales,
    standardise_risks,
)
from equipoise.platform.report.baseline_rows import baseline_blocks
from equipoise.platform.report.blocks import (
    Block,
    Cell,
    Figures,
    Heading,
    Notice,
    Section,
    Table,
    figures_with,
)
from equipoise.platform.report.datasets import Dataset, datasets_of
from equipoise.platform.report.decision_remarks import remarks_of
from equipoise.platform.report.entries import SectionParams
from equipoise.platform.report.formatting import count, number, p_value, percent
from equipoise.platform.report.metric_rows import metric_table
from equipoise.platform.report.probability_figures import decision_figure
from equipoise.platform.report.run_files import RunFiles, Task
from equipoise.platform.report.style import (
    FAINT,
    HIGH_RISK,
    LOW_RISK,
    SOFT,
    Download,
    Figure,
    axis,
    band,
    layout,
    line,
    slug,
    text,
    unit_square,
)

_MONTH = YEAR / 12
#: Decision curves that are drawn: of the test folds and of external cohorts.
_SHOWN = 3


def build(run: RunFiles, params: SectionParams) -> Section | None:
    """One part per task."""
    tasks = [t for t in run.tasks if t.kind == "survival"]
    if not tasks:
        return None
    needed = (
        "evaluation/predictions.parquet",
        "evaluation/metrics.csv",
        "evaluation/survival_calibration.csv",
        "evaluation/survival_decision_curves.csv",
    )
    blocks: list[Block] = [*run.missing(*needed)]
    for task in tasks:
        blocks.append(Heading(task.name))
        if run.predictions is not None:
            rows = run.predictions[run.predictions["task"] == task.name]
            blocks += _curves(run, task, rows)
        elif table := metric_table(run, task):
            blocks.append(table)
        if remarks := list(remarks_of(run, task)):
            blocks.append(Notice("The risk groups tell nobody apart", remarks))
        blocks += _calibration(run, task)
        blocks += _decision_curves(run, task)
        if hazards := _hazard_ratios(run, task):
            blocks.append(hazards)
        blocks += baseline_blocks(run, task)
    lead = "Ranking of patients by predicted risk, and predicted survival. "
    lead += "The cut-off between the groups is chosen on validation patients."
    return Section("Survival", lead, blocks)


def _curves(run: RunFiles, task: Task, rows: pd.DataFrame) -> list[Block]:
    known = rows[labelled(rows)]
    external, cutoffs = known[known["role"] == "external"], fold_risk_cutoffs(rows)
    datasets = [("test folds", known[known["role"] == "test"], cutoffs)]
    scales = risk_scales(rows)
    if len(scales):  # several models predict a patient: their risks need a common scale, as in the ensemble
        external, cutoffs = (
            standardise_risks(external, scales),
            fold_risk_cutoffs(standardise_risks(rows, scales)),
        )
    datasets += [(f"external {c}", part, cutoffs) for c, part in external.groupby("cohort", sort=True)]
    figures, lines, skipped = [], [], []
    for dataset, part, dataset_cutoffs in datasets:
        if part.empty:
            continue
        patients = apply_cutoffs(part, dataset_cutoffs, inclusive=False)
        groups = patients.dropna(subset=["margin"])
        if len(groups) < len(patients):
            skipped.append(
                f"{dataset}: {count(len(patients) - len(groups))} patients, no validation risk in their fold"
            )
        if figure := kaplan_meier_figure(groups, task.name, dataset, run.confidence):
            figures.append(figure)
            lines += _summary(dataset, groups)
    blocks = figures_with(figures, metric_table(run, task))
    if skipped:
        blocks.append(Notice("Patients without a risk group", skipped))
    if lines:
        columns = [
            "",
            "Patients",
            "Events",
            "Median survival, months",
            "Median follow-up, months",
            "Log-rank",
        ]
        blocks.append(Table(columns, lines, numeric=frozenset(range(1, 6))))
    return blocks


def _calibration(run: RunFiles, task: Task) -> list[Block]:
    """Predicted against observed shares with an event at the horizon, as a figure and a table."""
    datasets = list(datasets_of(run.survival_calibration, task.name))
    if not datasets:
        return []
    figures = [horizon_figure([data for data in datasets if data.rows["observed"].notna().any()], task.name)]
    lines: list[list[str | Cell]] = []
    notes: list[str] = []
    for data in datasets:
        for row in data.rows.to_dict("records"):
            together = row["group"] == "all"
            if row["note"] and row["note"] not in notes:
                notes.append(row["note"])
            mark = str(notes.index(row["note"]) + 1) if row["note"] and together else ""
            years = f"after {number(row['horizon'] / YEAR, 1)} years" if pd.notna(row["horizon"]) else ""
            known = pd.notna(row["observed"])
            observed = f"{percent(row['observed'])} ({_bounds(row)})" if known else "not estimable"
            lines.append(
                [
                    Cell(data.name, note=years) if together else "",
                    Cell("all" if together else row["group"], mark=mark),
                    count(row["n"]),
                    count(row["events"]),
                    percent(row["predicted"]),
                    Cell(observed, tone="" if known else "muted"),
                ]
            )
    columns = ["Patients", "Risk group", "n", "Events", "Predicted", "Observed"]
    table = Table(
        columns,
        lines,
        "Share of patients with an event until the horizon, in groups of rising predicted risk: predicted on average, "
        f"and observed (one minus Kaplan–Meier, {percent(run.confidence)} intervals). Survival is predicted by Cox's "
        "model of the risk, fitted to validation patients.",
        frozenset(range(2, 6)),
        footnotes=notes,
        download=Download(
            f"survival-calibration-{slug(task.name)}.csv", pd.concat([d.rows for d in datasets])
        ),
    )
    return figures_with([figure for figure in figures if figure is not None], table)


def _decision_curves(run: RunFiles, task: Task) -> list[Block]:
    """Net benefit at the horizon in the test folds and the first external cohorts."""
    datasets = list(datasets_of(run.survival_decision_curves, task.name))[:_SHOWN]
    known = [data for data in datasets if data.rows["net_benefit"].notna().all()]
    figures = [decision_figure(data, task.name, run.confidence) for data in known]
    drawn = [figure for figure in figures if figure is not None]
    return [Figures(drawn)] if drawn else []


def _bounds(row: dict) -> str:
    if pd.isna(row["low"]) or pd.isna(row["high"]):
        return "no interval"
    return f"{percent(row['low']).removesuffix(' %')}–{percent(row['high'])}"


def horizon_figure(datasets: Sequence[Dataset], task: str) -> Figure | None:
    """Observed against predicted share with an event at the horizon, a point per group of predicted risk."""
    shown = [data for data in datasets if len(data.rows)]
    if not shown:
        return None
    traces = [line([0, 1], [0, 1], "perfect", FAINT, 1.2, line={"dash": "dot"}, hoverinfo="skip")]
    for data in shown:
        groups = data.rows[data.rows["group"] != "all"]
        rows = (groups if len(groups) else data.rows).dropna(subset=["observed"])
        observed = rows["observed"].to_numpy(float)
        traces.append(
            {
                "type": "scatter", "mode": "lines+markers", "x": rows["predicted"].to_numpy(float), "y": observed,
                "name": f"{text(data.name)}, {number(float(rows['horizon'].iloc[0]) / YEAR, 1)} years",
                "line": {"color": data.colour, "width": 1.4}, "marker": {"color": data.colour, "size": 8},
                "error_y": {"type": "data", "symmetric": False, "color": data.colour, "thickness": 1.4, "width": 0,
                            "array": rows["high"].to_numpy(float) - observed,
                            "arrayminus": observed - rows["low"].to_numpy(float)},
                "text": [f"{int(n)} patients" for n in rows["n"]],
                "hovertemplate": "predicted %{x:.0%}<br>observed %{y:.0%}<br>%{text}<extra></extra>",
            }
        )  # fmt: skip
    return Figure(
        slug("survival-calibration", task),
        "Calibration of predicted survival",
        traces,
        unit_square("Predicted share with an event", "Observed share with an event"),
        "Each point is a group of patients with similar predicted risk: the share that has had an event by the horizon "
        "against the predicted share. Above the dotted line more patients have an event than predicted.",
        pd.concat([data.rows.assign(patients=data.name) for data in shown], ignore_index=True),
    )


def _summary(dataset: str, groups: pd.DataFrame) -> list[list[str | Cell]]:
    test = risk_group_test(groups)
    lines: list[list[str | Cell]] = []
    for name, high in (("low risk", False), ("high risk", True)):
        part = groups[groups["positive"] == high]
        lines.append(
            [
                f"{dataset}, {name}",
                count(len(part)),
                count(int(part["event"].sum())),
                _months(median_survival(kaplan_meier(part["time"], part["event"])) if len(part) else None),
                _months(median_follow_up(part["time"], part["event"]) if len(part) else None),
                p_value(test.p) if high else "",
            ]
        )
    return lines


def risk_group_test(groups: pd.DataFrame) -> LogRank:
    """Log-rank test of low against high risk, within cohorts where there are several."""
    if "cohort" in groups and groups["cohort"].nunique() > 1:
        return stratified_log_rank(groups["time"], groups["event"], groups["positive"], groups["cohort"])
    return log_rank(groups["time"], groups["event"], groups["positive"])


def _hazard_ratios(run: RunFiles, task: Task) -> Table | None:
    """Cox models of the predicted risk, alone and beside the study's covariates."""
    rows = [] if run.cox is None else run.cox[run.cox["task"] == task.name].to_dict("records")
    if not rows:
        return None
    lines: list[list[str | Cell]] = []
    notes: list[str] = []
    for row in rows:
        if row["note"] and row["note"] not in notes:
            notes.append(row["note"])
        mark = str(notes.index(row["note"]) + 1) if row["note"] else ""
        known = row["hr"] == row["hr"]
        ratio = f"{number(row['hr'], 2)} ({number(row['low'], 2)} to {number(row['high'], 2)})"
        lines.append(
            [
                "test folds" if row["role"] == "test" else "external cohorts",
                row["model"],
                f"{row['term']}, per SD" if row["unit"] == "SD" else row["term"],
                Cell(ratio if known else "not estimable", tone="" if known else "muted", mark=mark),
                p_value(row["p"]) if known else "–",
                count(row["n"]),
                count(row["events"]),
            ]
        )
    columns = [
        "",
        "Cox model",
        "Term",
        f"Hazard ratio ({percent(run.confidence)} CI)",
        "p",
        "Patients",
        "Events",
    ]
    strata = " Baseline hazards are those of each cohort." if any(row["strata"] for row in rows) else ""
    caption = (
        "Whether the predicted risk is an independent predictor: its hazard ratio alone, and beside the study's "
        f"covariates.{strata} Intervals are for these models on these patients."
    )
    return Table(columns, lines, caption, frozenset(range(3, 7)), footnotes=notes)


def _months(days: float | None) -> Cell:
    if days is None or days != days:
        return Cell("not reached", tone="muted")
    return Cell(number(days / _MONTH, 1))


_GROUPS = (("low risk", False, LOW_RISK), ("high risk", True, HIGH_RISK))


def kaplan_meier_figure(groups: pd.DataFrame, task: str, dataset: str, confidence: float) -> Figure | None:
    """Curves of the groups with low and high predicted risk.

    Parameters
    ----------
    groups
        One row per patient: ``time`` (days), ``event``, ``positive`` (high risk).

    Returns
    -------
    None if there is no patient. If there is one group only, its curve is drawn and there is no test.
    """
    if groups.empty:
        return None
    unit, per = ("years", YEAR) if groups["time"].max() > 3 * YEAR else ("months", YEAR / 12)
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
    test = risk_group_test(groups)
    within = " within cohorts" if "cohort" in groups and groups["cohort"].nunique() > 1 else ""
    return Figure(
        slug("kaplan-meier", task, dataset),
        f"Kaplan–Meier by predicted risk, {dataset}",
        data,
        _layout(unit, longest, step, f"log-rank{within} {p_value(test.p)}"),
        "Patients above the median predicted risk of the validation patients (never of these patients) form "
        "the "
        "high-risk group. Curves that separate early and stay separate mean that the prediction distinguishes courses; "
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
    steps = np.searchsorted(curve.time, times, side="right") - 1
    return {
        "type": "scatter", "mode": "markers", "x": times / per, "y": curve.survival[steps],
        "marker": {"symbol": "line-ns-open", "size": 6, "color": colour}, "showlegend": False,
        "hoverinfo": "skip", "name": "censored",
    }  # fmt: skip


def _risk_row(ticks: np.ndarray, at: np.ndarray, height: int, colour: str) -> dict:
    return {
        "type": "scatter", "mode": "text", "x": ticks, "y": np.full(len(ticks), height), "yaxis": "y2",
        "text": [str(n) for n in at], "textfont": {"size": 11.5, "color": colour}, "showlegend": False,
        "hoverinfo": "skip", "name": "at risk", "cliponaxis": False,
    }  # fmt: skip
