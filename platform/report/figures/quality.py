"""Figures about the slides and about training."""

import numpy as np
import pandas as pd

from equipoise.platform.report.figures.style import (
    EXTERNAL,
    INTERNAL,
    SERIES,
    Figure,
    fade,
    layout,
    line,
    slug,
    text,
)


def tiles_histogram(slides: pd.DataFrame) -> Figure | None:
    """How many tiles the used slides have, stacked by cohort."""
    used = slides[(slides["status"] == "ok") & slides["n"].notna()]
    if used.empty:
        return None
    counts = used["n"].to_numpy(int)
    width = -(-(np.ptp(counts) + 1) // 24)  # whole tiles per bar, at most 24 bars
    edges = np.arange(counts.min(), counts.max() + width + 1, width) - 0.5
    centres = (edges[:-1] + edges[1:]) / 2
    data, tables = [], []
    for number, (cohort, part) in enumerate(used.groupby("cohort", sort=True)):
        slides_in, _ = np.histogram(part["n"].to_numpy(float), edges)
        data.append(
            {
                "type": "bar", "x": centres, "y": slides_in, "width": np.diff(edges) * 0.94,
                "name": text(cohort),
                "marker": {"color": SERIES[number % len(SERIES)], "opacity": 0.85},
                "customdata": np.stack([edges[:-1] + 0.5, edges[1:] - 0.5], axis=1),
                "hovertemplate": "%{customdata[0]}–%{customdata[1]} tiles: %{y} slides"
                "<extra>%{fullData.name}</extra>",
            }
        )  # fmt: skip
        tables.append(
            pd.DataFrame(
                {
                    "cohort": cohort,
                    "tiles_from": edges[:-1] + 0.5,
                    "tiles_to": edges[1:] - 0.5,
                    "slides": slides_in,
                }
            )
        )
    return Figure(
        "tiles-per-slide",
        "Tiles per slide",
        data,
        layout(
            "Tiles with tissue",
            "Slides",
            barmode="stack",
            yaxis={"rangemode": "tozero", "tickformat": "d"},
        ),
        "Height is the number of slides with so many tiles. Slides far to the left hold little tissue and "
        "say little; "
        "cohorts that lie apart differ in specimen size or magnification.",
        pd.concat(tables, ignore_index=True),
        height=330,
        wide=True,
    )


def loss_curves(histories: dict[str, pd.DataFrame], train: str, val: str, what: str) -> Figure | None:
    """Training and validation loss per fold over the epochs.

    Parameters
    ----------
    histories
        Fold name → table with ``epoch`` and the two columns.
    train, val
        Names of the columns.
    what
        Task that the loss belongs to, or "all tasks".
    """
    data = []
    for column, name, colour in ((train, "training", INTERNAL), (val, "inner validation", EXTERNAL)):
        first = True
        for fold, table in histories.items():
            if column in table and table[column].notna().any():
                hover = f"fold {text(fold)}, epoch %{{x}}<br>{name} loss %{{y:.3f}}<extra></extra>"
                trace = line(table["epoch"], table[column], name, fade(colour, 0.6), 1.5, hovertemplate=hover)
                data.append({**trace, "legendgroup": name, "showlegend": first})
                first = False
    if not data:
        return None
    return Figure(
        slug("loss", what),
        f"Loss of {what} over the epochs",
        data,
        layout("Epoch", "Loss"),
        "One line per fold. Training loss that falls while validation loss rises is overfitting; the epoch "
        "kept is chosen on the inner validation patients, who are part of neither training nor test.",
        _history_table(histories),
        height=330,
    )


def monitor_curves(histories: dict[str, pd.DataFrame]) -> Figure | None:
    """What early stopping watches, per fold, with the epoch that was kept."""
    data = []
    for number, (fold, table) in enumerate(histories.items()):
        if "monitor" not in table or table["monitor"].isna().all():
            continue
        colour = SERIES[number % len(SERIES)]
        hover = f"fold {text(fold)}, epoch %{{x}}: %{{y:.3f}}<extra></extra>"
        name = f"fold {text(fold)}"
        data.append(line(table["epoch"], table["monitor"], name, colour, 1.6, hovertemplate=hover))
        best = table.loc[table["monitor"].idxmin()]
        marker = {"color": colour, "size": 9, "symbol": "circle-open", "line": {"width": 2}}
        data.append({"type": "scatter", "mode": "markers", "x": [best["epoch"]], "y": [best["monitor"]],
                     "marker": marker, "showlegend": False, "hovertemplate": hover})  # fmt: skip
    if not data:
        return None
    return Figure(
        "monitor",
        "What early stopping watches",
        data,
        layout("Epoch", "Validation loss watched"),
        "One line per fold, over the inner validation patients; the circle is its lowest point, the epoch "
        "whose weights were kept. Folds that stop far apart say that the end of training is partly chance.",
        _history_table(histories),
        height=330,
    )


def _history_table(histories: dict[str, pd.DataFrame]) -> pd.DataFrame:
    return pd.concat([t.assign(fold=f) for f, t in histories.items()], ignore_index=True)
