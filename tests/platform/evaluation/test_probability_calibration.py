"""Calibration of probabilities against independent fits, closed forms and simulation."""

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import brentq
from scipy.special import expit, logit

from equipoise.platform.evaluation.intervals import wilson
from equipoise.platform.evaluation.logistic import fit_logistic
from equipoise.platform.evaluation.pooled import Pooled
from equipoise.platform.evaluation.probability_calibration import (
    bin_count,
    brier_score,
    calibration_curve,
    calibration_intercept,
    calibration_slope,
    expected_calibration_error,
    natural_spline,
    plug_in_ece,
)


def rows_of(
    target: np.ndarray, score: np.ndarray, group: np.ndarray | None = None, factor: float = 1.0
) -> Pooled:
    n = len(target)
    groups = np.zeros(n, np.int64) if group is None else group
    zeros = np.zeros(n, np.int64)
    return Pooled(np.asarray(target, float), np.asarray(score, float), np.arange(n), groups, zeros, n, factor)


def simulated(
    n: int, seed: int, shift: float = 0.0, slope: float = 1.0, folds: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    z, fold = rng.normal(-0.7, 1.2, n), rng.integers(0, folds, n)
    y = rng.random(n) < expit(shift + slope * z)
    return y.astype(float), expit(z + 0.8 * fold), fold


def unpenalised(x: np.ndarray, y: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=5000)
    return model.fit(x, y, sample_weight=weight).coef_[0]


def test_fit_equals_scikit_learn_with_weights() -> None:
    rng = np.random.default_rng(0)
    x = np.column_stack([np.ones(200), rng.normal(size=(200, 3))])
    y = (rng.random(200) < expit(x @ [0.3, 1, -0.5, 0])).astype(float)
    weight = rng.uniform(0.5, 2, 200)
    fit = fit_logistic(x, y, weight)
    assert fit is not None
    np.testing.assert_allclose(fit.coefficients, unpenalised(x, y, weight), atol=1e-5)
    p = expit(x @ fit.coefficients)
    np.testing.assert_allclose(fit.inverse, np.linalg.inv((x.T * (weight * p * (1 - p))) @ x), rtol=1e-8)


def test_no_fit_where_the_likelihood_has_no_maximum() -> None:
    x = np.column_stack([np.ones(6), [1, 2, 3, 4, 5, 6]])
    assert fit_logistic(x, np.array([0, 0, 0, 1, 1, 1.0])) is None, "separated"
    assert fit_logistic(np.column_stack([x, x[:, 1]]), np.array([0, 1, 0, 1, 0, 1.0])) is None, "collinear"


def test_slope_equals_an_independent_fit_with_an_intercept_per_fold() -> None:
    y, p, fold = simulated(300, 1, slope=0.6, folds=3)
    found = calibration_slope(rows_of(y, p, fold), 0.95)
    x = np.column_stack([np.eye(3)[fold], logit(p)])
    assert found.value == pytest.approx(unpenalised(x, y)[-1], abs=1e-5)
    # White's covariance, written out.
    beta = unpenalised(x, y)
    residual = y - expit(x @ beta)
    bread = np.linalg.inv((x.T * (expit(x @ beta) * (1 - expit(x @ beta)))) @ x)
    white = bread @ ((x.T * residual**2) @ x) @ bread * 300 / 299
    error = np.sqrt(max(white[-1, -1], bread[-1, -1]))
    assert found.high - found.low == pytest.approx(2 * 1.959964 * error, rel=1e-3)
    assert found.reference == 1


def test_a_shift_of_a_whole_fold_does_not_change_the_slope_within_folds() -> None:
    y, p, fold = simulated(200, 2, folds=2)
    moved = expit(logit(p) + 3 * fold)
    values = [calibration_slope(rows_of(y, q, fold), 0.95).value for q in (p, moved)]
    assert values[0] == pytest.approx(values[1], abs=1e-6)


def test_intercept_makes_as_many_events_expected_as_observed() -> None:
    y, p, _ = simulated(150, 3, shift=0.8)
    found = calibration_intercept(rows_of(y, p), 0.95)
    root = brentq(lambda a: (y - expit(logit(p) + a)).sum(), -10, 10)
    assert found.value == pytest.approx(root, abs=1e-8)
    assert found.low < 0.8 < found.high
    q = expit(logit(p) + root)
    narrowest = 2 * 1.959964 / np.sqrt((q * (1 - q)).sum())
    assert found.high - found.low >= narrowest * (1 - 1e-6)


def test_perfect_separation_has_no_slope_and_a_missing_class_no_calibration() -> None:
    y = np.r_[np.zeros(20), np.ones(20)]
    apart = calibration_slope(rows_of(y, np.linspace(0.1, 0.9, 40)), 0.95)
    assert np.isnan(apart.value)
    assert "separate the classes" in apart.note
    nobody = rows_of(np.zeros(20), np.full(20, 0.3))
    for compute in (calibration_slope, calibration_intercept, expected_calibration_error):
        found = compute(nobody, 0.95)
        assert np.isnan(found.value)
        assert "all 20 patients are negative" in found.note
    equal = calibration_slope(rows_of(y, np.full(40, 0.5)), 0.95)
    assert np.isnan(equal.value)
    assert "equal" in equal.note
    assert calibration_curve(nobody, 0.95).empty


def test_few_patients_and_certain_predictions_are_said() -> None:
    y, p, _ = simulated(60, 4, shift=-1.5)
    p[:2] = 0.0
    note = calibration_slope(rows_of(y, p), 0.95).note
    assert "2 predictions closer than 1e-06 to 0 or 1" in note
    assert f"{int(y.sum())} patients of the rarer class: uncertain" in note
    assert "60 patients: uncertain" in expected_calibration_error(rows_of(y, p), 0.95).note


def test_plug_in_error_in_closed_form() -> None:
    y = np.array([0, 0, 1, 1, 0, 1, 1, 1.0])
    p = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9])
    # Bins of four: shares 2/4 and 3/4, means .25 and .75.
    assert plug_in_ece(y, p, 2) == pytest.approx((0.25 + 0.0) / 2)
    # Equal predictions are never split: one bin, |.5 - .3|.
    assert plug_in_ece(np.tile([0, 1.0], 10), np.full(20, 0.3), 5) == pytest.approx(0.2)


