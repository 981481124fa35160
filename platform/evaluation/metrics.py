"""Metrics of binary, multiclass, regression and survival predictions, in weighted form.

Every function takes patients along the last axis and an optional ``weight`` of shape ``[..., N]``; it returns
an array of shape ``[...]``. Without weights every patient counts once and the result is a scalar; with a
``[R, N]`` matrix of bootstrap multiplicities it is one value per replicate. Point estimate and interval thus
share one definition.

A metric that cannot be computed is NaN, never a neutral value; :mod:`equipoise.platform.evaluation.metric_definitions`
gives the reason.

Sources: AUROC as the Mann-Whitney statistic with midranks (Hanley and McNeil 1982); average precision as in
scikit-learn (no interpolation, ties form one step); concordance of Harrell et al. (1982) with ties in risk
counted one half, and a pair tied in time counted only if one case is censored.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

#: Rows of the pair matrix of the concordance that are held at once.
_EVENTS_AT_ONCE = 512


class Confusion(NamedTuple):
    """Weighted counts of the 2x2 table at a threshold, each of shape ``[...]``."""

    tp: Floats
    fp: Floats
    fn: Floats
    tn: Floats


def normalised(metric: str, value: float) -> float:
    """A metric scaled to between 0 and 1: AUROC and C-index unchanged, (r + 1) / 2 for Pearson's r.

    >>> normalised("val/LF/pearson", 0.5)
    0.75
    """
    return (value + 1) / 2 if metric.rpartition("/")[2] == "pearson" else value


def auroc(
    target: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None, strata: ArrayLike | None = None
) -> Floats:
    """Area under the ROC curve: the share of (positive, negative) pairs in the right order, ties one half.

    Parameters
    ----------
    target
        ``[N]``, 1 for positive and 0 for negative patients.
    score
        ``[N]``, higher means more likely positive.
    weight
        ``[..., N]`` multiplicities, or None for one each.
    strata
        ``[N]`` labels of strata (cohorts), or None. With strata only pairs within a stratum count, all of them the
        same, so that large strata weigh more than in a mean over strata.

    Returns
    -------
    ``[...]``; NaN where a class has no weight (in any stratum).
    """
    right: Floats = np.zeros(())
    pairs: Floats = np.zeros(())
    for inside in _strata(target, strata):
        positive, negative = _by_score(*_rows(inside, target, score, weight))
        below = np.cumsum(negative, axis=-1) - 0.5 * negative
        right = right + (positive * below).sum(-1)
        pairs = pairs + positive.sum(-1) * negative.sum(-1)
    return _ratio(right, pairs)


def average_precision(
    target: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None, strata: ArrayLike | None = None
) -> Floats:
    """Area under the precision-recall curve as average precision: the sum of precision times recall gained.

    With ``strata`` the mean over strata that have both classes, weighted by their positives.

    Returns
    -------
    ``[...]``; NaN where no positive has weight. A random order scores the prevalence.
    """
    if strata is None:
        return _average_precision(target, score, weight)
    total, positives = np.zeros(()), np.zeros(())
    for inside in _strata(target, strata):
        y, w = _arrays(*_rows(inside, target, weight))
        both = ((w * y).sum(-1) > 0) & ((w * (1 - y)).sum(-1) > 0)
        share = np.where(both, (w * y).sum(-1), 0)
        total = total + share * np.nan_to_num(_average_precision(*_rows(inside, target, score, weight)))
        positives = positives + share
    return _ratio(total, positives)


def _average_precision(target: ArrayLike, score: ArrayLike, weight: ArrayLike | None) -> Floats:
    positive, negative = (part[..., ::-1] for part in _by_score(target, score, weight))
    positives_so_far = np.cumsum(positive, axis=-1)
    precision = _ratio(positives_so_far, positives_so_far + np.cumsum(negative, axis=-1))
    # A step without weight (possible in a replicate) has no precision and gains no recall.
    return _ratio((positive * np.nan_to_num(precision)).sum(-1), positive.sum(-1))


def prevalence(target: ArrayLike, weight: ArrayLike | None = None) -> Floats:
    """Share of positives, which is the average precision of a predictor without information."""
    y, w = _arrays(target, weight)
    return _ratio((w * y).sum(-1), w.sum(-1))


def confusion(target: ArrayLike, positive: ArrayLike, weight: ArrayLike | None = None) -> Confusion:
    """The 2x2 table of decisions.

    Parameters
    ----------
    target
        ``[N]`` of 0 and 1.
    positive
        ``[N]`` booleans, the decision for each patient (usually ``score >= threshold``).
    """
    y, w = _arrays(target, weight)
    called = np.asarray(positive, bool)
    truly = y == 1
    return Confusion(
        tp=w[..., truly & called].sum(-1),
        fp=w[..., ~truly & called].sum(-1),
        fn=w[..., truly & ~called].sum(-1),
        tn=w[..., ~truly & ~called].sum(-1),
    )


def sensitivity(target: ArrayLike, positive: ArrayLike, weight: ArrayLike | None = None) -> Floats:
    """Share of positives that were called positive; NaN without positives."""
    table = confusion(target, positive, weight)
    return _ratio(table.tp, table.tp + table.fn)


def specificity(target: ArrayLike, positive: ArrayLike, weight: ArrayLike | None = None) -> Floats:
    """Share of negatives that were called negative; NaN without negatives."""
    table = confusion(target, positive, weight)
    return _ratio(table.tn, table.tn + table.fp)


def balanced_accuracy(target: ArrayLike, positive: ArrayLike, weight: ArrayLike | None = None) -> Floats:
    """Mean of sensitivity and specificity; NaN if a class is missing."""
    return 0.5 * (sensitivity(target, positive, weight) + specificity(target, positive, weight))


def pearson(
    target: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None, strata: ArrayLike | None = None
) -> Floats:
    """Correlation of Pearson; NaN if either side is constant.

    With ``strata``, labels ``[N]``, that of the deviations from the means of the strata.
    """
    y, w = _arrays(target, weight)
    x = np.asarray(score, float)
    dy, dx = _centred(y, w, strata), _centred(x, w, strata)
    spread = np.sqrt((w * dy**2).sum(-1) * (w * dx**2).sum(-1))
    # A constant column leaves rounding noise of the mean behind, not an exact zero.
    noise = 1e-12 * w.sum(-1) * np.abs(y).max(initial=0) * np.abs(x).max(initial=0)
    value = _ratio((w * dy * dx).sum(-1), np.where(spread > noise, spread, 0))
    return np.clip(value, -1, 1)


def r2(
    target: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None, strata: ArrayLike | None = None
) -> Floats:
    """Coefficient of determination, 1 - residual / total sum of squares; below 0 is worse than the mean.

    With ``strata``, labels ``[N]``, the total is that around the means of the strata. NaN if the targets do not vary.
    """
    y, w = _arrays(target, weight)
    residual = (w * (y - np.asarray(score, float)) ** 2).sum(-1)
    total = (w * _centred(y, w, strata) ** 2).sum(-1)
    noise = (1e-12 * np.abs(y).max(initial=0)) ** 2 * w.sum(-1)
    return 1 - _ratio(residual, np.where(total > noise, total, 0))


def mae(target: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None) -> Floats:
    """Mean absolute error in the target's units."""
    y, w = _arrays(target, weight)
    return _ratio((w * np.abs(y - np.asarray(score, float))).sum(-1), w.sum(-1))


