"""Regression tasks: predicted against measured, correlation, R², error."""

import numpy as np
import pandas as pd

from equipoise.platform.evaluation.predictions import labelled
from equipoise.platform.evaluation.thresholds import ensemble
from equipoise.platform.report.baseline_rows import baseline_blocks
from equipoise.platform.report.blocks import Block, Heading, Section, figures_with
from equipoise.platform.report.entries import SectionParams
from equipoise.platform.report.metric_rows import metric_table
from equipoise.platform.report.run_files import RunFiles
from equipoise.platform.report.style import (
    FAINT,
    MAX_POINTS,
    SERIES,
    Figure,
    layout,
    line,
    slug,
    text,
)


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
        blocks += [*figures_with(figures, metric_table(run, task)), *baseline_blocks(run, task)]
    lead = "Predicted quantities. Predicting the mean has an R² near 0; a model with a lower R² is worse than the mean."
    return Section("Regression", lead, blocks)


def _figures(task: str, rows: pd.DataFrame) -> list[Figure]:
    known = rows[labelled(rows)]
    internal, external = known[known["role"] == "test"], known[known["role"] == "external"]
    # A patient who was tested in several repeats is one dot at the mean prediction.
    figures = [scatter(ensemble(internal), task, "test folds")] if len(internal) else []
    if len(external):
        figures.append(scatter(ensemble(external), task, "external cohorts", first_colour=1))
    return [f for f in figures if f is not None]


def scatter(rows: pd.DataFrame, task: str, dataset: str, first_colour: int = 0) -> Figure | None:
    """Predicted against measured, one dot per patient, coloured by cohort, with the identity line.

    Parameters
    ----------
    rows
        One labelled row per patient: ``patient, cohort, target, score``.
    dataset
        Name of the data set, for the title.
    first_colour
        Offset into the palette, so that external cohorts differ from internal ones.
    """
    if rows.empty:
        return None
    shown = rows.iloc[
        np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MAX_POINTS)).round().astype(int))
    ]
    values = np.r_[rows["target"], rows["score"]].astype(float)
    pad = 0.05 * (np.ptp(values) or 1.0)
    ends = [values.min() - pad, values.max() + pad]
    data = [line(ends, ends, "predicted = measured", FAINT, 1.4, line={"dash": "dot"}, hoverinfo="skip")]
    for index, (cohort, part) in enumerate(shown.groupby("cohort", sort=True)):
        colour = SERIES[(first_colour + index) % len(SERIES)]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": part["target"].to_numpy(),
                "y": part["score"].to_numpy(),
                "name": text(cohort),
                "text": [text(p) for p in part["patient"]],
                "marker": {"size": 6.5, "color": colour, "opacity": 0.62, "line": {"width": 0}},
                "hovertemplate": "%{text}<br>measured %{x:.3g}<br>predicted %{y:.3g}<extra></extra>",
            }
        )
    note = (
        "" if len(shown) == len(rows) else f" {len(shown)} of {len(rows)} patients are drawn, evenly spaced."
    )
    return Figure(
        slug("scatter", task, dataset),
        f"Predicted against measured, {dataset}",
        data,
        layout(
            "Measured",
            "Predicted",
            xaxis={"range": ends},
            yaxis={"range": ends},
        ),
        "One dot per patient. On the dotted line the prediction equals the measurement; a cloud flatter "
        "than the line "
        "means that extreme values are predicted too close to the mean." + note,
        shown[["patient", "cohort", "target", "score"]].rename(
            columns={"target": "measured", "score": "predicted"}
        ),
    )
