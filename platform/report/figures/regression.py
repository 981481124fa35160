"""Scatter of predicted against measured values."""

import numpy as np
import pandas as pd

from equipoise.platform.report.figures.style import (
    FAINT,
    MAX_POINTS,
    SERIES,
    Figure,
    layout,
    line,
    slug,
    text,
)


def scatter(rows: pd.DataFrame, task: str, place: str, first_colour: int = 0) -> Figure | None:
    """Predicted against measured, one dot per patient, coloured by cohort, with the identity line.

    Parameters
    ----------
    rows
        One labelled row per patient: ``patient, cohort, target, score``.
    place
        Where the patients come from, for the title.
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
    for number, (cohort, part) in enumerate(shown.groupby("cohort", sort=True)):
        colour = SERIES[(first_colour + number) % len(SERIES)]
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
        "" if len(shown) == len(rows) else f" {len(shown)} of {len(rows)} patients are drawn, evenly chosen."
    )
    return Figure(
        slug("scatter", task, place),
        f"Predicted against measured, {place}",
        data,
        layout(
            "Measured",
            "Predicted",
            xaxis={"range": ends},
            yaxis={"range": ends},
        ),
        "One dot per patient. On the dotted line the prediction equals the measurement; a cloud flatter "
        "than the line "
        "means that extremes are pulled towards the mean." + note,
        shown[["patient", "cohort", "target", "score"]].rename(
            columns={"target": "measured", "score": "predicted"}
        ),
    )