class Concordance(NamedTuple):
    """Weighted counts of comparable pairs, each of shape ``[...]``: all, in the right order, and tied in risk."""

    comparable: Floats
    concordant: Floats
    tied: Floats


def concordance(
    time: ArrayLike,
    event: ArrayLike,
    risk: ArrayLike,
    weight: ArrayLike | None = None,
    strata: ArrayLike | None = None,
) -> Concordance:
    """The pairs that Harrell's C counts; parameters as in :func:`harrell_c`."""
    t, w = _arrays(time, weight)
    comparable, concordant, tied = np.zeros((3, *w.shape[:-1]))
    for i, pair, order in _pairs(t, event, risk, strata):
        comparable += _weight_of_pairs(w, i, pair)
        concordant += _weight_of_pairs(w, i, pair & (order > 0))
        tied += _weight_of_pairs(w, i, pair & (order == 0))
    return Concordance(comparable, concordant, tied)


def harrell_c(
    time: ArrayLike,
    event: ArrayLike,
    risk: ArrayLike,
    weight: ArrayLike | None = None,
    strata: ArrayLike | None = None,
) -> Floats:
    """Concordance of Harrell: share of comparable pairs in which the earlier event had the higher risk.

    A pair (i, j) is comparable if i had an event and j lived longer, or j was censored at the same time.
    Equal risks count one half. 1 is perfect, 0.5 is chance, 0 is perfectly reversed.

    Parameters
    ----------
    time
        ``[N]`` follow-up in any unit.
    event
        ``[N]``, 1 for an event and 0 for censored.
    risk
        ``[N]``, higher is worse.
    strata
        ``[N]`` labels of strata (cohorts, sites, classes), or None. With strata only pairs within a stratum are
        comparable, and all of them count the same: large strata weigh more than in a mean over strata.

    Returns
    -------
    ``[...]``; NaN where no pair is comparable.
    """
    t, w = _arrays(time, weight)
    comparable, right = np.zeros((2, *w.shape[:-1]))
    for i, pair, order in _pairs(t, event, risk, strata):
        comparable += _weight_of_pairs(w, i, pair)
        right += _weight_of_pairs(w, i, pair * (0.5 + 0.5 * order))
    return _ratio(right, comparable)


