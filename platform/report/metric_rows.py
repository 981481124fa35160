"""Selecting rows of the metrics table and arranging them in a table of the report."""

import re
from collections.abc import Iterable
from typing import Any

import pandas as pd

from equipoise.platform.evaluation.metric_definitions import CHANCE_LEVEL
from equipoise.platform.report.blocks import Cell, Table, Tone
from equipoise.platform.report.captions import ESTIMANDS, FEW_CASES, compare_with_chance, few_cases
from equipoise.platform.report.formatting import (
    count,
    estimate,
    label,
    number,
    percent,
    plural,
    procedure_interval,
)
from equipoise.platform.report.run_files import RunFiles, Task
from equipoise.platform.report.style import Download, slug

#: A row of the metrics table.
Row = dict[str, Any]

#: Values of ``cohort`` that stand for all cohorts: the mean of the values within them, and all patients together.
TOGETHER = ("all", "pooled")

#: What the colours of values mean, for captions of tables that use :func:`tone`.
TONES = (
    "Green: the intervals lie above a predictor without information. Amber: they do not, or the value rests on fewer "
    f"than {FEW_CASES} events or patients of a class. Red: the interval lies below."
)

#: Metrics in the order in which a table shows them.
ORDER = (
    "auroc", "auprc", "balanced_accuracy", "sensitivity", "specificity", "threshold",
    "pearson", "r2", "mae", "c_index", "c_stratified", "c_uno", "auc_dynamic", "ibs",
    "silhouette_cosine", "silhouette_euclidean",
)  # fmt: skip


def pick(rows: Iterable[Row], **wanted: str) -> list[Row]:
    """Rows of the model over all folds and sites that match; ``cls`` stands for the column ``class``."""
    filters = {"site": "all", "fold": "all", "cls": "", "predictor": "model"} | wanted
    exact = {("class" if column == "cls" else column): value for column, value in filters.items()}
    return [row for row in rows if all(row[column] == value for column, value in exact.items())]


def internal(run: RunFiles, task: str, metric: str) -> Row | None:
    """Cross-validation row of a metric over all cohorts."""
    rows = pick(run.metric_rows, role="test", cohort="all", task=task, metric=metric)
    return rows[0] if rows else None


def external(run: RunFiles, task: str, metric: str) -> list[Row]:
    """One row per external cohort."""
    rows = pick(run.metric_rows, role="external", task=task, metric=metric)
    return [row for row in rows if row["cohort"] not in TOGETHER]


def fold_count(run: RunFiles, task: str) -> int:
    """Number of test folds of a task."""
    rows = (r for r in run.metric_rows if r["role"] == "test" and r["task"] == task)
    return len({r["fold"] for r in rows} - {"all"})


def chance_level(run: RunFiles, task: str, metric: str) -> float | None:
    """Value of a predictor without information: from the baselines of the table, else the known constant."""
    row = _trivial([r for r in run.metric_rows if r["task"] == task], "", metric)
    known = row is not None and pd.notna(row["value"])
    return float(row["value"]) if row is not None and known else CHANCE_LEVEL.get(metric)


def tone(row: Row, chance: float | None) -> Tone:
    """Colour of a value: never more than its intervals say.

    ``good`` only if every interval of the row lies above a predictor without information and the row does not rest on
    few cases; ``bad`` if the interval for these models lies below it, equally only with enough cases; ``warn`` in
    between; ``muted`` without an interval.
    """
    position = compare_with_chance(row, chance)
    if position == "unknown" or chance is None:
        return "muted"
    if position == "unclear" or few_cases(row):
        return "warn"
    if position == "below":
        return "bad"
    low = row.get("low_procedure")
    return "warn" if low is not None and pd.notna(low) and low <= chance else "good"


