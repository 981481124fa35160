"""Regression tasks: predicted against measured, correlation, R², error."""

import pandas as pd

from equipoise.platform.evaluation.decisions import ensemble
from equipoise.platform.evaluation.predictions import labelled
from equipoise.platform.report.blocks import Block, Heading, Section, figures_with
from equipoise.platform.report.entries import SectionParams
from equipoise.platform.report.figures.regression import scatter
from equipoise.platform.report.figures.style import Figure
from equipoise.platform.report.metric_rows import metric_table
from equipoise.platform.report.run_files import RunFiles


def build(run: RunFiles, params: SectionParams) -> Section | None:
    """One part per task."""
    tasks = [t for t in run.tasks if t.kind == "regression"]
    if not tasks:
        return None
    blocks: list[Block] = [*run.missing("evaluation/predictions.parquet", "evaluation/metrics.csv")]
    for task in tasks:
        blocks.append(Heading(task.name))
        figures = []
        if run.predictions is not None:
            figures = _figures(task.name, run.predictions[run.predictions["task"] == task.name])
        blocks += figures_with(figures, metric_table(run, task))
    lead = "Predicted quantities. A mean predictor has R² near 0: below it the model is worse than the mean."
    return Section("Regression", lead, blocks)


def _figures(task: str, rows: pd.DataFrame) -> list[Figure]:
    known = rows[labelled(rows)]
    inside, outside = known[known["role"] == "test"], known[known["role"] == "external"]
    # A patient who was tested in several repeats is one dot at the mean prediction.
    figures = [scatter(ensemble(inside), task, "test folds")] if len(inside) else []
    if len(outside):
        figures.append(scatter(ensemble(outside), task, "external cohorts", first_colour=1))
    return [f for f in figures if f is not None]
