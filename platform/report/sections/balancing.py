"""Balancing: weights of the tasks, conflicts between their gradients, and cosines, over the epochs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from equipoise.platform.registry import entries
from equipoise.platform.report.blocks import Block, Cell, Figures, Section, Table, Text
from equipoise.platform.report.entries import SectionParams
from equipoise.platform.report.formatting import number, percent, plural
from equipoise.platform.report.run_files import RunFiles
from equipoise.platform.report.style import (
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
from equipoise.platform.training.params import BalancingParams
from equipoise.platform.training.weight_convergence import learns_weights, weight_convergence

_PREFIX = "weight/"
#: Relative change of a weight below which it counts as constant.
_CONSTANT = 1e-3


def build(run: RunFiles, params: SectionParams) -> Section | None:
    """Weights, conflicts and cosines; nothing for a single task or a run that did not record them."""
    histories = run.histories
    columns = dict.fromkeys(
        str(c) for table in histories.values() for c in table if str(c).startswith(_PREFIX)
    )
    recorded = [column.removeprefix(_PREFIX) for column in columns]
    if len(recorded) < 2:
        return None
    order = [task.name for task in run.tasks if task.name in recorded]
    tasks = [*order, *[task for task in recorded if task not in order]]
    cosine = cosine_matrix(histories, tasks)
    place = compared_at(run.study)
    fixed = _fixed_weights(histories, tasks)
    conflicts = conflict_curve(histories, place)
    figures = [
        None if fixed else weight_curves(histories, tasks),
        conflicts,
        cosine_figure(cosine, place),
    ]
    # Weights that never change are said in the sentence above: neither curves nor a table have more to show.
    table = None if fixed else _table(histories, tasks)
    blocks: list[Block] = []
    if shown := [f for f in figures if f is not None]:
        blocks.append(Figures(shown, beside=table))
    if conflicts is None:
        blocks.append(
            Text(
                "Conflicts were not measured: this balancer does not need gradients per task, and computing them only "
                "for the report would cost a backward pass for each task.",
                tone="muted",
            )
        )
    if warning := weights_remark(run):
        blocks.insert(0, Text(warning, tone="warn"))
    return Section("Balancing", _sentence(run, histories, tasks, cosine), blocks)


def weights_remark(run: RunFiles) -> str:
    """That learned loss weights did not move or had not settled, and in how many folds; nothing otherwise."""
    balancing = run.study.get("balancing")
    weighting = str(balancing.get("weighting", "")) if isinstance(balancing, Mapping) else ""
    if not learns_weights(weighting):
        return ""
    found = [
        weight_convergence(
            [{str(k): v for k, v in row.items()} for row in table.to_dict("records")],
            [str(c).removeprefix(_PREFIX) for c in table if str(c).startswith(_PREFIX)],
        ).problem
        for table in run.histories.values()
    ]
    lines = [
        f"in {found.count(problem)} of {plural(len(found), 'fold')} the weights of {weighting} {problem}"
        for problem in dict.fromkeys(found)
        if problem
    ]
    if not lines:
        return ""
    said = " and ".join(lines)
    return (
        f"{said[0].upper()}{said[1:]} before training ended, so this run shows less than the method can do: train for "
        "more epochs, or raise reach or lr in balancing.weighting_params."
    )


def _fixed_weights(histories: Mapping[str, pd.DataFrame], tasks: Sequence[str]) -> dict[str, float]:
    """Weight of each task if it is the same in every epoch of every fold; empty if any of them changes."""
    found = {}
    for task in tasks:
        columns = [t[_PREFIX + task].dropna() for t in histories.values() if _PREFIX + task in t]
        values = np.concatenate([np.empty(0), *columns])
        if not len(values) or np.ptp(values) > _CONSTANT * np.abs(values).max():
            return {}
        found[task] = float(values[0])
    return found


def compared_at(study: Mapping[str, object]) -> str:
    """Where gradients of tasks were compared."""
    balancing = study.get("balancing")
    at = balancing.get("at") if isinstance(balancing, Mapping) else None
    return "at the shared representation" if at == "representation" else "on shared parameters"


def method_name(study: Mapping[str, object]) -> str:
    """``uncertainty+pcgrad``; a slot that does nothing is left out, and both together are ``equal``."""
    balancing = study.get("balancing")
    slots = balancing if isinstance(balancing, Mapping) else {}
    defaults = BalancingParams()
    weighting = str(slots.get("weighting", defaults.weighting))
    aggregation = str(slots.get("aggregation", defaults.aggregation))
    # A method that another package added need not be installed where its run is read.
    first, second = entries("weightings").get(weighting), entries("aggregators").get(aggregation)
    if second is not None and second.attribute("kind") == "none":
        return weighting
    return aggregation if first is not None and first.attribute("neutral") else f"{weighting}+{aggregation}"


def _sentence(
    run: RunFiles, histories: Mapping[str, pd.DataFrame], tasks: list[str], cosine: pd.DataFrame
) -> str:
    """Weights and conflicts, in one sentence."""
    fixed = _fixed_weights(histories, tasks)
    ends = {task: _ends(histories, task) for task in tasks}
    known = {task: last for task, (_, last) in ends.items() if math.isfinite(last)}
    changed = any(abs(last - first) > _CONSTANT * max(abs(first), abs(last)) for first, last in ends.values())
    unequal = known and max(known.values()) - min(known.values()) > _CONSTANT * max(map(abs, known.values()))
    most, least = (pick(known, key=lambda t: known[t]) if known else "" for pick in (max, min))
    if not changed and not unequal:
        weights = "all tasks kept the same weight"
    elif fixed:
        weights = "fixed weights, " + ", ".join(f"{task} {number(w, 2)}" for task, w in fixed.items())
    else:
        when = "at the end the most weight was" if changed else "the most weight was always"
        weights = f"{when} on {most} ({number(known[most], 2)}) and the least on {least} ({number(known[least], 2)})"
    start = f"Balancing method {method_name(run.study)}: {weights}"
    rates = over_folds(histories, "conflict_rate")
    if rates.empty:
        return f"{start}."
    rate = float((rates["mean"] * rates["folds"]).sum() / rates["folds"].sum())
    off = cosine.where(cosine.index.to_numpy()[:, None] != cosine.columns.to_numpy()).stack()
    worst = ""
    if len(off):
        (a, b), low = off.idxmin(), number(float(off.min()), 2)
        pair = f"; {a} and {b} agree least (mean cosine {low})"
        worst = pair if len(tasks) > 2 else f" (mean cosine {low})"
    return f"{start}. The gradients of two tasks were in conflict in {percent(rate)} of the steps and pairs{worst}."


def _ends(histories: Mapping[str, pd.DataFrame], task: str) -> tuple[float, float]:
    """Mean over folds of a task's weight in the first and in the last epoch of each."""
    columns = [t[_PREFIX + task].dropna() for t in histories.values() if _PREFIX + task in t]
    columns = [c for c in columns if len(c)]
    if not columns:
        return float("nan"), float("nan")
    first, last = (sum(float(c.iloc[i]) for c in columns) / len(columns) for i in (0, -1))
    return first, last


