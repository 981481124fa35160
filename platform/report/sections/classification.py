"""Binary and multiclass tasks: ROC, precision-recall, metrics, 2x2 tables at the validation threshold."""

import numpy as np
import pandas as pd

from equipoise.platform.evaluation.decisions import decide, ensemble, fold_thresholds
from equipoise.platform.evaluation.metrics import confusion
from equipoise.platform.evaluation.params import ThresholdParams
from equipoise.platform.evaluation.predictions import labelled
from equipoise.platform.report.blocks import (
    Block,
    Cell,
    Figures,
    Heading,
    Section,
    Table,
    Tables,
    figures_with,
)
from equipoise.platform.report.entries import SectionParams
from equipoise.platform.report.figures.classification import (
    precision_recall_figure,
    roc_external,
    roc_of_classes,
    roc_of_folds,
)
from equipoise.platform.report.figures.style import Figure
from equipoise.platform.report.formatting import count, percent
from equipoise.platform.report.metric_rows import metric_table
from equipoise.platform.report.run_files import RunFiles, Task

#: Entropy of the ROC bands; a band is a picture of the data, the intervals of the study come from its seed.
_BAND_SEED = 20140923


def build(run: RunFiles, params: SectionParams) -> Section | None:
    """One part per task, the main task first."""
    tasks = [t for t in run.tasks if t.kind in ("binary", "multiclass")]
    if not tasks:
        return None
    blocks: list[Block] = [*run.missing("evaluation/predictions.parquet", "evaluation/metrics.csv")]
    for task in tasks:
        blocks.append(Heading(task.name))
        table = metric_table(run, task)
        if run.predictions is None:
            blocks += [table] if table else []
            continue
        rows = run.predictions[run.predictions["task"] == task.name]
        figures = _binary_figures(run, task, rows) if task.kind == "binary" else _class_figures(task, rows)
        decisions = _decisions(run, task, rows)
        if table and len(figures) > 1 and len(decisions) == 1:  # one cohort: both tables fit in a row
            blocks += [Figures(figures), Tables([table, *decisions])]
            continue
        blocks += figures_with(figures, table)
        blocks += [Tables(decisions)] if decisions else []
    return Section("Classification", "Yes-or-no and subtype predictions, fold by fold and outside.", blocks)


def _binary_figures(run: RunFiles, task: Task, rows: pd.DataFrame) -> list[Figure]:
    known = rows[labelled(rows)]
    test = known[known["role"] == "test"]
    figures = [
        roc_of_folds(test, task.name),
        precision_recall_figure(test, task.name, "test folds", external=False),
    ]
    for cohort, part in known[known["role"] == "external"].groupby("cohort", sort=True):
        mean, seed = ensemble(part), np.random.SeedSequence(_BAND_SEED)
        figures.append(roc_external(mean, task.name, str(cohort), run.confidence, seed))
        figures.append(precision_recall_figure(mean, task.name, f"external {cohort}", external=True))
    return [f for f in figures if f is not None]


def _class_figures(task: Task, rows: pd.DataFrame) -> list[Figure]:
    known = rows[labelled(rows)]
    test = known[known["role"] == "test"]
    figures = [roc_of_classes(_by_class(test), task.name, "test folds", "test")]
    for cohort, part in known[known["role"] == "external"].groupby("cohort", sort=True):
        parts = _by_class(ensemble(part))
        figures.append(roc_of_classes(parts, task.name, f"external {cohort}", f"external-{cohort}"))
    return [f for f in figures if f is not None]


def _by_class(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(str(name), part) for name, part in rows.groupby("class", sort=True)]


def _decisions(run: RunFiles, task: Task, rows: pd.DataFrame) -> list[Table]:
    """2x2 table (binary) or confusion matrix (multiclass) of the test folds and each external cohort."""
    places = [("test folds", rows[rows["role"] == "test"])]
    abroad = rows[rows["role"] == "external"]
    places += [(f"external {c}", part) for c, part in abroad.groupby("cohort", sort=True)]
    if task.kind == "multiclass":
        tables = [_matrix(place, part) for place, part in places]
    else:
        rule = ThresholdParams.model_validate((run.study.get("evaluation") or {}).get("threshold") or {})
        thresholds = fold_thresholds(rows, rule)
        tables = [_two_by_two(task, place, part, thresholds, rule) for place, part in places]
    return [t for t in tables if t is not None]


def _two_by_two(
    task: Task, place: str, rows: pd.DataFrame, thresholds: pd.Series, rule: ThresholdParams
) -> Table | None:
    known = rows[labelled(rows)]
    judged = decide(known, thresholds, at_cut=True).dropna(subset=["margin"])
    if judged.empty:
        return None
    table = confusion(judged["target"], judged["positive"])
    tp, fp, fn, tn = (int(v) for v in table)
    positive = str(rows["class"].iloc[0])
    chosen = "Youden's index" if rule.metric == "youden" else f"sensitivity ≥ {percent(rule.value or 0)}"
    return Table(
        [f"{task.name}, {place}", f"called {positive}", f"called not {positive}", "All"],
        [
            [f"truly {positive}", _right(tp, tp + fn), _wrong(fn, tp + fn), count(tp + fn)],
            [f"truly not {positive}", _wrong(fp, fp + tn), _right(tn, fp + tn), count(fp + tn)],
        ],
        caption=f"Each patient once, at the thresholds that {chosen} chose on the validation "
        "patients of each fold; percentages are of the row.",
        numeric=frozenset([1, 2, 3]),
    )


def _matrix(place: str, rows: pd.DataFrame) -> Table | None:
    mean = ensemble(rows[labelled(rows)]) if len(rows) else rows
    if mean.empty:
        return None
    score = mean.pivot(index="patient", columns="class", values="score")
    truth = mean.pivot(index="patient", columns="class", values="target").to_numpy().argmax(1)
    called = score.to_numpy().argmax(1)
    names = [str(c) for c in score.columns]
    lines: list[list[str | Cell]] = []
    for i, name in enumerate(names):
        own = [int(((truth == i) & (called == j)).sum()) for j in range(len(names))]
        cells = [_right(n, sum(own)) if i == j else _wrong(n, sum(own)) for j, n in enumerate(own)]
        lines.append([f"truly {name}", *cells, count(sum(own))])
    return Table(
        [place.capitalize(), *[f"called {n}" for n in names], "All"],
        lines,
        caption="Each patient once, in the class of highest mean probability; percentages are of the row.",
        numeric=frozenset(range(1, len(names) + 2)),
    )


def _right(n: int, of: int) -> Cell:
    return Cell(count(n), tone="good", note=percent(n / of) if of else "")


def _wrong(n: int, of: int) -> Cell:
    return Cell(count(n), tone="muted", note=percent(n / of) if of else "")
