"""DeLong against its definition, properties of the bootstrap, and intervals that are not estimable."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.stats import norm

from equipoise.platform.evaluation.intervals import (
    bootstrap_weights,
    delong,
    delong_interval,
    delong_test,
    percentile_interval,
)


def brute_delong(y: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Structural components by double loops, as in DeLong et al. (1988), equations 4 and 5."""
    pos, neg = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
    psi = np.array(
        [[[1.0 if s[i] > s[j] else 0.5 if s[i] == s[j] else 0.0 for j in neg] for i in pos] for s in scores]
    )
    v10, v01 = psi.mean(2), psi.mean(1)
    return psi.mean((1, 2)), np.cov(v10, ddof=1) / len(pos) + np.cov(v01, ddof=1) / len(neg)


def two_models(seed: int = 0, n: int = 70) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.35).astype(float)
    shared = rng.normal(size=n)
    scores = np.stack([y + shared + rng.normal(size=n) * k for k in (0.5, 1.0)])
    return y, np.round(scores, 1)


@pytest.mark.parametrize("seed", range(4))
def test_delong_equals_its_definition_with_ties(seed: int) -> None:
    y, scores = two_models(seed)
    auc, covariance = delong(y, scores)
    expected_auc, expected = brute_delong(y, scores)
    assert_allclose(auc, expected_auc, rtol=1e-12)
    assert_allclose(covariance, expected, rtol=1e-10)


def test_delong_hand_computed() -> None:
    # Positives 3, 2 and negatives 1, 2: components (1, .75) and (1, .75), variance .03125 / 2 each.
    auc, covariance = delong([1, 1, 0, 0], [3, 2, 1, 2])
    assert auc[0] == 0.875
    assert covariance[0, 0] == pytest.approx(0.03125)
    interval = delong_interval([1, 1, 0, 0], [3, 2, 1, 2])
    half = norm.ppf(0.975) * np.sqrt(0.03125) / (0.875 * 0.125)
    centre = np.log(7)
    assert (interval.low, interval.high) == pytest.approx(
        tuple(1 / (1 + np.exp(-(centre + np.array([-half, half])))))
    )
    assert interval.note == ""


def test_delong_standard_error_agrees_with_the_bootstrap() -> None:
    from equipoise.platform.evaluation.metrics import auroc

    y, scores = two_models(5, 220)
    weights = bootstrap_weights(y, 4000, np.random.SeedSequence(1))
    _, covariance = delong(y, scores)
    drawn = [auroc(y, s, weights) for s in scores]
    assert_allclose(np.sqrt(covariance[0, 0]), drawn[0].std(), rtol=0.05)
    paired = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert_allclose(paired, (drawn[0] - drawn[1]).std(), rtol=0.05)


def test_paired_test() -> None:
    y, scores = two_models(2)
    auc, c = delong(y, scores)
    result = delong_test(y, *scores)
    assert result.difference == pytest.approx(auc[0] - auc[1])
    z = (auc[0] - auc[1]) / np.sqrt(c[0, 0] + c[1, 1] - 2 * c[0, 1])
    assert result.z == pytest.approx(z)
    assert result.p == pytest.approx(2 * norm.sf(abs(z)))
    assert delong_test(y, scores[1], scores[0]).z == pytest.approx(-z)


def test_identical_orders_have_p_one_not_zero_by_zero() -> None:
    y, scores = two_models(3)
    same = delong_test(y, scores[0], 2 * scores[0] + 1)
    assert (same.difference, same.p) == (0, 1)


def test_a_sure_difference_without_variance_has_no_p() -> None:
    result = delong_test([1, 1, 0, 0], [3, 4, 1, 2], [1, 2, 3, 4])
    assert result.difference == 1
    assert np.isnan(result.p)


@pytest.mark.parametrize(
    ("y", "score", "why"),
    [
        ([1, 1, 1], [1, 2, 3], "only one class"),
        ([1, 0, 0], [2, 1, 3], "two patients of each class"),
        ([1, 1, 0, 0], [3, 4, 1, 2], "zero estimated variance"),
        ([1, 1, 0, 0], [1, 2, 3, 4], "zero estimated variance"),
    ],
)
def test_intervals_that_are_not_estimable_say_why(y: list, score: list, why: str) -> None:
    interval = delong_interval(y, score)
    assert np.isnan([interval.low, interval.high]).all()
    assert why in interval.note


def test_logit_interval_stays_inside() -> None:
    rng = np.random.default_rng(0)
    y = np.r_[np.ones(6), np.zeros(30)]
    interval = delong_interval(y, y + 0.7 * rng.normal(size=36), 0.999)
    assert 0 < interval.low < interval.high < 1


def test_every_replicate_keeps_the_size_of_every_stratum() -> None:
    strata = np.array([3, 1, 1, 7, 3, 3, 7, 1, 1])
    weights = bootstrap_weights(strata, 300, np.random.SeedSequence(4))
    assert weights.shape == (300, 9)
    for stratum in (1, 3, 7):
        assert (weights[:, strata == stratum].sum(1) == (strata == stratum).sum()).all()
    assert weights.std(0).min() > 0.5  # everybody is drawn now and then


def test_bootstrap_is_a_function_of_its_seed() -> None:
    strata = np.repeat([0, 1], 20)
    first = bootstrap_weights(strata, 50, np.random.SeedSequence(9))
    assert (first == bootstrap_weights(strata, 50, np.random.SeedSequence(9))).all()
    assert (first != bootstrap_weights(strata, 50, np.random.SeedSequence(10))).any()


def test_percentile_interval() -> None:
    values = np.linspace(0, 1, 1001)
    interval = percentile_interval(values, 0.9, "b")
    assert (interval.low, interval.high, interval.note) == pytest.approx((0.05, 0.95, ""))
    some = np.r_[values, np.full(30, np.nan)]
    assert "undefined in 2.9%" in percentile_interval(some, 0.9, "b").note
    many = np.r_[values, np.full(300, np.nan)]
    assert np.isnan(percentile_interval(many, 0.9, "b").low)
    assert "undefined in 23%" in percentile_interval(many, 0.9, "b").note


def test_zero_width_is_not_an_interval() -> None:
    interval = percentile_interval(np.ones(500), 0.95, "b")
    assert np.isnan([interval.low, interval.high]).all()
    assert "every bootstrap replicate gives 1" in interval.note
