"""Kaplan-Meier and log-rank against lifelines."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

from equipoise.platform.evaluation.survival import (
    kaplan_meier,
    log_rank,
    median_follow_up,
    median_survival,
    number_at_risk,
)


def sample(seed: int, n: int = 80) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 3, n)
    time = np.ceil(rng.exponential(20 / (1 + 0.5 * group)))
    return time, (rng.random(n) < 0.65).astype(float), group


@pytest.mark.parametrize("seed", range(3))
def test_curve_and_bounds_equal_lifelines(seed: int) -> None:
    from lifelines import KaplanMeierFitter

    time, event, _ = sample(seed)
    curve = kaplan_meier(time, event, 0.9)
    fitted = KaplanMeierFitter().fit(time, event, alpha=0.1)
    assert_allclose(curve.time, fitted.survival_function_.index)
    assert_allclose(curve.survival, fitted.survival_function_.iloc[:, 0], atol=1e-12)
    bounds = fitted.confidence_interval_.to_numpy()
    inside = (curve.survival < 1) & (curve.survival > 0)
    assert_allclose(curve.low[inside], bounds[inside, 0], rtol=1e-6)
    assert_allclose(curve.high[inside], bounds[inside, 1], rtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("groups", [2, 3])
def test_log_rank_equals_lifelines(seed: int, groups: int) -> None:
    from lifelines.statistics import multivariate_logrank_test

    time, event, group = sample(seed)
    group = group % groups
    expected = multivariate_logrank_test(pd.Series(time), pd.Series(group), pd.Series(event))
    result = log_rank(time, event, group)
    assert result.df == groups - 1
    assert_allclose([result.chi2, result.p], [expected.test_statistic, expected.p_value], rtol=1e-6)


def test_log_rank_without_events_or_with_one_group() -> None:
    assert np.isnan(log_rank([1, 2, 3], [0, 0, 0], [0, 1, 1]).p)
    assert np.isnan(log_rank([1, 2, 3], [1, 1, 0], [1, 1, 1]).p)


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
