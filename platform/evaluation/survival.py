"""Kaplan-Meier curves, numbers at risk, median follow-up and the log-rank test, through lifelines.

lifelines is imported when a curve is drawn: it takes seconds, and a run without a survival task needs none of it.

Sources: Kaplan and Meier (1958); Greenwood's variance with the log(-log) interval; Mantel (1966); the reverse
Kaplan-Meier median follow-up of Schemper and Smith (1996).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import chi2 as chi2_distribution

Floats = NDArray[np.float64]


class SurvivalCurve(NamedTuple):
    """A step function: at ``time[k]`` survival drops to ``survival[k]``; ``time[0]`` is 0."""

    time: Floats
    survival: Floats
    low: Floats
    high: Floats


class LogRank(NamedTuple):
    """Log-rank statistic, its degrees of freedom and p."""

    chi2: float
    df: int
    p: float


def kaplan_meier(time: ArrayLike, event: ArrayLike, confidence: float = 0.95) -> SurvivalCurve:
    """Kaplan-Meier estimate with Greenwood log(-log) bounds.

    Bounds are NaN where survival is 0 and 1 where it is 1: the log(-log) scale does not reach them.

    >>> kaplan_meier([1, 2, 3], [1, 0, 1]).survival.round(3).tolist()
    [1.0, 0.667, 0.667, 0.0]
    """
    from lifelines import KaplanMeierFitter

    fitted = KaplanMeierFitter(alpha=1 - confidence).fit(np.asarray(time, float), np.asarray(event, float))
    survival = fitted.survival_function_.to_numpy()[:, 0]
    low, high = fitted.confidence_interval_.to_numpy().T.copy()
    at_one, at_zero = survival == 1, survival == 0
    low[at_one], high[at_one] = 1, 1
    low[at_zero], high[at_zero] = np.nan, np.nan
    return SurvivalCurve(fitted.survival_function_.index.to_numpy(float), survival, low, high)


def number_at_risk(time: ArrayLike, grid: ArrayLike) -> NDArray[np.int64]:
    """Patients still followed just before each time of the grid."""
    followed = np.sort(np.asarray(time, float))
    return len(followed) - np.searchsorted(followed, np.asarray(grid, float), side="left")


def median_survival(curve: SurvivalCurve) -> float:
    """First time at which survival is at most one half; NaN if it never is."""
    reached = curve.survival <= 0.5 + 1e-12
    return float(curve.time[reached][0]) if reached.any() else float("nan")


def median_follow_up(time: ArrayLike, event: ArrayLike) -> float:
    """Median of the censoring distribution (reverse Kaplan-Meier); NaN if it is not reached."""
    return median_survival(kaplan_meier(time, 1 - np.asarray(event, float)))


def stratified_log_rank(time: ArrayLike, event: ArrayLike, group: ArrayLike, strata: ArrayLike) -> LogRank:
    """Log-rank test of equal hazards in two groups within strata: sums of O - E and of variances over the strata.

    Source: Kalbfleisch and Prentice (2002), section 1.5. NaN if no stratum has an event with both groups at risk.
    """
    t, e = np.asarray(time, float), np.asarray(event, float) == 1
    labels, group_of = np.unique(np.asarray(group), return_inverse=True)
    if len(labels) > 2:
        raise ValueError(f"the stratified test compares two groups, not {len(labels)}")
    stratum = np.asarray(strata)
    difference = variance = 0.0
    for label in np.unique(stratum):
        inside = stratum == label
        at, high = t[inside], group_of[inside] == 1
        times, place = np.unique(at, return_inverse=True)
        deaths = np.bincount(place, e[inside])
        deaths_high = np.bincount(place, e[inside] & high)
        n = np.cumsum(np.bincount(place)[::-1])[::-1]
        n_high = np.cumsum(np.bincount(place, high, minlength=len(times))[::-1])[::-1]
        share = n_high / n
        difference += float((deaths_high - deaths * share).sum())
        variance += float((deaths * share * (1 - share) * (n - deaths) / np.maximum(n - 1, 1)).sum())
    if len(labels) < 2 or variance <= 0:
        return LogRank(float("nan"), max(len(labels) - 1, 0), float("nan"))
    chi2 = difference**2 / variance
    return LogRank(chi2, 1, float(chi2_distribution.sf(chi2, 1)))


def log_rank(time: ArrayLike, event: ArrayLike, group: ArrayLike) -> LogRank:
    """Log-rank test of equal hazards in two or more groups.

    NaN if there are no events or only one group, or if a group leaves before the first event.
    """
    from lifelines.statistics import multivariate_logrank_test

    durations, observed = np.asarray(time, float), np.asarray(event, float)
    labels, group_of = np.unique(np.asarray(group), return_inverse=True)
    degrees = max(len(labels) - 1, 0)
    first_event = durations[observed == 1].min(initial=np.inf)
    last_seen = [durations[group_of == k].max() for k in range(len(labels))]
    if degrees == 0 or min(last_seen) < first_event:
        return LogRank(float("nan"), degrees, float("nan"))
    test = multivariate_logrank_test(durations, group_of, observed)
    return LogRank(float(test.test_statistic), degrees, float(test.p_value))
