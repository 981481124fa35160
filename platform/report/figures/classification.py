"""ROC and precision-recall figures of binary and multiclass tasks."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from equipoise.platform.evaluation.curves import GRID, Roc, mean_roc, precision_recall, roc, roc_band, thin
from equipoise.platform.evaluation.decisions import FOLD
from equipoise.platform.evaluation.metrics import prevalence
from equipoise.platform.report.figures.style import (
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
from equipoise.platform.report.formatting import percent

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
        "diagonal is guessing. A wide spread of thin lines means the result depends on who was in the fold.",
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
        "band holds "
        f"the sensitivity at each point in {percent(confidence)} of the resampled cohorts.",
        table,
    )


def roc_of_classes(
    parts: Sequence[tuple[str, pd.DataFrame]], task: str, place: str, slug_of: str
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
        slug("roc", task, slug_of),
        f"ROC per class, {place}",
        data,
        unit_square("1 − specificity", "Sensitivity"),
        "One line per class against all others (mean of the folds). Higher and further left is better; the "
        "dotted "
        "diagonal is guessing.",
        _long(curves, "false_positive_rate", "true_positive_rate"),
    )


def precision_recall_figure(rows: pd.DataFrame, task: str, place: str, *, external: bool) -> Figure | None:
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
    data, many = [baseline], len(curves) > 1
    for name, curve in curves.items():
        data.append(
            line(
                *thin(*curve),
                place if external else name,
                fade(colour, 0.5) if many else colour,
                1.4 if many else 2.4,
                line={"shape": "vh"},
                showlegend=False,
                hovertemplate=_HOVER_PR,
            )
        )
    return Figure(
        slug("precision-recall", task, place),
        f"Precision and recall, {place}",
        data,
        unit_square("Recall (sensitivity)", "Precision"),
        "Precision is the share of called patients who are truly positive, recall the share of positives "
        "that are "
        "found. The dotted line is the prevalence: what calling patients at random would reach.",
        _long({(place if external else n): c for n, c in curves.items()}, "recall", "precision"),
    )


def _two_classes(rows: pd.DataFrame) -> list[tuple[tuple[int, int], pd.DataFrame]]:
    """Folds in which both classes occur; the metrics table names the others with their reason."""
    return [(key, g) for key, g in rows.groupby(FOLD, sort=True) if g["target"].nunique() == 2]


def _long(curves: "dict[str, Roc] | dict", x: str, y: str) -> pd.DataFrame:
    parts = [pd.DataFrame({"curve": n, x: c[0], y: c[1]}) for n, c in curves.items()]
    return pd.concat(parts, ignore_index=True)
