"""Binary and multiclass tasks: ROC, precision-recall, metrics, 2x2 tables at the validation threshold."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from equipoise.platform.evaluation.curves import GRID, Roc, mean_roc, precision_recall, roc, roc_band, thin
from equipoise.platform.evaluation.metrics import confusion, prevalence
from equipoise.platform.evaluation.params import ThresholdParams
from equipoise.platform.evaluation.predictions import labelled
from equipoise.platform.evaluation.thresholds import FOLD_KEYS, apply_cutoffs, ensemble, fold_thresholds
from equipoise.platform.report.baseline_rows import baseline_blocks
from equipoise.platform.report.blocks import (
    Block,
    Cell,
    Figures,
    Heading,
    Notice,
    Section,
    Table,
    Tables,
    figures_with,
)
from equipoise.platform.report.datasets import datasets_of
from equipoise.platform.report.decision_remarks import remarks_of
from equipoise.platform.report.entries import ClassificationParams
from equipoise.platform.report.formatting import count, percent
from equipoise.platform.report.metric_rows import metric_table
from equipoise.platform.report.operating_tables import (
    calibration_table_of,
    error_blocks,
    operating_table,
    rule_text,
    threshold_rule,
)
from equipoise.platform.report.probability_figures import (
    calibration_figure,
    class_calibration_figure,
    decision_figure,
)
from equipoise.platform.report.run_files import RunFiles, Task
from equipoise.platform.report.style import (
    EXTERNAL,
    FAINT,
    INTERNAL,
    SERIES,
    Figure,
    band,
    fade,
    line,
    slug,
    text,
    unit_square,
)

#: Data sets whose calibration and net benefit are drawn; the tables have all.
_SHOWN = 3
#: Seed of the ROC bands; a band illustrates the data, the intervals of the study use the seed of the study.
_BAND_SEED = 20140923


def build(run: RunFiles, params: ClassificationParams) -> Section | None:
    """One part per task, the main task first."""
    tasks = [t for t in run.tasks if t.kind in ("binary", "multiclass")]
    if not tasks:
        return None
    needed = ["evaluation/predictions.parquet", "evaluation/metrics.csv", "evaluation/calibration.csv"]
    if any(task.kind == "binary" for task in tasks):
        needed.append("evaluation/operating_points.csv")
    blocks: list[Block] = [*run.missing(*needed)]
    for task in tasks:
        blocks.append(Heading(task.name))
        table = metric_table(run, task)
        baselines = baseline_blocks(run, task)
        if run.predictions is None:
            blocks += [*([table] if table else []), *baselines]
            continue
        rows = run.predictions[run.predictions["task"] == task.name]
        figures = _binary_figures(run, task, rows) if task.kind == "binary" else _class_figures(task, rows)
        decisions = _decisions(run, task, rows)
        if table and len(figures) > 1 and len(decisions) == 1:  # one cohort: both tables fit in a row
            blocks += [Figures(figures), Tables([table, *decisions]), *baselines]
        else:
            blocks += [*figures_with(figures, table), *baselines]
            blocks += [Tables(decisions)] if decisions else []
        blocks += [*_operating(run, task), *_probabilities(run, task)]
        blocks += error_blocks(run, task, rows, params.misclassified, params.thumbnails if task.main else 0)
    lead = "Predicted classes: ranking, decisions and probabilities, by fold and in external cohorts."
    return Section("Classification", lead, blocks)


def _operating(run: RunFiles, task: Task) -> list[Block]:
    """Operating points of a binary task, and where the chosen one tells nobody apart."""
    remarks = list(remarks_of(run, task))
    blocks: list[Block] = [Notice("The decisions tell nobody apart", remarks)] if remarks else []
    table = operating_table(run, task)
    return [*blocks, *([table] if table else [])]


def _probabilities(run: RunFiles, task: Task) -> list[Block]:
    """Calibration and net benefit: figures of the test folds and the first external cohorts, and a table."""
    curves = list(datasets_of(run.calibration_curves, task.name))
    figures: list[Figure | None] = []
    if task.kind == "binary":
        figures.append(calibration_figure(curves[:_SHOWN], task.name, run.confidence))
        benefits = list(datasets_of(run.decision_curves, task.name))[:_SHOWN]
        figures += [decision_figure(data, task.name, run.confidence) for data in benefits]
    else:
        figures += [class_calibration_figure(data, task.name, run.confidence) for data in curves[:_SHOWN]]
    drawn = [figure for figure in figures if figure is not None]
    table = calibration_table_of(run, task)
    blocks: list[Block] = [Figures(drawn)] if drawn else []
    return [*blocks, *([table] if table else [])]


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
    datasets = [("test folds", rows[rows["role"] == "test"])]
    external = rows[rows["role"] == "external"]
    datasets += [(f"external {c}", part) for c, part in external.groupby("cohort", sort=True)]
    if task.kind == "multiclass":
        tables = [_matrix(dataset, part) for dataset, part in datasets]
    else:
        params = threshold_rule(run)
        thresholds = fold_thresholds(rows, params)
        tables = [_two_by_two(task, dataset, part, thresholds, params) for dataset, part in datasets]
    return [t for t in tables if t is not None]


def _two_by_two(
    task: Task, dataset: str, rows: pd.DataFrame, thresholds: pd.Series, params: ThresholdParams
) -> Table | None:
    known = rows[labelled(rows)]
    decisions = apply_cutoffs(known, thresholds, inclusive=True).dropna(subset=["margin"])
    if decisions.empty:
        return None
    table = confusion(decisions["target"], decisions["positive"])
    tp, fp, fn, tn = (int(v) for v in table)
    positive = str(rows["class"].iloc[0])
    how = "at the fixed " + params.label
    if params.metric != "fixed":
        rule = "Youden's index" if params.metric == "youden" else rule_text(params.label)
        how = f"at the thresholds chosen by {rule} on the validation patients of each fold"
    return Table(
        [f"{task.name}, {dataset}", f"predicted {positive}", f"predicted not {positive}", "All"],
        [
            [f"truly {positive}", _right(tp, tp + fn), _wrong(fn, tp + fn), count(tp + fn)],
            [f"truly not {positive}", _wrong(fp, fp + tn), _right(tn, fp + tn), count(fp + tn)],
        ],
        caption=f"Each patient once, {how}; percentages refer to the row. Green: decided right.",
        numeric=frozenset([1, 2, 3]),
    )


def _matrix(dataset: str, rows: pd.DataFrame) -> Table | None:
    mean = ensemble(rows[labelled(rows)]) if len(rows) else rows
    if mean.empty:
        return None
    score = mean.pivot(index="patient", columns="class", values="score")
    truth = mean.pivot(index="patient", columns="class", values="target").to_numpy().argmax(1)
    predicted = score.to_numpy().argmax(1)
    names = [str(c) for c in score.columns]
    lines: list[list[str | Cell]] = []
    for i, name in enumerate(names):
        counts = [int(((truth == i) & (predicted == j)).sum()) for j in range(len(names))]
        total = sum(counts)
        cells = [_right(n, total) if i == j else _wrong(n, total) for j, n in enumerate(counts)]
        lines.append([f"truly {name}", *cells, count(total)])
    return Table(
        [dataset.capitalize(), *[f"predicted {n}" for n in names], "All"],
        lines,
        caption="Each patient once, in the class with the highest mean probability; percentages refer to the row. "
        "Green: decided right.",
        numeric=frozenset(range(1, len(names) + 2)),
    )


def _right(n: int, of: int) -> Cell:
    return Cell(count(n), tone="good", note=percent(n / of) if of else "")


def _wrong(n: int, of: int) -> Cell:
    return Cell(count(n), tone="muted", note=percent(n / of) if of else "")


_DIAGONAL = line([0, 1], [0, 1], "chance", FAINT, 1, line={"dash": "dot"}, hoverinfo="skip", showlegend=False)
_HOVER_ROC = "1 − specificity %{x:.2f}<br>sensitivity %{y:.2f}<extra>%{fullData.name}</extra>"
_HOVER_PR = "recall %{x:.2f}<br>precision %{y:.2f}<extra>%{fullData.name}</extra>"


def roc_of_folds(rows: pd.DataFrame, task: str) -> Figure | None:
    """ROC per fold with their vertical mean; None if no fold has both classes.

    Parameters
    ----------
    rows
        Labelled test rows of one class.
    """
    curves = {f"fold {r}-{k}": roc(g["target"], g["score"]) for (r, k), g in _two_classes(rows)}
    if not curves:
        return None
    mean = mean_roc(list(curves.values()))
    data = [_DIAGONAL]
    for name, curve in curves.items():
        data.append(
            line(*thin(*curve), name, fade(INTERNAL, 0.28), 1.2, showlegend=False, hovertemplate=_HOVER_ROC)
        )
    label = f"mean of {len(curves)} folds" if len(curves) > 1 else "test fold"
    data.append(line(*mean, label, INTERNAL, 2.6, hovertemplate=_HOVER_ROC))
    table = _long({**curves, "mean": mean}, "false_positive_rate", "true_positive_rate")
    return Figure(
        slug("roc", task, "test"),
        "ROC, cross-validation test folds",
        data,
        unit_square("1 − specificity", "Sensitivity"),
        "Each thin line is one test fold, the thick line their mean. Higher and further left is better; the "
        "dotted "
        "diagonal is chance. A wide spread of thin lines means that the result depends on the patients of the fold.",
        table,
    )


def roc_external(
    rows: pd.DataFrame, task: str, cohort: str, confidence: float, seed: np.random.SeedSequence
) -> Figure | None:
    """ROC of the mean score of the fold models on an external cohort, with a bootstrap band."""
    if rows["target"].nunique() < 2:
        return None
    curve = roc(rows["target"], rows["score"])
    limits = roc_band(rows["target"], rows["score"], confidence, seed)
    shade = band(GRID, limits.low, limits.high, EXTERNAL, f"{percent(confidence)} band")
    data = [_DIAGONAL, *shade, line(*thin(*curve), text(cohort), EXTERNAL, 2.6, hovertemplate=_HOVER_ROC)]
    table = pd.concat(
        [
            _long({cohort: curve}, "false_positive_rate", "true_positive_rate"),
            pd.DataFrame(
                {"curve": "band", "false_positive_rate": GRID, "low": limits.low, "high": limits.high}
            ),
        ]
    )
    return Figure(
        slug("roc", task, "external", cohort),
        f"ROC, external cohort {cohort}",
        data,
        unit_square("1 − specificity", "Sensitivity"),
        "One line: the mean score of all fold models on patients that none of them has seen. The shaded "
        "band contains "
        f"the sensitivity at each point in {percent(confidence)} of the resampled cohorts.",
        table,
    )


def roc_of_classes(
    parts: Sequence[tuple[str, pd.DataFrame]], task: str, dataset: str, dataset_slug: str
) -> Figure | None:
    """One mean ROC per class of a multiclass task, each class against the rest."""
    data, curves = [_DIAGONAL], {}
    for (name, rows), colour in zip(parts, SERIES * (1 + len(parts) // len(SERIES)), strict=False):
        of_fold = [roc(g["target"], g["score"]) for _, g in _two_classes(rows)]
        if of_fold:
            curves[name] = mean_roc(of_fold) if len(of_fold) > 1 else of_fold[0]
            data.append(line(*thin(*curves[name]), text(name), colour, 2.2, hovertemplate=_HOVER_ROC))
    if not curves:
        return None
    return Figure(
        slug("roc", task, dataset_slug),
        f"ROC per class, {dataset}",
        data,
        unit_square("1 − specificity", "Sensitivity"),
        "One line per class against all others (mean of the folds). Higher and further left is better; the "
        "dotted "
        "diagonal is chance.",
        _long(curves, "false_positive_rate", "true_positive_rate"),
    )


def precision_recall_figure(rows: pd.DataFrame, task: str, dataset: str, *, external: bool) -> Figure | None:
    """Precision-recall curve per group (fold or external ensemble) with the prevalence as baseline."""
    curves = {f"fold {r}-{k}": precision_recall(g["target"], g["score"]) for (r, k), g in _two_classes(rows)}
    if not curves:
        return None
    share = float(np.mean([float(prevalence(g["target"])) for _, g in _two_classes(rows)]))
    colour = EXTERNAL if external else INTERNAL
    baseline = line(
        [0, 1],
        [share, share],
        f"prevalence {percent(share)}",
        FAINT,
        1.4,
        line={"dash": "dot"},
        hoverinfo="skip",
    )
    data, several = [baseline], len(curves) > 1
    for name, curve in curves.items():
        data.append(
            line(
                *thin(*curve),
                dataset if external else name,
                fade(colour, 0.5) if several else colour,
                1.4 if several else 2.4,
                line={"shape": "vh"},
                showlegend=False,
                hovertemplate=_HOVER_PR,
            )
        )
    return Figure(
        slug("precision-recall", task, dataset),
        f"Precision and recall, {dataset}",
        data,
        unit_square("Recall (sensitivity)", "Precision"),
        "Precision is the share of patients predicted positive who are truly positive, recall the share of "
        "positives that are "
        "detected. The dotted line is the prevalence, the precision of random predictions.",
        _long({(dataset if external else n): c for n, c in curves.items()}, "recall", "precision"),
    )


def _two_classes(rows: pd.DataFrame) -> list[tuple[tuple[int, int], pd.DataFrame]]:
    """Folds in which both classes occur; the metrics table gives the reason for the others."""
    return [(key, g) for key, g in rows.groupby(FOLD_KEYS, sort=True) if g["target"].nunique() == 2]


def _long(curves: "dict[str, Roc] | dict", x: str, y: str) -> pd.DataFrame:
    parts = [pd.DataFrame({"curve": n, x: c[0], y: c[1]}) for n, c in curves.items()]
    return pd.concat(parts, ignore_index=True)
