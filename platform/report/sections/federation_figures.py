"""Figures of a federation: losses over the rounds, and every site's value under every way of training."""

from collections.abc import Mapping, Sequence

import pandas as pd

from equipoise.platform.report.formatting import estimate, label, percent
from equipoise.platform.report.style import FAINT, SERIES, Figure, fade, layout, line, slug, text

#: Method → colour and marker; federated comes first in the legend.
METHODS: Mapping[str, tuple[str, str]] = {
    "federated": (SERIES[0], "square"),
    "pooled": (SERIES[2], "circle"),
    "local": (SERIES[1], "diamond"),
    "ensemble": (SERIES[3], "triangle-up"),
}
#: Distance between the methods of a site, in units of the distance between sites.
_SPACING = 0.17


def round_curves(rounds: pd.DataFrame, tasks: Sequence[str]) -> Figure | None:
    """Mean loss of each task at the clients over the rounds; several federations are averaged.

    Parameters
    ----------
    rounds
        Columns round, ``loss/<task>`` and, if clients computed it, ``val/<task>``.
    tasks
        In the order of the study.
    """
    data = []
    for task_index, task in enumerate(tasks):
        colour = SERIES[task_index % len(SERIES)]
        for prefix, dash in (("loss/", "solid"), ("val/", "dot")):
            if (column := f"{prefix}{task}") not in rounds or rounds[column].isna().all():
                continue
            mean = rounds.groupby("round")[column].mean().dropna()
            name = text(task) if prefix == "loss/" else f"{text(task)}, validation"
            shade = colour if prefix == "loss/" else fade(colour, 0.8)
            data.append(line(mean.index.tolist(), mean.tolist(), name, shade, line={"dash": dash}))
    if not data:
        return None
    kept = ["plan", "fold", "round", *(c for c in rounds if c.startswith(("loss/", "val/")))]
    return Figure(
        slug("federation", "rounds"),
        "Losses over the rounds",
        data,
        layout("Round", "Mean loss over the clients"),
        "Solid lines are training losses as clients report them, dotted ones losses of the new global model on "
        "the clients' inner validation patients. Rising dotted lines under falling solid ones are overfitting.",
        rounds[kept],
    )


def site_forest(
    rows: pd.DataFrame, task: str, metric: str, chance: float | None, confidence: float
) -> Figure | None:
    """Each site's value under every method, with intervals; the largest site on top.

    Parameters
    ----------
    rows
        Rows of ``sites.csv`` of one plan and task, scope ``client``.
    chance
        Value of a predictor without information, drawn as a line.
    """
    shown = rows[rows["value"].notna()]
    if shown.empty:
        return None
    sizes = shown.groupby("client")["n"].max().sort_values(ascending=False, kind="stable")
    height = {client: len(sizes) - 1 - index for index, client in enumerate(sizes.index)}
    data = []
    for index, (method, (colour, symbol)) in enumerate(METHODS.items()):
        rows_of_method = shown[shown["method"] == method].to_dict("records")
        if not rows_of_method:
            continue
        shift = (1.5 - index) * _SPACING
        data.append(
            {
                "type": "scatter", "mode": "markers", "name": method,
                "x": [r["value"] for r in rows_of_method], "y": [height[r["client"]] + shift for r in rows_of_method],
                "error_x": {
                    "type": "data", "symmetric": False, "color": colour, "thickness": 1.6, "width": 0,
                    "array": [r["high"] - r["value"] if pd.notna(r["high"]) else None for r in rows_of_method],
                    "arrayminus": [r["value"] - r["low"] if pd.notna(r["low"]) else None for r in rows_of_method],
                },
                "marker": {"color": colour, "size": 8, "symbol": symbol},
                "text": [f"{text(r['client'])}, {method}: {estimate(r)}, n = {r['n']}" for r in rows_of_method],
                "hovertemplate": "%{text}<extra></extra>",
            }
        )  # fmt: skip
    names = [text(client) for client in sizes.index]
    drawn = layout(
        label(metric),
        "",
        yaxis={
            "tickvals": list(range(len(names))), "ticktext": names[::-1], "showgrid": False, "ticks": "",
            "range": [-0.6, len(names) - 0.4], "fixedrange": True,
        },
    )  # fmt: skip
    if chance is not None:
        drawn["shapes"] = [
            {"type": "line", "x0": chance, "x1": chance, "y0": 0, "y1": 1, "yref": "paper",
             "line": {"color": FAINT, "width": 1.4, "dash": "dot"}}
        ]  # fmt: skip
    return Figure(
        slug("federation", "sites", task),
        f"{label(metric)} of {text(task)} by site",
        data,
        drawn,
        f"One row per site, one mark per way of training; bars are {percent(confidence)} intervals. Where the "
        "federated mark is to the right of the local one, the site benefits from federation.",
        shown[["client", "method", "value", "low", "high", "n", "n_pos", "note"]],
        height=130 + 44 * len(names),
        wide=True,
    )
