"""Intervals and tests: DeLong for an AUROC, the patient bootstrap for everything else.

What cannot be estimated is NaN with a reason in ``note``; nothing is dropped or replaced silently.

Sources: DeLong, DeLong and Clarke-Pearson (1988); the midrank algorithm of Sun and Xu (2014); the logit
interval of Pepe (2003), which stays inside (0, 1).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, ndtri
from scipy.stats import norm, rankdata

Floats = NDArray[np.float64]

#: Share of undefined bootstrap replicates above which an interval is not given.
MAX_UNDEFINED = 0.05


class ConfidenceInterval(NamedTuple):
    """Bounds of a confidence interval; both NaN if it is not estimable, and then ``note`` gives the reason."""

    low: float
    high: float
    method: str
    note: str = ""


class PairedTest(NamedTuple):
    """Difference of two AUROCs of the same patients, its standard error, z and two-sided p."""

    difference: float
    se: float
    z: float
    p: float


def delong(target: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats]:
    """AUROCs of k models on the same patients and their covariance.

    Parameters
    ----------
    target
        ``[N]`` of 0 and 1.
    scores
        ``[K, N]`` or ``[N]``.

    Returns
    -------
    ``auc [K]`` and ``covariance [K, K]``; NaN where a class is missing (``auc``) or has one patient
    (``covariance``).
    """
    y = np.asarray(target) == 1
    s = np.atleast_2d(np.asarray(scores, float))
    m, n = int(y.sum()), int((~y).sum())
    k = len(s)
    if m == 0 or n == 0:
        return np.full(k, np.nan), np.full((k, k), np.nan)
    among_all = rankdata(s, axis=1)
    among_positive = rankdata(s[:, y], axis=1)
    among_negative = rankdata(s[:, ~y], axis=1)
    auc = among_all[:, y].sum(1) / (m * n) - (m + 1) / (2 * n)
    if m == 1 or n == 1:
        return auc, np.full((k, k), np.nan)
    of_positive = (among_all[:, y] - among_positive) / n
    of_negative = 1 - (among_all[:, ~y] - among_negative) / m
    covariance = np.cov(of_positive, ddof=1) / m + np.cov(of_negative, ddof=1) / n
    return auc, np.atleast_2d(covariance)


def delong_interval(target: ArrayLike, score: ArrayLike, confidence: float = 0.95) -> ConfidenceInterval:
    """Confidence interval of an AUROC on the logit scale, half-width ``z * se / (a * (1 - a))``."""
    auc, covariance = delong(target, score)
    a, variance = float(auc[0]), float(covariance[0, 0])
    method = "DeLong, logit"
    if np.isnan(a):
        return ConfidenceInterval(np.nan, np.nan, method, "interval not estimable: only one class")
    if np.isnan(variance):
        return ConfidenceInterval(
            np.nan, np.nan, method, "interval not estimable: DeLong needs two patients of each class"
        )
    # A perfect order has no variance in the sample; an interval of width zero would suggest false certainty.
    if variance <= 1e-15 or a in (0.0, 1.0):
        return ConfidenceInterval(
            np.nan, np.nan, method, f"interval not estimable: AUROC is {a:g} with zero estimated variance"
        )
    half = float(ndtri(0.5 + confidence / 2)) * np.sqrt(variance) / (a * (1 - a))
    centre = np.log(a / (1 - a))
    return ConfidenceInterval(float(expit(centre - half)), float(expit(centre + half)), method)


def delong_test(target: ArrayLike, first: ArrayLike, second: ArrayLike) -> PairedTest:
    """Paired test that two scores of the same patients have the same AUROC.

    Identical orders give a difference and an error of 0: that is p = 1, not 0/0.
    """
    auc, covariance = delong(target, np.stack([np.asarray(first, float), np.asarray(second, float)]))
    difference = float(auc[0] - auc[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    if np.isnan(variance):
        return PairedTest(difference, np.nan, np.nan, np.nan)
    if variance <= 1e-15:
        same = abs(difference) < 1e-12
        return PairedTest(difference, 0.0, 0.0 if same else np.nan, 1.0 if same else np.nan)
    se = float(np.sqrt(variance))
    z = difference / se
    return PairedTest(difference, se, z, float(2 * norm.sf(abs(z))))


def bootstrap_weights(strata: ArrayLike, replicates: int, seed: np.random.SeedSequence) -> NDArray[np.uint16]:
    """How often each patient is drawn in each replicate, drawing with replacement inside every stratum.

    Parameters
    ----------
    strata
        ``[N]`` integers; the number drawn from a stratum equals its size in every replicate.
    seed
        Entropy of this unit of work; each stratum spawns its own stream.

    Returns
    -------
    ``[replicates, N]``.
    """
    labels, stratum_of = np.unique(np.asarray(strata), return_inverse=True)
    weights = np.zeros((replicates, len(stratum_of)), np.uint16)
    offsets = np.arange(replicates)[:, None]
    for stratum, child in zip(range(len(labels)), seed.spawn(len(labels)), strict=True):
        (indices,) = np.nonzero(stratum_of == stratum)
        size = len(indices)
        drawn = np.random.default_rng(child).integers(0, size, (replicates, size), dtype=np.int32)
        counts = np.bincount((drawn + offsets * size).ravel(), minlength=replicates * size)
        weights[:, indices] = counts.reshape(replicates, size)
    return weights


def percentile_interval(replicates: ArrayLike, confidence: float, method: str) -> ConfidenceInterval:
    """Percentile interval of bootstrap replicates, or the reason why there is none."""
    values = np.asarray(replicates, float)
    undefined = float(np.isnan(values).mean()) if len(values) else 1.0
    if undefined > MAX_UNDEFINED:
        return ConfidenceInterval(
            np.nan,
            np.nan,
            method,
            f"interval not estimable: undefined in {undefined:.0%} of the bootstrap replicates",
        )
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail])
    if high - low < 1e-12:
        return ConfidenceInterval(
            np.nan, np.nan, method, f"interval not estimable: every bootstrap replicate gives {low:.4g}"
        )
    note = f"undefined in {undefined:.1%} of the bootstrap replicates" if undefined else ""
    return ConfidenceInterval(float(low), float(high), method, note)