def test_the_bias_of_chance_is_what_a_calibrated_model_has() -> None:
    rng = np.random.default_rng(5)
    p = rng.beta(1.5, 3, 200)
    bins = bin_count(200)
    drawn = [plug_in_ece((rng.random(200) < p).astype(float), p, bins) for _ in range(1500)]
    y = (rng.random(200) < p).astype(float)
    found = expected_calibration_error(rows_of(y, p), 0.95)
    # The normal approximation replaces p (1 - p) by its value at the prediction: that is exact in mean here.
    assert found.reference == pytest.approx(np.mean(drawn), rel=0.05)
    assert f"plug-in value {plug_in_ece(y, p, bins):.3f}" in found.note
    assert 0 <= found.low <= found.value <= found.high


def test_with_many_patients_the_error_is_the_true_one() -> None:
    rng = np.random.default_rng(6)
    p = rng.uniform(0.05, 0.75, 60_000)
    y = (rng.random(len(p)) < p + 0.2).astype(float)
    found = expected_calibration_error(rows_of(y, p), 0.95)
    assert found.low < 0.2 < found.high
    assert found.value == pytest.approx(0.2, abs=0.005)


def test_brier_score_is_a_mean_with_its_interval() -> None:
    y, p, _ = simulated(120, 7)
    found = brier_score(rows_of(y, p, factor=1.35), 0.95)
    errors = (y - p) ** 2
    assert found.value == pytest.approx(errors.mean())
    assert found.reference == pytest.approx(y.mean() * (1 - y.mean()))
    ratio = np.exp(1.959964 * np.sqrt(1.35) * errors.std(ddof=1) / np.sqrt(120) / errors.mean())
    assert (found.low, found.high) == pytest.approx((errors.mean() / ratio, errors.mean() * ratio), rel=1e-6)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals_as_published(successes: int, n: int, low: float, high: float) -> None:
    """Newcombe (1998), Statistics in Medicine 17, table I, method 3."""
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_ends_and_fewer_effective_patients() -> None:
    assert wilson(10, 10)[1] == 1.0
    assert np.isnan(wilson(0, 0)).all()
    assert wilson(20, 60, factor=2.0) == pytest.approx(wilson(10, 30))


