"""Do predicted probabilities mean what they say? Slope, intercept, expected calibration error and calibration curves.

=====================  ==============================================================================================
slope                  b of logit P(y = 1) = a + b logit(p); below 1 predictions are too extreme. Every test fold (and
                       cohort in it) has its own a: only differences inside a fold count
intercept              a of logit P(y = 1) = a + logit(p), calibration in the large; below 0 predictions are too high
expected calibration   mean over bins of equally many patients of \\|observed share - mean prediction\\|, the bias of
error                  chance taken off
=====================  ==============================================================================================

**Bias of the expected calibration error.** Observed shares differ from predictions by chance, so that the error of a
perfectly calibrated model is above 0 in every sample: .06 and more with 200 patients. The *plug-in* value, what other
packages print, contains this. The value here is the true error whose plug-in value is on average the observed one, and
its interval are the true errors for which the observed plug-in value is not extreme; the shape of the deviation over
the bins is taken as observed, and chance is normal in every bin. Neither is below the distance of the mean prediction
from the share of events with its own interval, which the error cannot be. ``reference`` is the plug-in value that a
perfectly calibrated model has on average.

Sources: Cox (1958) and Van Calster et al. (2016, 2019) for slope, intercept and the flexible curve; Naeini, Cooper and
Hauskrecht (2015) for the expected calibration error; Broecker and Smith (2007) and Roelofs et al. (2022) for its bias;
Harrell (2015), section 2.4, for natural splines and their knots.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit, ndtri

from equipoise.platform.evaluation.intervals import wilson
from equipoise.platform.evaluation.logistic import LogisticFit, fit_logistic
from equipoise.platform.evaluation.pooled import Pooled

Floats = NDArray[np.float64]

#: Probabilities are kept this far from 0 and 1 where their logit is taken.
EDGE = 1e-6
#: Patients per bin, and most bins.
PER_BIN, MOST_BINS = 15, 10
#: Patients of the rarer class below which slope and intercept are uncertain, and there is no smooth curve.
FEW = 10
#: Quantiles of the predictions at which natural splines have their knots (Harrell, table 2.3), by number of knots.
_KNOTS = {3: (0.10, 0.50, 0.90), 4: (0.05, 0.35, 0.65, 0.95)}
#: Patients of the rarer class from which the curve has four knots.
_MANY = 50
#: Patients from which the interval of the expected calibration error covers what it says (to .02).
_ENOUGH = 100
_DRAWS = 2000
_SEED = 20220321


class Estimate(NamedTuple):
    """A value with its bounds, NaN where there are none; ``reference`` is that of a perfect model; a note."""

    value: float
    low: float
    high: float
    reference: float
    note: str = ""


_NAN = float("nan")


def calibration_slope(rows: Pooled, confidence: float) -> Estimate:
    """Slope of the logistic recalibration inside folds."""
    if rows.undefined:
        return Estimate(_NAN, _NAN, _NAN, 1.0, f"not estimable: {rows.undefined}")
    z, note = _logits(rows)
    both = [g for g in np.unique(rows.group) if 0 < rows.target[rows.group == g].mean() < 1]
    kept = np.isin(rows.group, both)
    if not kept.any():
        return Estimate(_NAN, _NAN, _NAN, 1.0, "not estimable: no fold has both classes")
    own = (rows.group[kept, None] == np.array(both)[None]).astype(float)
    centred = z[kept] - own @ (own.T @ z[kept] / own.sum(0))
    if np.abs(centred).max() < 1e-9:
        return Estimate(_NAN, _NAN, _NAN, 1.0, "not estimable: all predictions of a fold are equal")
    fit = fit_logistic(np.column_stack([own, centred]), rows.target[kept], rows.weight[kept])
    if fit is None:
        return Estimate(_NAN, _NAN, _NAN, 1.0, "not estimable: the predictions separate the classes")
    influence = np.zeros(len(rows.target))
    influence[kept] = fit.influence[:, -1]
    return _wald(rows, fit, influence, confidence, 1.0, note)


def calibration_intercept(rows: Pooled, confidence: float) -> Estimate:
    """Calibration in the large: the shift of the logits after which as many events are predicted as observed."""
    if rows.undefined:
        return Estimate(_NAN, _NAN, _NAN, 0.0, f"not estimable: {rows.undefined}")
    z, note = _logits(rows)
    fit = fit_logistic(np.ones((len(z), 1)), rows.target, rows.weight, z)
    if fit is None:
        return Estimate(_NAN, _NAN, _NAN, 0.0, "not estimable: predictions are all 0 or 1")
    return _wald(rows, fit, fit.influence[:, 0], confidence, 0.0, note)


def brier_score(rows: Pooled, confidence: float) -> Estimate:
    """Mean squared error of the probabilities; ``reference`` is that of the share of positives for everybody."""
    if not rows.patients:
        return Estimate(_NAN, _NAN, _NAN, _NAN, "not estimable: no labelled patient")
    value, error = rows.mean((rows.target - rows.score) ** 2)
    share = float(rows.mean(rows.target)[0])
    if not error > 0:
        return Estimate(
            float(value), _NAN, _NAN, share * (1 - share), "interval not estimable: all errors are equal"
        )
    wide = float(ndtri(0.5 + confidence / 2) * error / value)  # on the log scale
    low, high = float(value * np.exp(-wide)), float(value * np.exp(wide))
    return Estimate(float(value), low, high, share * (1 - share))


def expected_calibration_error(rows: Pooled, confidence: float) -> Estimate:
    """Expected calibration error without the bias of chance; the mean over repeats where there are several."""
    if rows.undefined:
        return Estimate(_NAN, _NAN, _NAN, 0.0, f"not estimable: {rows.undefined}")
    parts = []
    for repeat in np.unique(rows.repeat):
        here = rows.repeat == repeat
        parts.append(_ece(rows.target[here], rows.score[here], confidence))
    values = np.array([part[:5] for part in parts]).mean(0)
    debiased, low, high, plug_in, chance = values.tolist()
    bins = parts[0][5]
    note = f"plug-in value {plug_in:.3f} in {bins} bins; a perfectly calibrated model has {chance:.3f} on average"
    note += f"; {rows.patients} patients: uncertain" if rows.patients < _ENOUGH else ""
    return Estimate(debiased, low, high, chance, note)


def plug_in_ece(target: ArrayLike, score: ArrayLike, bins: int) -> float:
    """Expected calibration error as it is usually defined, over bins of equally many patients.

    >>> plug_in_ece([0, 1, 1, 1], [0.2, 0.2, 0.8, 0.8], 2)
    0.25
    """
    y, p = np.asarray(target, float), np.asarray(score, float)
    number = _bin_of(p, bins)
    share = np.bincount(number) / len(y)
    return float((share * np.abs(_means(number, y - p))).sum())


def calibration_curve(rows: Pooled, confidence: float) -> pd.DataFrame:
    """Observed against predicted: bins with Wilson intervals, and a natural spline of the logit.

    Columns ``kind`` (``bin`` or ``smooth``), ``predicted``, ``observed``, ``low``, ``high``, ``n``, ``n_pos`` (of a
    bin; a smooth curve has none). Bounds of the curve hold at each prediction, not for the whole curve at once.
    """
    columns = ["kind", "predicted", "observed", "low", "high", "n", "n_pos"]
    if rows.undefined:
        return pd.DataFrame(columns=columns)
    number = _bin_of(rows.score, bin_count(rows.patients))
    weight = rows.weight
    lines = []
    for b in range(number.max() + 1):
        inside = number == b
        n = float(weight[inside].sum())
        positives = float((weight * rows.target)[inside].sum())
        predicted = float((weight * rows.score)[inside].sum() / n)
        low, high = wilson(positives, n, confidence, rows.factor)
        lines.append(("bin", predicted, positives / n, low, high, round(n), round(positives)))
    table = pd.DataFrame(lines, columns=columns)
    smooth = _smooth(rows, confidence)
    return table if smooth is None else pd.concat([table, smooth], ignore_index=True)


def bin_count(patients: int) -> int:
    """Number of bins: at least ``PER_BIN`` patients in each, at most ``MOST_BINS``, at least two."""
    return int(np.clip(patients // PER_BIN, 2, MOST_BINS))


def _logits(rows: Pooled) -> tuple[Floats, str]:
    """Logits of the predictions, with notes on what makes a fit of them uncertain."""
    edge = (rows.score < EDGE) | (rows.score > 1 - EDGE)
    notes = []
    if edge.any():
        notes.append(
            f"{int(edge.sum())} predictions closer than {EDGE:g} to 0 or 1 count as that far from it"
        )
    rare = min(rows.events, rows.patients - rows.events)
    notes += [f"{rare} patients of the rarer class: uncertain"] * (rare < FEW)
    return np.asarray(logit(np.clip(rows.score, EDGE, 1 - EDGE))), "; ".join(notes)


def _wald(
    rows: Pooled, fit: LogisticFit, influence: Floats, confidence: float, reference: float, note: str
) -> Estimate:
    """Interval of the last coefficient, with the larger of the variances of Fisher and White."""
    n = rows.patients
    white = (rows.by_patient(influence) ** 2).sum() * n / max(n - 1, 1)
    error = np.sqrt(max(float(fit.inverse[-1, -1]), white) * rows.factor)
    value, wide = float(fit.coefficients[-1]), float(ndtri(0.5 + confidence / 2) * error)
    return Estimate(value, value - wide, value + wide, reference, note)


def _bin_of(score: Floats, bins: int) -> NDArray[np.int64]:
    """Bin of each prediction, equal predictions in one bin; numbers without gaps."""
    edges = np.unique(np.quantile(score, np.linspace(0, 1, bins + 1)[1:-1]))
    return np.unique(np.searchsorted(edges, score, side="left"), return_inverse=True)[1].astype(np.int64)


def _means(number: NDArray[np.int64], values: Floats) -> Floats:
    return np.bincount(number, values) / np.bincount(number)


def _ece(y: Floats, p: Floats, confidence: float) -> tuple[float, float, float, float, float, int]:
    """Debiased value, its bounds, the plug-in value, that of chance alone, and the number of bins."""
    number = _bin_of(p, bin_count(len(y)))
    size = np.bincount(number)
    share, gap = size / len(y), _means(number, y - p)
    observed = float((share * np.abs(gap)).sum())
    noise = np.random.default_rng(_SEED).standard_normal((_DRAWS, len(size)))

    def of_chance(multiple: float) -> tuple[float, float, float]:
        """Mean and quantiles of the plug-in value if the true gaps are this multiple of the observed ones."""
        q = np.clip(p + multiple * gap[number], 0, 1)
        true = _means(number, q - p)
        error = np.sqrt(_means(number, q * (1 - q)) / size)
        drawn = np.abs(true + noise * error) @ share
        tail = (1 - confidence) / 2
        low, high = np.quantile(drawn, [tail, 1 - tail])
        return float(drawn.mean()), float(low), float(high)

    def true_error(multiple: float) -> float:
        q = np.clip(p + multiple * gap[number], 0, 1)
        return float((share * np.abs(_means(number, q - p))).sum())

    def crossing(which: int) -> float:
        """The multiple at which mean (0), lower (1) or upper (2) quantile is the observed value."""
        if of_chance(0.0)[which] >= observed:
            return 0.0
        low, high = 0.0, 1.0
        while of_chance(high)[which] < observed and high < 64:
            low, high = high, 2 * high
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (middle, high) if of_chance(middle)[which] < observed else (low, middle)
        return (low + high) / 2

    chance = of_chance(0.0)[0]
    value, upper, lower = (true_error(crossing(which)) for which in (0, 1, 2))
    # No true error is below the distance of the means, which is estimated much better than its parts.
    apart, variance = abs(float((y - p).mean())), float((p * (1 - p)).mean() / len(y))
    wide = float(ndtri(0.5 + confidence / 2)) * np.sqrt(variance)
    value = max(value, np.sqrt(max(apart**2 - variance, 0)))
    lower, upper = max(lower, apart - wide), max(upper, apart + wide if apart > wide else 0.0)
    return value, lower, upper, observed, chance, len(size)


def natural_spline(x: Floats, knots: Floats) -> Floats:
    """Columns ``[M, K - 1]`` of a cubic spline that is linear beyond its K knots; the first column is ``x``.

    Harrell (2015), equation 2.24, divided by the squared distance of the outer knots.
    """
    first, before, last = knots[0], knots[-2], knots[-1]

    def cube(knot: float) -> Floats:
        return np.maximum(x - knot, 0) ** 3

    columns = [x]
    for knot in knots[:-2]:
        rest = (cube(before) * (last - knot) - cube(last) * (before - knot)) / (last - before)
        columns.append((cube(knot) - rest) / (last - first) ** 2)
    return np.column_stack(columns)


def _smooth(rows: Pooled, confidence: float) -> pd.DataFrame | None:
    """The calibration curve as a natural spline; None with few patients, few distinct predictions or no fit."""
    rare = min(rows.events, rows.patients - rows.events)
    if rare < FEW:
        return None
    z, _ = _logits(rows)
    knots = np.unique(np.quantile(z, _KNOTS[4 if rare >= _MANY else 3]))
    if len(knots) < 3 or np.diff(knots).min() < 1e-3:
        return None
    design = np.column_stack([np.ones(len(z)), natural_spline(z, knots)])
    fit = fit_logistic(design, rows.target, rows.weight)
    if fit is None:
        return None
    lowest, highest = np.quantile(z, [0.02, 0.98])
    grid = np.linspace(lowest, highest, 60)
    at = np.column_stack([np.ones(len(grid)), natural_spline(grid, knots)])
    by_patient = rows.by_patient(fit.influence)
    white = by_patient.T @ by_patient * rows.patients / max(rows.patients - 1, 1)
    variance = np.maximum(
        np.einsum("gp,pq,gq->g", at, fit.inverse, at), np.einsum("gp,pq,gq->g", at, white, at)
    )
    middle, wide = at @ fit.coefficients, ndtri(0.5 + confidence / 2) * np.sqrt(variance * rows.factor)
    return pd.DataFrame(
        {
            "kind": "smooth", "predicted": expit(grid), "observed": expit(middle), "low": expit(middle - wide),
            "high": expit(middle + wide), "n": np.nan, "n_pos": np.nan,
        }
    )  # fmt: skip
