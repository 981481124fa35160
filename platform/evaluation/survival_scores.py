"""Scores of predicted survival under censoring: Uno's C, time-dependent AUC, Brier score.

Patients whose event was seen stand for those who were censored before: they are weighted by 1 / G, with G the
probability of being still uncensored (inverse probability of censoring weighting). G is the Kaplan-Meier estimate of
the censoring times of the same patients, taken as known in the influence values (for the Brier score that is cautious).
Unlike Harrell's C, these values do not depend on the distribution of the censoring, as long as it does not depend on
the risk.

Sources: Uno, Cai, Pencina, D'Agostino and Wei (2011), Statistics in Medicine 30, equation 6, for C; Uno, Cai, Tian and
Wei (2007), JASA 102, and Hung and Chiang (2010) for the cumulative/dynamic AUC; Graf, Schmoor, Sauerbrei and Schumacher
(1999), Statistics in Medicine 18, for the Brier score.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.platform.evaluation.influence import Influence, mean_influence

Floats = NDArray[np.float64]


def uncensored(time: ArrayLike, event: ArrayLike, at: ArrayLike) -> Floats:
    """Kaplan-Meier probability G to be uncensored after each time of ``at``; events precede censorings tied with them.

    >>> uncensored([1, 2, 3, 4], [1, 0, 1, 0], [1, 2, 3]).round(3).tolist()
    [1.0, 0.667, 0.667]
    """
    t, e = np.asarray(time, float), np.asarray(event, float)
    distinct, place = np.unique(t, return_inverse=True)
    censored = np.bincount(place, 1 - e)
    ended = np.bincount(place)
    at_risk = len(t) - np.cumsum(ended) + ended - np.bincount(place, e)
    steps = np.cumprod(1 - censored / np.maximum(at_risk, 1))
    return np.r_[1.0, steps][np.searchsorted(distinct, np.asarray(at, float), side="right")]


def horizon(time: ArrayLike, event: ArrayLike, least: float = 0.1) -> float:
    """First time after which fewer than ``least`` are uncensored: beyond it a few patients have all the weight."""
    ends = np.unique(np.asarray(time, float))
    few = uncensored(time, event, ends) < least
    return float(ends[few][0]) if few.any() else float("inf")


def uno_c(time: ArrayLike, event: ArrayLike, risk: ArrayLike, tau: float | None = None) -> Influence:
    """Uno's C: share of comparable pairs in the right order, every pair weighted by 1 / G² at its earlier event.

    Parameters
    ----------
    time, event
        ``[N]``; ``event`` is 1 for an event and 0 for censored.
    risk
        ``[N]``, higher is worse; equal risks count one half.
    tau
        Only events before it count; all of them if None. Events whose G is 0 have no weight and are left out.

    Returns
    -------
    Value and influence of each patient (leave-one-out jackknife, weights fixed); NaN where no pair is comparable.
    """
    t, e, r = np.asarray(time, float), np.asarray(event, float), np.asarray(risk, float)
    weight = _weights(t, e)
    weight = weight**2 * (1.0 if tau is None else t < tau)
    (cases,) = np.nonzero(weight)
    pair = (t[cases, None] < t) | ((t[cases, None] == t) & (e == 0))
    return _of_pairs(len(t), cases, weight[cases, None] * pair, r)


def dynamic_auc(time: ArrayLike, event: ArrayLike, risk: ArrayLike, at: float) -> Influence:
    """Cumulative/dynamic AUC at a time: patients with an event until then against those who live longer.

    Parameters as in :func:`uno_c`; cases are weighted by 1 / G at their event. NaN without a case or a control.
    """
    t, e, r = np.asarray(time, float), np.asarray(event, float), np.asarray(risk, float)
    weight = _weights(t, e) * (t <= at)
    (cases,) = np.nonzero(weight)
    return _of_pairs(len(t), cases, weight[cases, None] * (t > at), r)


def mean_dynamic_auc(time: ArrayLike, event: ArrayLike, risk: ArrayLike) -> Influence:
    """Mean of the dynamic AUC at the quartiles of the event times; NaN if one of the three does not exist."""
    t, e = np.asarray(time, float), np.asarray(event, float)
    if not (e == 1).any():
        return Influence(np.asarray(np.nan), np.full(len(t), np.nan))
    quartiles = np.quantile(t[e == 1], [0.25, 0.5, 0.75], method="inverted_cdf")
    parts = [dynamic_auc(t, e, risk, float(at)) for at in quartiles]
    return Influence(
        np.asarray(np.mean([part.value for part in parts])),
        np.mean([part.influence for part in parts], axis=0),
    )


def brier(time: ArrayLike, event: ArrayLike, survival: ArrayLike, at: ArrayLike) -> Floats:
    """``[N, J]`` contributions of the patients to the Brier score at each of J times; their mean is the score.

    Parameters
    ----------
    survival
        ``[N, J]`` predicted probabilities to live longer than each time.
    at
        ``[J]`` times.
    """
    t, e = np.asarray(time, float)[:, None], np.asarray(event, float)[:, None]
    s, times = np.asarray(survival, float), np.asarray(at, float)
    weight = _weights(t[:, 0], e[:, 0])[:, None]
    left = uncensored(t[:, 0], e[:, 0], times)
    alive = np.where(left > 0, 1 / np.where(left > 0, left, 1), 0)
    return np.asarray(weight * (t <= times) * s**2 + alive * (t > times) * (1 - s) ** 2)


def integrated_brier(time: ArrayLike, event: ArrayLike, survival: ArrayLike, at: ArrayLike) -> Influence:
    """Mean Brier score over the times ``at`` (trapezoids), with the influence of each patient, weights fixed.

    0 is perfect; a prediction of 1/2 for everybody scores 1/4. Parameters as in :func:`brier`.

    Raises
    ------
    ValueError
        If there are fewer than two ascending times.
    """
    times = np.asarray(at, float)
    if len(times) < 2 or (np.diff(times) <= 0).any():
        raise ValueError("the Brier score is integrated over two ascending times or more")
    parts = brier(time, event, survival, times)
    return mean_influence(np.trapezoid(parts, times, axis=1) / (times[-1] - times[0]))


def _weights(t: Floats, e: Floats) -> Floats:
    """``[N]`` 1 / G at the events, 0 for censored patients and where G is 0."""
    left = uncensored(t, e, t)
    return np.where((e == 1) & (left > 0), 1 / np.where(left > 0, left, 1), 0.0)


def _of_pairs(n: int, cases: NDArray[np.int64], pair: Floats, risk: Floats) -> Influence:
    """Weighted share of pairs ``[cases, N]`` in the right order, and its leave-one-out jackknife."""
    right = pair * (0.5 + 0.5 * np.sign(risk[cases, None] - risk))
    of_pairs, of_right = pair.sum(0), right.sum(0)
    np.add.at(of_pairs, cases, pair.sum(1))
    np.add.at(of_right, cases, right.sum(1))
    pairs, rights = float(pair.sum()), float(right.sum())
    if pairs == 0:
        return Influence(np.asarray(np.nan), np.full(n, np.nan))
    left = pairs - of_pairs
    with np.errstate(invalid="ignore", divide="ignore"):
        without = np.where(left > 1e-12 * pairs, (rights - of_right) / left, np.nan)
    known = ~np.isnan(without)
    influence = np.full(n, np.nan)
    if n > 1 and known.any():
        influence = np.sqrt((n - 1) / n) * (without[known].mean() - without)
    return Influence(np.asarray(rights / pairs), influence)
