"""Kaplan-Meier and log-rank against published figures and the textbook formula."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from equipoise.platform.evaluation.survival import (
    kaplan_meier,
    log_rank,
    median_follow_up,
    median_survival,
    number_at_risk,
    stratified_log_rank,
)

# Freireich et al., Blood 21 (1963): weeks in remission of acute leukaemia, 6-MP against placebo; 0 is censored.
TREATED = [6, 6, 6, 6, 7, 9, 10, 10, 11, 13, 16, 17, 19, 20, 22, 23, 25, 32, 32, 34, 35]
TREATED_EVENT = [1, 1, 1, 0, 1, 0, 1, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]
PLACEBO = [1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23]


def test_remission_curve_as_published() -> None:
    curve = kaplan_meier(TREATED, TREATED_EVENT)
    at = dict(zip(curve.time.tolist(), curve.survival.round(4).tolist(), strict=True))
    published = {6: 0.8571, 7: 0.8067, 10: 0.7529, 13: 0.6902, 16: 0.6275, 22: 0.5378, 23: 0.4482}
    assert {week: at[week] for week in published} == published
    assert median_survival(curve) == 23
    assert median_survival(kaplan_meier(PLACEBO, [1] * 21)) == 8


def test_bounds_are_those_of_the_log_log_scale() -> None:
    curve = kaplan_meier(TREATED, TREATED_EVENT)
    # Greenwood by hand at week 6: 3 of 21 relapse
    survival, variance = 18 / 21, 3 / (21 * 18)
    half = 1.959963984540054 * np.sqrt(variance) / np.log(survival)
    at_6 = int(np.flatnonzero(curve.time == 6)[0])
    expected = [survival ** np.exp(-half), survival ** np.exp(half)]
    assert_allclose([curve.low[at_6], curve.high[at_6]], expected, rtol=1e-12)


def test_log_rank_of_remission_as_published() -> None:
    test = log_rank([*TREATED, *PLACEBO], [*TREATED_EVENT, *[1] * 21], [1] * 21 + [0] * 21)
    assert test.df == 1
    assert test.chi2 == pytest.approx(16.79, abs=0.005)
    assert test.p == pytest.approx(4.17e-5, rel=0.01)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("groups", [2, 3])
def test_log_rank_is_the_score_of_hypergeometric_tables(seed: int, groups: int) -> None:
    rng = np.random.default_rng(seed)
    group = rng.integers(0, groups, 80)
    time = np.ceil(rng.exponential(20 / (1 + 0.5 * group)))
    event = rng.random(80) < 0.65
    difference, covariance = np.zeros(groups), np.zeros((groups, groups))
    for t in np.unique(time[event]):
        at_risk = np.array([(time[group == k] >= t).sum() for k in range(groups)])
        deaths = np.array([((time == t) & event & (group == k)).sum() for k in range(groups)])
        n, d = at_risk.sum(), deaths.sum()
        share = at_risk / n
        difference += deaths - d * share
        if n > 1:
            covariance += d * (n - d) / (n - 1) * (np.diag(share) - np.outer(share, share))
    expected = difference[1:] @ np.linalg.solve(covariance[1:, 1:], difference[1:])
    test = log_rank(time, event, group)
    assert test.df == groups - 1
    assert test.chi2 == pytest.approx(expected, rel=1e-9)


def test_log_rank_without_events_or_with_one_group() -> None:
    assert np.isnan(log_rank([1, 2, 3], [0, 0, 0], [0, 1, 1]).p)
    assert np.isnan(log_rank([1, 2, 3], [1, 1, 0], [1, 1, 1]).p)


def test_log_rank_of_a_group_that_leaves_before_the_first_event() -> None:
    assert np.isnan(log_rank([1, 2, 3, 4], [0, 1, 1, 1], [0, 1, 1, 1]).p)


def test_numbers_at_risk_count_those_who_leave_at_that_time() -> None:
    assert number_at_risk([1, 2, 2, 5], [0, 1, 2, 3, 5, 6]).tolist() == [4, 4, 3, 1, 1, 0]


def test_medians() -> None:
    curve = kaplan_meier([1, 2, 3, 4], [1, 1, 1, 1])
    assert median_survival(curve) == 2
    assert np.isnan(median_survival(kaplan_meier([1, 2, 3, 4], [1, 0, 0, 0])))
    assert median_follow_up([1, 2, 3, 4], [1, 0, 0, 0]) == 3


def test_bounds_where_the_scale_does_not_reach() -> None:
    curve = kaplan_meier([1, 2, 3], [0, 1, 1])
    assert curve.low[:2].tolist() == [1, 1]
    assert curve.survival[-1] == 0
    assert np.isnan([curve.low[-1], curve.high[-1]]).all()


@pytest.mark.parametrize("seed", range(3))
def test_the_stratified_log_rank_sums_over_strata(seed: int) -> None:
    rng = np.random.default_rng(seed)
    group, stratum = rng.integers(0, 2, 90), rng.integers(0, 3, 90)
    time = np.ceil(rng.exponential(20 / (1 + group + stratum)))
    event = rng.random(90) < 0.65
    difference = variance = 0.0
    for k in range(3):
        for t in np.unique(time[event & (stratum == k)]):
            at_risk = (time >= t) & (stratum == k)
            dead = (time == t) & event & (stratum == k)
            n, n1, d, d1 = (
                at_risk.sum(),
                (at_risk & (group == 1)).sum(),
                dead.sum(),
                (dead & (group == 1)).sum(),
            )
            difference += d1 - d * n1 / n
            variance += d * n1 / n * (1 - n1 / n) * (n - d) / max(n - 1, 1)
    test = stratified_log_rank(time, event, group, stratum)
    assert test.chi2 == pytest.approx(difference**2 / variance)
    whole = stratified_log_rank(time, event, group, np.zeros(90))
    assert whole == pytest.approx(log_rank(time, event, group))


def test_groups_that_are_the_strata_have_no_stratified_test() -> None:
    time, event = np.arange(1.0, 21), np.ones(20)
    group = np.r_[np.zeros(10), np.ones(10)]
    assert log_rank(time, event, group).p < 0.001
    assert np.isnan(stratified_log_rank(time, event, group, group).p)
    with pytest.raises(ValueError, match="two groups, not 3"):
        stratified_log_rank(time, event, np.arange(20) % 3, group)
