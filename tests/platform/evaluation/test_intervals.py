"""DeLong against its definition, factors on the variance, paired tests, and intervals that are not estimable."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.stats import norm

from equipoise.platform.evaluation.influence import Cell, CellMean, auroc_influence
from equipoise.platform.evaluation.intervals import (
    CONCORDANCE_INFLATION,
    FISHER,
    LOG_REST,
    LOGIT,
    PEARSON_INFLATION,
    bootstrap_weights,
    corrected_t,
    delong,
    delong_interval,
    influence_interval,
    paired_test,
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


def mean_of(y: np.ndarray, score: np.ndarray, folds: int = 1, repeats: int = 1) -> CellMean:
    """Mean AUROC over folds; every repeat assigns the patients to folds again."""
    cells = []
    for repeat in range(repeats):
        rng = np.random.default_rng(repeat)
        fold = np.empty(len(y), int)
        for label in (0, 1):
            index = np.flatnonzero(y == label)
            fold[index] = rng.permutation(len(index)) % folds
        for k in range(folds):
            (index,) = np.nonzero(fold == k)
            value, influence = auroc_influence(y[index], score[index])
            cells.append(Cell(float(value), influence, index, repeat, k))
    mean = CellMean.of(cells, len(y))
    assert mean is not None
    return mean


def difference_of(
    y: np.ndarray, first: np.ndarray, second: np.ndarray, folds: int = 1, repeats: int = 1
) -> CellMean:
    result = mean_of(y, first, folds, repeats).minus(mean_of(y, second, folds, repeats))
    assert result is not None
    return result


def test_a_pair_of_fixed_models_is_tested_as_delong_did() -> None:
    y, scores = two_models(2)
    auc, c = delong(y, scores)
    result = paired_test(difference_of(y, *scores), fixed=True)
    assert result.difference == pytest.approx(auc[0] - auc[1])
    z = (auc[0] - auc[1]) / np.sqrt(c[0, 0] + c[1, 1] - 2 * c[0, 1])
    assert result.statistic == pytest.approx(z)
    assert result.p == pytest.approx(2 * norm.sf(abs(z)))
    assert paired_test(difference_of(y, scores[1], scores[0]), fixed=True).statistic == pytest.approx(-z)


def test_a_pair_of_cross_validated_models_has_one_and_a_half_times_the_variance() -> None:
    y, scores = two_models(2, 200)
    apart = difference_of(y, *scores, folds=5)
    fixed, crossed = paired_test(apart, fixed=True), paired_test(apart)
    assert fixed.se == pytest.approx(np.sqrt(apart.variance))
    assert crossed.se == pytest.approx(np.sqrt(1.5) * fixed.se)
    assert crossed.p == pytest.approx(2 * norm.sf(abs(crossed.difference / crossed.se)))


def test_repeats_take_the_corrected_t() -> None:
    y, scores = two_models(2, 200)
    apart = difference_of(y, *scores, folds=5, repeats=3)
    assert len(apart.fold_means) == 15
    expected = np.sqrt((1 / 15 + 1 / 4) * apart.fold_means.var(ddof=1))
    result = paired_test(apart)
    assert result == corrected_t(apart.fold_means, 0.25)
    assert (result.difference, result.se) == pytest.approx((apart.value, expected))


def test_identical_orders_have_p_one_not_zero_by_zero() -> None:
    y, scores = two_models(3)
    same = paired_test(difference_of(y, scores[0], 2 * scores[0] + 1))
    assert (same.difference, same.p) == (0, 1)


def test_a_sure_difference_without_variance_has_no_p() -> None:
    y = np.array([1, 1, 0, 0])
    result = paired_test(difference_of(y, np.array([3, 4, 1, 2]), np.array([1, 2, 3, 4])))
    assert result.difference == 1
    assert np.isnan(result.p)


def test_factors_by_the_number_of_folds() -> None:
    """1.35 and 2 for five folds; the procedure never beyond the factor of Nadeau and Bengio, 1 + K n_te / n_tr."""
    y, scores = two_models(1, 300)
    five, two = mean_of(y, scores[0], 5), mean_of(y, scores[0], 2)
    for mean, models, procedure in ((five, 1.35, 2.0), (two, 2.4, 3.0)):
        interval = influence_interval(mean, 0.95)
        slope = 1 / (mean.value * (1 - mean.value))
        centre = np.log(mean.value / (1 - mean.value))
        for high, factor in ((interval.high, models), (interval.high_procedure, procedure)):
            half = norm.ppf(0.975) * np.sqrt(factor * mean.variance) * slope
            assert high == pytest.approx(1 / (1 + np.exp(-centre - half)))
    assert CONCORDANCE_INFLATION.factors(five) == (1, 1.25)
    assert PEARSON_INFLATION.factors(five) == (1.25, 1.5)
    few = influence_interval(five, 0.95, few=True)
    assert (few.low, few.high) == (few.low_procedure, few.high_procedure)
    assert few.low == pytest.approx(influence_interval(five, 0.95).low_procedure)


def test_a_single_split_and_an_external_cohort_say_nothing_about_the_procedure() -> None:
    y, scores = two_models(1, 300)
    exact = delong_interval(y, scores[0])
    for interval in (
        influence_interval(mean_of(y, scores[0]), 0.95),
        influence_interval(mean_of(y, scores[0]), 0.95, fixed=True),
    ):
        assert (interval.low, interval.high) == pytest.approx((exact.low, exact.high))
        assert np.isnan([interval.low_procedure, interval.high_procedure]).all()


def test_repeats_are_never_narrower_than_one() -> None:
    """Averaging over repeats shrinks the influence of each patient, but not what the patients leave unknown."""
    y, scores = two_models(1, 300)
    many = mean_of(y, scores[0], 5, repeats=5)
    interval = influence_interval(many, 0.95)
    expected = max(many.variance, (many.by_repeat.mean(0) ** 2).sum() + 4 * many.repeat_means.var(ddof=1))
    half = norm.ppf(0.975) * np.sqrt(expected) / (many.value * (1 - many.value))
    assert interval.high == pytest.approx(1 / (1 + np.exp(-np.log(many.value / (1 - many.value)) - half)))
    assert interval.high_procedure - interval.low_procedure >= interval.high - interval.low


@pytest.mark.parametrize(
    ("scale", "values"), [(LOGIT, (0.2, 0.9)), (FISHER, (-0.5, 0.8)), (LOG_REST, (-3.0, 0.4))]
)
def test_scales_go_back_and_have_their_slope(scale: object, values: tuple[float, ...]) -> None:
    for v in values:
        assert scale.inverse(scale.forward(v)) == pytest.approx(v)  # type: ignore[attr-defined]
        step = (scale.forward(v + 1e-6) - scale.forward(v - 1e-6)) / 2e-6  # type: ignore[attr-defined]
        assert scale.slope(v) == pytest.approx(step, rel=1e-5)  # type: ignore[attr-defined]


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
