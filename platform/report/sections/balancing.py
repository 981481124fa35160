"""Balancing: how much each task counted, how often tasks were in conflict, and what the balancer made of it."""

import math
from collections.abc import Mapping

import pandas as pd

from equipoise.platform.report.blocks import Block, Cell, Figures, Section, Table, Text
from equipoise.platform.report.entries import SectionParams
from equipoise.platform.report.figures.balancing import (
    conflict_curve,
    cosine_figure,
    cosine_matrix,
    over_folds,
    weight_curves,
)
from equipoise.platform.report.formatting import number, percent
from equipoise.platform.report.run_files import RunFiles

_PREFIX = "weight/"
#: Relative change of a weight below which it is said to have stayed.
_STILL = 1e-3


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
    figures = [weight_curves(histories, tasks), conflict_curve(histories), cosine_figure(cosine)]
    blocks: list[Block] = [Figures([f for f in figures if f is not None], beside=_table(histories, tasks))]
    if figures[1] is None:
        blocks.append(
            Text(
                "Conflicts were not measured: this balancer needs no gradients per task, and computing them only to "
                "look at would cost a backward pass for each task.",
                tone="muted",
            )
        )
    return Section("Balancing", _sentence(run, histories, tasks, cosine), blocks)


def method(study: Mapping[str, object]) -> str:
    """``uncertainty+pcgrad``; a slot that does nothing is left out, and both together are ``equal``."""
    balancing = study.get("balancing")
    chosen = balancing if isinstance(balancing, Mapping) else {}
    weighting, aggregation = str(chosen.get("weighting", "equal")), str(chosen.get("aggregation", "none"))
    if aggregation == "none":
        return weighting
    return aggregation if weighting == "equal" else f"{weighting}+{aggregation}"


def _sentence(
    run: RunFiles, histories: Mapping[str, pd.DataFrame], tasks: list[str], cosine: pd.DataFrame
) -> str:
    """What the balancer did, in one sentence."""
    ends = {task: _ends(histories, task) for task in tasks}
    known = {task: last for task, (_, last) in ends.items() if math.isfinite(last)}
    moved = any(abs(last - first) > _STILL * max(abs(first), abs(last)) for first, last in ends.values())
    apart = known and max(known.values()) - min(known.values()) > _STILL * max(map(abs, known.values()))
    most, least = (pick(known, key=lambda t: known[t]) if known else "" for pick in (max, min))
    if not moved and not apart:
        weights = "kept all tasks at the same weight"
    else:
        verb = "ended with" if moved else "kept"
        weights = (
            f"{verb} the most weight on {most} ({number(known[most], 2)}) and the least on {least} "
            f"({number(known[least], 2)})"
        )
    rates = over_folds(histories, "conflict_rate")
    if rates.empty:
        return f"{method(run.study)} {weights}."
    rate = float((rates["mean"] * rates["folds"]).sum() / rates["folds"].sum())
    off = cosine.where(cosine.index.to_numpy()[:, None] != cosine.columns.to_numpy()).stack()
    worst = ""
    if len(off):
        (a, b), low = off.idxmin(), number(float(off.min()), 2)
        words = f"; {a} and {b} agree least (mean cosine {low})"
        worst = words if len(tasks) > 2 else f" (mean cosine {low})"
    return (
        f"{method(run.study)} {weights}; in {percent(rate)} of steps and pairs of tasks gradients pointed against each "
        f"other{worst}."
    )


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