def metric_table(run: RunFiles, task: Task) -> Table | None:
    """Every metric of a task: cross-validation, spread of the folds, external cohorts, baseline."""
    rows = [r for r in run.metric_rows if r["task"] == task.name]
    computed = {(r["class"], r["metric"]) for r in rows if r["predictor"] == "model" and r["fold"] == "all"}
    if not computed:
        return None
    cohorts = sorted({r["cohort"] for r in rows if r["role"] == "external"} - {*TOGETHER})
    pooled = any(r["role"] == "test" and r["cohort"] == "pooled" for r in rows)
    datasets = [("test", "all"), *[("test", "pooled")] * pooled, *[("external", c) for c in cohorts]]
    notes: list[str] = []
    lines = []
    for cls in sorted({cls for cls, _ in computed}):
        for metric in [m for m in ORDER if (cls, m) in computed]:
            cells: list[str | Cell] = [f"{label(metric)}, {cls}" if cls else label(metric)]
            for role, cohort in datasets:
                cells.append(_value(pick(rows, role=role, cohort=cohort, cls=cls, metric=metric), notes))
                if (role, cohort) == ("test", "all"):
                    cells += [_spread(rows, cls, metric), _baseline(_trivial(rows, cls, metric))]
            lines.append(cells)
    level = f"{percent(run.confidence)} CI"
    test = f"Test folds, mean within {_within(run)} ({level})" if pooled else f"Test folds ({level})"
    columns = ["Metric", test, "Folds, min–max", "Trivial predictor"]
    columns += [f"Test folds, pooled ({level})"] * pooled
    columns += [f"External {c} ({level})" for c in cohorts]
    return Table(
        columns,
        lines,
        caption=f"{_counts(rows, datasets)} Values: {ESTIMANDS}".strip(),
        numeric=frozenset(range(1, len(columns))),
        footnotes=notes,
        download=Download(f"metrics-{slug(task.name)}.csv", pd.DataFrame(rows)),
    )


def _within(run: RunFiles) -> str:
    """What the study compares patients within."""
    evaluation = run.study.get("evaluation") or {}
    return " and ".join(evaluation.get("within") or ["cohort"])


def first_sentence(note: str) -> str:
    """A note up to its first semicolon, for cells with little room."""
    return re.split(r";\s", note, maxsplit=1)[0]


def _value(rows: list[Row], notes: list[str]) -> Cell:
    if not rows:
        return Cell("–", tone="muted")
    row = rows[0]
    mark = ""
    if row["note"]:
        if row["note"] not in notes:
            notes.append(row["note"])
        mark = str(notes.index(row["note"]) + 1)
    tone: Tone = "" if pd.notna(row["value"]) else "muted"
    return Cell(estimate(row), note=procedure_interval(row), tone=tone, mark=mark)


def _spread(rows: list[Row], cls: str, metric: str) -> Cell:
    same = [r for r in rows if r["role"] == "test" and r["metric"] == metric and r["class"] == cls]
    same = [r for r in same if r["cohort"] == "all" and r["fold"] != "all"]
    values = [r["value"] for r in same if pd.notna(r["value"])]
    return Cell(f"{number(min(values))} to {number(max(values))}" if len(values) > 1 else "–", tone="muted")


def _trivial(rows: list[Row], cls: str, metric: str) -> Row | None:
    """Row of the predictor without information over all test folds."""
    same = [r for r in rows if r["predictor"] != "model" and r["role"] == "test" and r["cohort"] == "all"]
    return next((r for r in same if r["class"] == cls and r["metric"] == metric), None)


def _baseline(row: Row | None) -> Cell:
    if row is None:
        return Cell("–", tone="muted")
    return Cell(number(row["value"]), tone="muted", note=row["predictor"])


def _counts(rows: list[Row], datasets: list[tuple[str, str]]) -> str:
    """Numbers of patients and of positives or events for each column."""
    parts = []
    for role, cohort in datasets:
        matching = [r for r in rows if r["role"] == role and r["cohort"] == cohort and r["site"] == "all"]
        if matching:
            row = matching[0]
            positives = "" if pd.isna(row["n_pos"]) else f", {_positives(row)}"
            if cohort == "pooled":  # the same patients
                continue
            where = "Test folds" if role == "test" else cohort
            parts.append(f"{where}: {plural(int(row['n']), 'labelled patient')}{positives}")
    return "; ".join(parts) + "." if parts else ""


def _positives(row: Row) -> str:
    if row["kind"] == "survival":
        return plural(int(row["n_pos"]), "event")
    of_class = f" ({row['class']})" if row["class"] else ""
    return f"{count(row['n_pos'])} positive{of_class}"