def test_the_spline_is_linear_beyond_its_knots_and_smooth_between() -> None:
    knots = np.array([-1.0, 0.0, 0.5, 2.0])
    x = np.linspace(-4, 5, 1801)
    columns = natural_spline(x, knots)
    assert columns.shape == (1801, 3)
    second = np.diff(columns, 2, axis=0)
    middle = x[1:-1]
    np.testing.assert_allclose(second[(middle < -1.01) | (middle > 2.01)], 0, atol=1e-9)
    assert np.abs(np.diff(second, axis=0)).max() < 1e-4, "the second derivative has no jump"
    assert np.abs(second[:, 1]).max() > 1e-6


def test_the_curve_equals_an_independent_fit_and_bins_count_everybody() -> None:
    y, p, _ = simulated(400, 8, shift=0.4, slope=0.7)
    curve = calibration_curve(rows_of(y, p), 0.95)
    bins, smooth = (curve[curve["kind"] == kind] for kind in ("bin", "smooth"))
    assert (bins["n"].sum(), bins["n_pos"].sum()) == (400, y.sum())
    first = bins.iloc[0]
    assert (first["low"], first["high"]) == pytest.approx(wilson(first["n_pos"], first["n"]))
    z = logit(p)
    knots = np.quantile(z, [0.05, 0.35, 0.65, 0.95])
    x = np.column_stack([np.ones(400), natural_spline(z, knots)])
    grid = logit(smooth["predicted"].to_numpy())
    at = np.column_stack([np.ones(len(grid)), natural_spline(grid, knots)])
    np.testing.assert_allclose(smooth["observed"], expit(at @ unpenalised(x, y)), atol=1e-4)
    assert ((smooth["low"] < smooth["observed"]) & (smooth["observed"] < smooth["high"])).all()


def test_repeats_weigh_every_patient_once() -> None:
    y, p, _ = simulated(90, 9)
    once = rows_of(y, p)
    twice = Pooled(
        np.tile(y, 2), np.tile(p, 2), np.tile(np.arange(90), 2), np.zeros(180, np.int64),
        np.repeat([0, 1], 90), 90, 1.0,
    )  # fmt: skip
    for compute in (calibration_slope, calibration_intercept, expected_calibration_error, brier_score):
        np.testing.assert_allclose(compute(twice, 0.95)[:4], compute(once, 0.95)[:4], atol=1e-7)
    bins = [calibration_curve(rows, 0.95).query("kind == 'bin'") for rows in (twice, once)]
    pd.testing.assert_frame_equal(*bins)


@pytest.mark.slow
@pytest.mark.parametrize(("shift", "slope"), [(0.0, 1.0), (0.6, 1.0), (-0.3, 0.6)])
def test_intervals_cover_the_truth(shift: float, slope: float) -> None:
    n, studies = 200, 250
    rng = np.random.default_rng(10)
    z = rng.normal(-0.7, 1.2, 300_000)
    gap = expit(shift + slope * z) - expit(z)
    edges = np.quantile(z, np.linspace(0, 1, bin_count(n) + 1)[1:-1])
    number = np.searchsorted(edges, z)
    truth = np.abs(np.bincount(number, gap)).sum() / len(z)
    inside = np.zeros(2)
    for study in range(studies):
        y, p, _ = simulated(n, 1000 + study, shift, slope)
        error = expected_calibration_error(rows_of(y, p), 0.95)
        found = calibration_slope(rows_of(y, p), 0.95)
        inside += (error.low <= truth <= error.high, found.low <= slope <= found.high)
    # Three standard errors of a share of 250 are .041.
    assert (inside / studies > [0.88, 0.905]).all(), inside / studies
