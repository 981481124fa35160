"""Kaplan-Meier curves, numbers at risk and the log-rank test in numpy.

The results equal those of lifelines (tested); this module avoids its import of several seconds at the end of every
run.

Sources: Kaplan and Meier (1958); Greenwood's variance with the log(-log) interval; Mantel (1966); the reverse
Kaplan-Meier median follow-up of Schemper and Smith (1996).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri
from scipy.stats import chi2

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
    """
    times, deaths, at_risk = _life_table(np.asarray(time, float), np.asarray(event, float))
    survival = np.cumprod(1 - deaths / at_risk)
    with np.errstate(divide="ignore", invalid="ignore"):
        greenwood = np.cumsum(deaths / (at_risk * (at_risk - deaths)))
        log_survival = np.log(survival)
        half = float(ndtri(0.5 + confidence / 2)) * np.sqrt(greenwood) / log_survival
        low, high = survival ** np.exp(-half), survival ** np.exp(half)
    at_one, at_zero = survival == 1, survival == 0
    low[at_one], high[at_one] = 1, 1
    low[at_zero], high[at_zero] = np.nan, np.nan
    return SurvivalCurve(np.r_[0, times], np.r_[1, survival], np.r_[1, low], np.r_[1, high])


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


def log_rank(time: ArrayLike, event: ArrayLike, group: ArrayLike) -> LogRank:
    """Log-rank test of equal hazards in two or more groups; NaN if there are no events or only one group."""
    t, e = np.asarray(time, float), np.asarray(event, float)
    labels, group_of = np.unique(np.asarray(group), return_inverse=True)
    k = len(labels)
    at = np.unique(t[e == 1])
    if k < 2 or not len(at):
        return LogRank(float("nan"), max(k - 1, 0), float("nan"))
    in_group = group_of == np.arange(k)[:, None]
    at_risk_KT = np.stack([number_at_risk(t[m], at) for m in in_group]).astype(float)
    deaths_KT = np.stack([((t[m] == at[:, None]) & (e[m] == 1)).sum(1) for m in in_group]).astype(float)
    n_T, d_T = at_risk_KT.sum(0), deaths_KT.sum(0)
    share_KT = at_risk_KT / n_T
    difference_K = (deaths_KT - d_T * share_KT).sum(1)
    factor_T = d_T * (n_T - d_T) / np.maximum(n_T - 1, 1)  # hypergeometric variance; one patient has none
    covariance = np.diag((factor_T * share_KT).sum(1)) - (factor_T * share_KT) @ share_KT.T
    free = slice(0, k - 1)  # differences sum to 0, so one group is redundant
    if np.linalg.matrix_rank(covariance[free, free]) < k - 1:
        return LogRank(float("nan"), k - 1, float("nan"))
    solved = np.linalg.solve(covariance[free, free], difference_K[free])
    statistic = float(difference_K[free] @ solved)
    return LogRank(statistic, k - 1, float(chi2.sf(statistic, k - 1)))


def _life_table(t: Floats, e: Floats) -> tuple[Floats, Floats, Floats]:
    """Distinct times with deaths and patients at risk at each of them."""
    times, index = np.unique(t, return_inverse=True)
    deaths = np.bincount(index, weights=e, minlength=len(times)).astype(float)
    return times, deaths, number_at_risk(t, times).astype(float)
