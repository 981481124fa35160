"""ROC and precision-recall curves as arrays, with the mean of folds and a bootstrap band.

Source of the mean curve: vertical averaging (Fawcett 2006), true-positive rates of all folds at the same
false-positive rate.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.platform.evaluation.intervals import bootstrap_weights

Floats = NDArray[np.float64]

#: False-positive rates at which curves of folds and replicates are compared.
GRID = np.linspace(0, 1, 101)


class Roc(NamedTuple):
    """Points of a ROC curve from (0, 0) to (1, 1)."""

    fpr: Floats
    tpr: Floats


class PrecisionRecall(NamedTuple):
    """Points of a precision-recall curve, recall ascending."""

    recall: Floats
    precision: Floats


class RocBand(NamedTuple):
    """Pointwise interval of a ROC curve on ``GRID``."""

    low: Floats
    high: Floats


def roc(target: ArrayLike, score: ArrayLike) -> Roc:
    """ROC curve with one point per distinct score.

    Raises
    ------
    ValueError
        If a class is missing.
    """
    tp, fp = _counts(target, score)
    if tp[-1] == 0 or fp[-1] == 0:
        raise ValueError("a ROC curve needs positives and negatives")
    return Roc(np.r_[0, fp / fp[-1]], np.r_[0, tp / tp[-1]])


def precision_recall(target: ArrayLike, score: ArrayLike) -> PrecisionRecall:
    """Precision-recall curve; the first point repeats the first precision at recall 0.

    One point per recall that is reached, at its highest precision: these are the steps that average precision
    sums, so the area under the drawn steps is the reported value.

    Raises
    ------
    ValueError
        If there are no positives.
    """
    tp, fp = _counts(target, score)
    if tp[-1] == 0:
        raise ValueError("a precision-recall curve needs positives")
    gained = np.diff(tp, prepend=0) > 0
    recall, precision = (tp / tp[-1])[gained], (tp / (tp + fp))[gained]
    return PrecisionRecall(np.r_[0, recall], np.r_[precision[0], precision])


def mean_roc(curves: Sequence[Roc]) -> Roc:
    """Mean true-positive rate of several curves on ``GRID``."""
    heights = [_on_grid(curve) for curve in curves]
    return Roc(np.r_[0, GRID], np.r_[0, np.mean(heights, axis=0)])


def roc_band(
    target: ArrayLike,
    score: ArrayLike,
    confidence: float,
    seed: np.random.SeedSequence,
    replicates: int = 500,
) -> RocBand:
    """Pointwise percentile band of the true-positive rate, patients drawn within class."""
    y, s = np.asarray(target, float), np.asarray(score, float)
    weights = bootstrap_weights(y.astype(int), replicates, seed)
    heights = np.empty((replicates, len(GRID)))
    for k, drawn in enumerate(weights):
        heights[k] = _on_grid(roc(np.repeat(y, drawn), np.repeat(s, drawn)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(heights, [tail, 1 - tail], axis=0)
    return RocBand(low, high)


def thin(x: ArrayLike, y: ArrayLike, most: int = 400) -> tuple[Floats, Floats]:
    """Evenly spaced points of a curve, ends included, so that a page does not grow with the number of patients."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    if len(x) <= most:
        return x, y
    keep = np.unique(np.linspace(0, len(x) - 1, most).round().astype(int))
    return x[keep], y[keep]


def _on_grid(curve: Roc) -> Floats:
    """Height at each grid point; where the curve rises vertically, at the top of the step.

    ``np.interp`` searches from the right, so that of several equal x it takes the last as left neighbour and the
    first as right neighbour: exactly the flat and sloped stretches between two steps.
    """
    return np.interp(GRID, curve.fpr, curve.tpr)


def _counts(target: ArrayLike, score: ArrayLike) -> tuple[Floats, Floats]:
    """True and false positives at each distinct score, from the highest down."""
    y, s = np.asarray(target, float), np.asarray(score, float)
    order = np.argsort(-s, kind="stable")
    y, s = y[order], s[order]
    last = np.r_[np.diff(s) < 0, True]
    return np.cumsum(y)[last], np.cumsum(1 - y)[last]
