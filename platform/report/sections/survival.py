"""Survival tasks: Kaplan-Meier curves of predicted-risk groups and Harrell's C."""

import pandas as pd

from equipoise.platform.evaluation.decisions import decide, fold_risk_cuts, risk_scales, standardised
from equipoise.platform.evaluation.predictions import labelled
from equipoise.platform.evaluation.survival_curves import (
    kaplan_meier,
    log_rank,
    median_follow_up,
    median_survival,
)
from equipoise.platform.report.blocks import Block, Cell, Heading, Notice, Section, Table, figures_with
from equipoise.platform.report.entries import SectionParams
from equipoise.platform.report.figures.survival import kaplan_meier_figure
from equipoise.platform.report.formatting import count, number, p_value
from equipoise.platform.report.metric_rows import metric_table
from equipoise.platform.report.run_files import RunFiles, Task

_MONTH = 365.25 / 12


def build(run: RunFiles, params: SectionParams) -> Section | None:
    """One part per task."""
    tasks = [t for t in run.tasks if t.kind == "survival"]
    if not tasks:
        return None
    blocks: list[Block] = [*run.missing("evaluation/predictions.parquet", "evaluation/metrics.csv")]
    for task in tasks:
        blocks.append(Heading(task.name))
        if run.predictions is not None:
            rows = run.predictions[run.predictions["task"] == task.name]
            blocks += _curves(run, task, rows)
        elif table := metric_table(run, task):
            blocks.append(table)
    lead = "Ranking of patients by predicted risk. The cut between the groups comes from validation patients."
    return Section("Survival", lead, blocks)


def _curves(run: RunFiles, task: Task, rows: pd.DataFrame) -> list[Block]:
    known = rows[labelled(rows)]
    abroad, cuts = known[known["role"] == "external"], fold_risk_cuts(rows)
    places = [("test folds", known[known["role"] == "test"], cuts)]
    scales = risk_scales(rows)
    if len(scales):  # several models judge a patient: on one scale, as in the ensemble's concordance
        abroad, cuts = standardised(abroad, scales), fold_risk_cuts(standardised(rows, scales))
    places += [(f"external {c}", part, cuts) for c, part in abroad.groupby("cohort", sort=True)]
    figures, lines, skipped = [], [], []
    for place, part, own in places:
        if part.empty:
            continue
        groups = decide(part, own, at_cut=False)
        judged = groups.dropna(subset=["margin"])
        if len(judged) < len(groups):
            skipped.append(
                f"{place}: {count(len(groups) - len(judged))} patients, no validation risk of their fold"
            )
        if figure := kaplan_meier_figure(judged, task.name, place, run.confidence):
            figures.append(figure)
            lines += _summary(place, judged)
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


def _summary(place: str, groups: pd.DataFrame) -> list[list[str | Cell]]:
    test = log_rank(groups["time"], groups["event"], groups["positive"])
    lines: list[list[str | Cell]] = []
    for name, high in (("low risk", False), ("high risk", True)):
        part = groups[groups["positive"] == high]
        lines.append(
            [
                f"{place}, {name}",
                count(len(part)),
                count(int(part["event"].sum())),
                _months(median_survival(kaplan_meier(part["time"], part["event"])) if len(part) else None),
                _months(median_follow_up(part["time"], part["event"]) if len(part) else None),
                p_value(test.p) if high else "",
            ]
        )
    return lines


def _months(days: float | None) -> Cell:
    if days is None or days != days:
        return Cell("not reached", tone="muted")
    return Cell(number(days / _MONTH, 1))
