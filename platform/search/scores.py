"""Metrics of one inner fold, larger is better, by the names that ``search.metric`` can take."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from equipoise.platform.search.params import MEAN, SCORES

if TYPE_CHECKING:
    from equipoise.platform.training.predict import Outputs
    from equipoise.platform.training.targets import Targets, TaskTarget


def fold_scores(targets: Targets, result: Outputs) -> dict[str, float]:
    """``val/<task>/<metric>`` and ``val/mean`` over the patients of ``result`` with a label.

    A metric is NaN where the labels do not allow it, which is the same for all trials. Where the predictions do not
    allow it (all equal, so no correlation), it gets the value of a predictor without information.
    """
    from equipoise.platform.training.predict import task_scores

    values: dict[str, float] = {}
    first: list[float] = []
    for task in targets.tasks:
        name = task.head.name
        mask = result.label_mask[name]
        target = result.targets[name][mask].double().numpy()
        score = task_scores(task, result.outputs[name][mask]) if mask.any() else np.empty((0, 1))
        metrics = _scores(task, target, score)
        values |= {f"val/{name}/{metric}": value for metric, value in metrics.items()}
        leading = SCORES[task.head.kind][0]
        first.append(normalised(leading, metrics[leading]))
    known = [value for value in first if not math.isnan(value)]
    return values | {MEAN: sum(known) / len(known) if known else math.nan}


def normalised(metric: str, value: float) -> float:
    """A metric scaled to between 0 and 1: AUROC and C-index unchanged, (r + 1) / 2 for Pearson's r."""
    return (value + 1) / 2 if metric.rpartition("/")[2] == "pearson" else value


def _scores(task: TaskTarget, target: np.ndarray, score: np.ndarray) -> dict[str, float]:
    from equipoise.platform.evaluation.metrics import auroc, average_precision, harrell_c

    kind = task.head.kind
    if not len(target):
        return dict.fromkeys(SCORES[kind], math.nan)
    if kind == "survival":
        return {"c_index": float(harrell_c(target[:, 0], target[:, 1], score[:, 0]))}
    if kind == "regression":
        return _regression(task, target, score[:, 0])
    start = 1 if kind == "binary" else 0
    classes = [(target == k + start, score[:, k]) for k in range(score.shape[1])]
    both = [(positive, values) for positive, values in classes if 0 < positive.sum() < len(positive)]
    if not both:
        return {"auroc": math.nan, "auprc": math.nan}
    return {
        "auroc": float(np.mean([auroc(positive, values) for positive, values in both])),
        "auprc": float(np.mean([average_precision(positive, values) for positive, values in both])),
    }


def _regression(task: TaskTarget, target: np.ndarray, score: np.ndarray) -> dict[str, float]:
    from equipoise.platform.evaluation.metrics import pearson, r2

    truth = np.asarray(task.decode(target), float)
    if len(truth) < 3 or np.ptp(truth) == 0:
        return {"pearson": math.nan, "r2": math.nan}
    correlation = float(pearson(truth, score))
    return {"pearson": 0.0 if math.isnan(correlation) else correlation, "r2": float(r2(truth, score))}