def _table(histories: Mapping[str, pd.DataFrame], tasks: list[str]) -> Table:
    rows: list[list[str | Cell]] = []
    for task in tasks:
        first, last = _ends(histories, task)
        ends = [float(t[_PREFIX + task].dropna().iloc[-1]) for t in histories.values()
                if _PREFIX + task in t and t[_PREFIX + task].notna().any()]  # fmt: skip
        spread = f"{number(min(ends))} to {number(max(ends))}" if len(ends) > 1 else "–"
        rows.append([task, number(first), number(last), Cell(spread, tone="muted")])
    return Table(
        ["Task", "First epoch", "Last epoch", "Folds, min–max"],
        rows,
        caption="Weights, means over the folds.",
        numeric=frozenset([1, 2, 3]),
    )


#: Red for conflicting gradients, white for orthogonal ones, blue for the same direction.
_SCALE = [[0.0, HIGH_RISK], [0.5, "#ffffff"], [1.0, INTERNAL]]
#: Maximum number of tasks with bands; more bands would hide each other.
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
    for index, task in enumerate(tasks):
        table = over_folds(histories, f"weight/{task}")
        if table.empty:
            continue
        tables.append(table.assign(task=task))
        colour = SERIES[index % len(SERIES)]
        dash = {} if index < len(SERIES) else {"line": {"dash": "dot"}}
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
        "weighting. A task whose weight falls towards 0 is hardly trained any more.",
        pd.concat(tables, ignore_index=True)[["task", "epoch", "mean", "low", "high", "folds"]],
        height=330,
    )


def conflict_curve(
    histories: Mapping[str, pd.DataFrame], place: str = "on shared parameters"
) -> Figure | None:
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
        f"Share of training steps and pairs of tasks in which the two gradients {place} had a negative "
        "product. One half is expected for unrelated directions; far above it, the tasks are in conflict.",
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
            means = [table[name].mean() for table in histories.values() for name in names if name in table]
            known = [value for value in means if pd.notna(value)]
            cosine[i, j] = cosine[j, i] = np.mean(known) if known else np.nan
    return pd.DataFrame(cosine, index=list(tasks), columns=list(tasks))


def cosine_figure(cosine: pd.DataFrame, place: str = "on shared parameters") -> Figure | None:
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
        "Cosines between the gradients of the tasks",
        data,
        shape,
        f"Mean cosine between the gradients of two tasks {place}, over all epochs and folds: 1 is the "
        "same direction, 0 is orthogonal, below 0 the gradients conflict.",
        table,
        height=max(330, 90 + 44 * len(names)),
    )