def _pairs(
    t: Floats, event: ArrayLike, risk: ArrayLike, strata: ArrayLike | None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_], Floats]]:
    """Events i a block at a time, ``[i, N]`` which pairs are comparable, and the sign of their difference in risk."""
    e, r = np.asarray(event, float), np.asarray(risk, float)
    k = None if strata is None else np.unique(np.asarray(strata), return_inverse=True)[1]
    (cases,) = np.nonzero(e == 1)
    for start in range(0, len(cases), _EVENTS_AT_ONCE):
        i = cases[start : start + _EVENTS_AT_ONCE]
        pair = (t[i, None] < t) | ((t[i, None] == t) & (e == 0))
        if k is not None:
            pair &= k[i, None] == k
        yield i, pair, np.sign(r[i, None] - r)


def _weight_of_pairs(w: Floats, i: NDArray[np.int64], kept: NDArray[Any]) -> Floats:
    """Products of the weights of both patients, summed over the pairs that are kept."""
    # Counts of half pairs stay exact in float32 up to 8 million patients.
    return np.asarray((w[..., i] * (w.astype(np.float32) @ kept.T.astype(np.float32))).sum(-1))


def _arrays(target: ArrayLike, weight: ArrayLike | None) -> tuple[Floats, Floats]:
    y = np.asarray(target, float)
    return y, np.ones_like(y) if weight is None else np.asarray(weight, float)


def _by_score(target: ArrayLike, score: ArrayLike, weight: ArrayLike | None) -> tuple[Floats, Floats]:
    """Weights of positives and of negatives for each distinct score, ascending: two arrays ``[..., G]``."""
    y, w = _arrays(target, weight)
    s = np.asarray(score, float)
    if not len(s):
        return np.zeros((*w.shape[:-1], 1)), np.zeros((*w.shape[:-1], 1))
    order = np.argsort(s, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(s[order]) > 0])
    w, y = w[..., order], y[order]
    return np.add.reduceat(w * y, starts, axis=-1), np.add.reduceat(w * (1 - y), starts, axis=-1)


def _centred(values: Floats, w: Floats, strata: ArrayLike | None = None) -> Floats:
    """Deviations ``[..., N]`` from the weighted mean (of each stratum); NaN only where nobody has weight."""
    if strata is None:
        return values - _ratio((w * values).sum(-1), w.sum(-1))[..., None]
    centred = np.zeros(np.broadcast_shapes(values.shape, w.shape))
    for inside in _strata(values, strata):
        part, weight = values[..., inside], w[..., inside]
        # A stratum without weight adds nothing.
        mean = np.nan_to_num(_ratio((weight * part).sum(-1), weight.sum(-1)))
        centred[..., inside] = part - mean[..., None]
    return np.asarray(np.where(w.sum(-1, keepdims=True) > 0, centred, np.nan))


def _strata(values: ArrayLike, strata: ArrayLike | None) -> list[NDArray[np.bool_] | slice]:
    """Which patients lie in each stratum; everybody in the only one without strata."""
    if strata is None:
        return [slice(None)]
    labels = np.asarray(strata)
    return [labels == label for label in np.unique(labels)] if len(labels) else [slice(None)]


def _rows(inside: NDArray[np.bool_] | slice, *columns: ArrayLike | None) -> list[Any]:
    """The columns ``[..., N]`` of the patients of a stratum; None stays None."""
    return [None if column is None else np.asarray(column)[..., inside] for column in columns]


def _ratio(numerator: ArrayLike, denominator: ArrayLike) -> Floats:
    """Quotient, NaN where the denominator is 0."""
    bottom = np.asarray(denominator, float)
    safe = np.where(bottom == 0, 1, bottom)
    return np.where(bottom == 0, np.nan, np.asarray(numerator, float) / safe)
