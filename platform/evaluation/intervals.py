"""Intervals and tests of cross-validated metrics and of fixed models, from influence values.

V, the variance of a mean over folds for fixed models (:mod:`~equipoise.platform.evaluation.influence`), is too small
for a cross-validation: every patient also trained the models of the other folds. Simulations put Var(error) / V at
0.9 to 2.3. V is therefore multiplied, by the estimand that the interval is for:

- *these models* on new patients: 1 + a n_te / n_tr,
- *the procedure* that trained them, on training parts of that size: 1 + b n_te / n_tr, b at most K (the factor of
  Nadeau and Bengio on V),

with a and b of :class:`Inflation`: for 5 folds and the AUROC 1.35 and 2. A model that shares no patient with the tested
ones (an external cohort, a single split) needs no factor; it says nothing about the procedure, so that there are no
bounds for it. From three repeats the variance is that of the mean over repeats, with the spread of their means, and at
least V. ``python -m benchmarks.coverage`` measures what the intervals cover.

What cannot be estimated is NaN with a reason in ``note``; nothing is dropped or replaced silently.

Sources: DeLong, DeLong and Clarke-Pearson (1988); the logit interval of Pepe (2003), which stays inside (0, 1); Fisher
(1921) for correlations; Nadeau and Bengio (2003); LeDell, Petersen and van der Laan (2015); Bates, Hastie and
Tibshirani (2024) for the two estimands.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit, ndtri
from scipy.stats import norm
from scipy.stats import t as student

from equipoise.platform.evaluation.influence import ENOUGH_REPEATS, Cell, CellMean, auroc_influence

Floats = NDArray[np.float64]

#: Share of undefined bootstrap replicates above which an interval is not given.
MAX_UNDEFINED = 0.05
#: Factor on the variance of a difference of two models that were trained by the same cross-validation.
PAIR_FACTOR = 1.5
#: Variance below which the sample has none.
_NOTHING = 1e-15


class ConfidenceInterval(NamedTuple):
    """Bounds of a confidence interval; both NaN if it is not estimable, and then ``note`` gives the reason.

    ``low`` and ``high`` are for ``estimand`` (these models); ``low_procedure`` and ``high_procedure`` for the procedure
    that trained them, NaN where the data say nothing about it.
    """

    low: float
    high: float
    method: str
    note: str = ""
    low_procedure: float = float("nan")
    high_procedure: float = float("nan")
    estimand: str = ""


class PairedTest(NamedTuple):
    """Difference of two models on the same patients, its standard error, test statistic and two-sided p."""

    difference: float
    se: float
    statistic: float
    p: float


class Inflation(NamedTuple):
    """How much V grows per n_te / n_tr, for these models and for the procedure."""

    models: float
    procedure: float

    def factors(self, mean: CellMean) -> tuple[float, float]:
        """Factors on V for these models and for the procedure; NaN for the procedure of a single split."""
        if mean.folds == 1:
            return 1.0, 1.0 if mean.repeats > 1 else float(
                "nan"
            )  # the directions of splits have their factor
        ratio = mean.ratio
        return 1 + self.models * ratio, 1 + min(self.procedure, float(mean.folds)) * ratio


#: Measured for the AUROC with 5 folds, and used for every metric that nobody has measured.
AUROC_INFLATION = Inflation(1.4, 4.0)
#: Measured for Pearson's r with 5 folds.
PEARSON_INFLATION = Inflation(1.0, 2.0)
#: Measured for the concordance with 5 folds; its jackknife is conservative by itself.
CONCORDANCE_INFLATION = Inflation(0.0, 1.0)


class Scale(NamedTuple):
    """A transformation on which a metric is closer to normal, its inverse, and its slope at a value."""

    name: str
    forward: Callable[[float], float]
    inverse: Callable[[float], float]
    slope: Callable[[float], float]


def _logit_slope(value: float) -> float:
    inside = min(max(value, 0.01), 0.99)
    return 1 / (inside * (1 - inside))


#: For shares and areas in (0, 1).
LOGIT = Scale("logit", lambda v: float(logit(v)), lambda z: float(expit(z)), _logit_slope)
#: For correlations in (-1, 1).
FISHER = Scale(
    "Fisher z",
    lambda v: float(np.arctanh(v)),
    lambda z: float(np.tanh(z)),
    lambda v: 1 / (1 - min(v**2, 0.99)),
)
#: For errors above 0.
LOG = Scale("log", lambda v: float(np.log(v)), lambda z: float(np.exp(z)), lambda v: 1 / v)
#: For R², which is at most 1: the log of the share of variance that is left.
LOG_REST = Scale(
    "log(1 - R²)",
    lambda v: float(-np.log1p(-v)),
    lambda z: float(-np.expm1(min(-z, 700.0))),
    lambda v: 1 / (1 - v),
)
#: For everything else.
PLAIN = Scale("plain", float, float, lambda v: 1.0)


def influence_interval(
    mean: CellMean,
    confidence: float,
    scale: Scale = LOGIT,
    inflation: Inflation = AUROC_INFLATION,
    *,
    fixed: bool = False,
    few: bool = False,
) -> ConfidenceInterval:
    """Interval of a mean over cells for these models, and for the procedure that trained them.

    Parameters
    ----------
    mean
        The mean with its influence values.
    confidence
        Level.
    scale
        Scale on which half-widths are taken.
    inflation
        Growth of V.
    fixed
        The models were not trained on any of these patients in any fold.
    few
        Fewer positives in a fold than the factors were measured with: those of the procedure are used for both.
    """
    single = mean.folds == 1 and mean.repeats == 1
    nothing = float("nan")
    models, procedure = (1.0, nothing) if fixed else inflation.factors(mean)
    if few and not fixed and not single:
        models = procedure = max(models, procedure)
    repeated = mean.repeats >= ENOUGH_REPEATS and mean.folds > 1 and not fixed
    if repeated:
        wide = max(mean.variance, mean.repeated_variance)
        variances = (wide, max(wide, models * mean.variance))
        how = f"variance over {mean.repeats} repeats, for the procedure at least x {models:.3g}"
    elif mean.folds == 1 and mean.repeats > 1 and not fixed:
        variances = (mean.repeated_variance, mean.repeated_variance)
        how = "variance x (1 / splits + n_te / n_tr)"
    elif fixed or single:
        variances = (mean.variance, nothing)
        how = "variance as it is"
    else:
        variances = (models * mean.variance, procedure * mean.variance)
        how = f"variance x {models:.3g}, x {procedure:.3g} for the procedure"
    method = f"influence values, {scale.name}, {how}"
    value = mean.value
    if np.isnan(mean.variance):
        return ConfidenceInterval(
            nothing, nothing, method, "interval not estimable: too few patients in a fold"
        )
    # A perfect order has no variance in the sample; an interval of width zero would suggest false certainty.
    if mean.variance <= _NOTHING:
        reason = f"interval not estimable: value {value:.4g} with zero estimated variance"
        return ConfidenceInterval(nothing, nothing, method, reason)
    centre, slope = scale.forward(value), scale.slope(value)
    if not np.isfinite([centre, slope]).all():
        reason = f"interval not estimable: value {value:.4g} is at the end of its range"
        return ConfidenceInterval(nothing, nothing, method, reason)
    z = float(ndtri(0.5 + confidence / 2))
    bounds = [
        scale.inverse(centre + sign * z * np.sqrt(variance) * slope)
        for variance in variances
        for sign in (-1, 1)
    ]
    return ConfidenceInterval(bounds[0], bounds[1], method, "", bounds[2], bounds[3])


def paired_test(difference: CellMean, *, fixed: bool = False) -> PairedTest:
    """Test that two models have the same mean over cells.

    Repeated cross-validation (three repeats or more): the corrected resampled t of Nadeau and Bengio over the folds.
    Otherwise z with 1.5 V of the paired influence values, or V where the models are ``fixed`` or come from a single
    split, as none of the tested patients trained them. Identical orders give a difference and an error of 0: that is
    p = 1, not 0 / 0.
    """
    d, variance = difference.value, difference.variance
    if np.isnan(variance):
        return PairedTest(d, np.nan, np.nan, np.nan)
    if variance <= _NOTHING:
        same = abs(d) < 1e-12
        return PairedTest(d, 0.0, 0.0 if same else np.nan, 1.0 if same else np.nan)
    if not fixed and difference.repeats >= ENOUGH_REPEATS and difference.folds > 1:
        return corrected_t(difference.fold_means, difference.ratio)
    se = float(np.sqrt(pair_factor(difference, fixed=fixed)) * np.linalg.norm(difference.directions))
    return PairedTest(d, se, d / se, float(2 * norm.sf(abs(d / se))))


def pair_factor(mean: CellMean, *, fixed: bool) -> float:
    """Factor on the squared directions of a difference."""
    if fixed or (mean.folds == 1 and mean.repeats == 1):
        return 1.0
    return 1.0 if mean.repeats >= ENOUGH_REPEATS and mean.folds > 1 else PAIR_FACTOR


def corrected_t(differences: ArrayLike, ratio: float) -> PairedTest:
    """Corrected resampled t test of Nadeau and Bengio (2003), equation 9.

    Parameters
    ----------
    differences
        ``[J]``: difference of two models in each of J test parts.
    ratio
        Test over training patients of a part.

    >>> corrected_t([0.1, 0.2, 0.0, 0.1], 0.25).p.__round__(3)
    0.182
    """
    d = np.asarray(differences, float)
    j = len(d)
    mean, se = float(d.mean()), float(np.sqrt((1 / j + ratio) * d.var(ddof=1)))
    if se <= 1e-12:
        same = abs(mean) < 1e-12
        return PairedTest(mean, 0.0, 0.0 if same else np.nan, 1.0 if same else np.nan)
    return PairedTest(mean, se, mean / se, float(2 * student.sf(abs(mean / se), j - 1)))


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
    auc, influence = auroc_influence(target, np.atleast_2d(np.asarray(scores, float)))
    return auc, influence @ influence.T


def delong_interval(target: ArrayLike, score: ArrayLike, confidence: float = 0.95) -> ConfidenceInterval:
    """Confidence interval of the AUROC of a fixed model on the logit scale, half-width ``z * se / (a * (1 - a))``."""
    auc, influence = auroc_influence(target, score)
    if np.isnan(auc):
        return ConfidenceInterval(np.nan, np.nan, "DeLong, logit", "interval not estimable: only one class")
    mean = CellMean.of([Cell(float(auc), influence, np.arange(len(influence)))], len(influence))
    if mean is None:
        reason = "interval not estimable: DeLong needs two patients of each class"
        return ConfidenceInterval(np.nan, np.nan, "DeLong, logit", reason)
    return influence_interval(mean, confidence, fixed=True)._replace(method="DeLong, logit")


def wilson(successes: float, n: float, confidence: float = 0.95, factor: float = 1.0) -> tuple[float, float]:
    """Score interval of a share (Wilson 1927), which has bounds for 0 and n successes too; NaN without patients.

    Parameters
    ----------
    successes, n
        Counts; not whole numbers where patients are weighted.
    factor
        By how much the variance exceeds that of independent patients: they count as ``n / factor``.

    >>> [round(bound, 4) for bound in wilson(81, 263)]
    [0.2553, 0.3662]
    """
    if not n > 0:
        return float("nan"), float("nan")
    low, high = wilson_limits(successes / n, n / factor, float(ndtri(0.5 + confidence / 2)))
    return float(low), float(high)


def wilson_limits(share: ArrayLike, size: ArrayLike, z: float) -> tuple[Floats, Floats]:
    """Limits of :func:`wilson` for arrays of shares and of numbers of independent patients; NaN where there are none.

    ``z`` is the normal quantile, 1.96 for 95 %.
    """
    p, n = np.asarray(share, float), np.asarray(size, float)
    n = np.where(n > 0, n, np.nan)
    centre, total = p + z**2 / (2 * n), 1 + z**2 / n
    wide = np.sqrt(z**2 * (p * (1 - p) / n + z**2 / (4 * n**2)))
    low, high = (centre - wide) / total, (centre + wide) / total
    return np.where((p == 0) & (n > 0), 0.0, low), np.where((p == 1) & (n > 0), 1.0, high)


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
