"""Metrics against scikit-learn, lifelines and brute force, with ties, weights and edge cases."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from equipoise.platform.evaluation import metrics


def sample(seed: int, n: int = 60, ties: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets, scores (rounded, so that many are equal) and small integer weights."""
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.3).astype(float)
    y[:2] = 0, 1
    s = rng.normal(size=n) + y
    return y, np.round(s, 1) if ties else s, rng.integers(0, 4, n).astype(float)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ties", [True, False])
def test_auroc_and_average_precision_equal_scikit_learn(seed: int, ties: bool) -> None:
    from sklearn.metrics import average_precision_score, roc_auc_score

    y, s, w = sample(seed, ties=ties)
    assert_allclose(metrics.auroc(y, s), roc_auc_score(y, s), rtol=1e-13)
    assert_allclose(metrics.auroc(y, s, w), roc_auc_score(y, s, sample_weight=w), rtol=1e-13)
    assert_allclose(metrics.average_precision(y, s), average_precision_score(y, s), rtol=1e-13)
    expected = average_precision_score(y, s, sample_weight=w)
    assert_allclose(metrics.average_precision(y, s, w), expected, rtol=1e-13)


def test_decisions_equal_scikit_learn() -> None:
    from sklearn.metrics import balanced_accuracy_score, confusion_matrix, recall_score

    y, s, w = sample(1)
    called = s >= 0.4
    assert_allclose(
        metrics.balanced_accuracy(y, called, w), balanced_accuracy_score(y, called, sample_weight=w)
    )
    assert_allclose(metrics.sensitivity(y, called, w), recall_score(y, called, sample_weight=w))
    assert_allclose(metrics.specificity(y, called, w), recall_score(1 - y, ~called, sample_weight=w))
    tn, fp, fn, tp = confusion_matrix(y, called, sample_weight=w).ravel()
    assert [float(v) for v in metrics.confusion(y, called, w)] == [tp, fp, fn, tn]


def test_regression_metrics_equal_scikit_learn_and_numpy() -> None:
    from sklearn.metrics import mean_absolute_error, r2_score

    rng = np.random.default_rng(3)
    y, w = rng.normal(50, 9, 80), rng.integers(0, 4, 80).astype(float)
    s = 0.6 * y + rng.normal(20, 5, 80)
    assert_allclose(metrics.pearson(y, s), np.corrcoef(y, s)[0, 1], rtol=1e-12)
    repeated = np.repeat(np.arange(80), w.astype(int))
    assert_allclose(metrics.pearson(y, s, w), np.corrcoef(y[repeated], s[repeated])[0, 1], rtol=1e-12)
    assert_allclose(metrics.r2(y, s, w), r2_score(y, s, sample_weight=w), rtol=1e-12)
    assert_allclose(metrics.mae(y, s, w), mean_absolute_error(y, s, sample_weight=w), rtol=1e-12)


def survival_sample(seed: int, n: int = 50) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    risk = np.round(rng.normal(size=n), 1)
    time = np.ceil(rng.exponential(12 * np.exp(-risk)) + 1)  # whole months: many ties
    return time, (rng.random(n) < 0.6).astype(float), risk


@pytest.mark.parametrize("seed", range(5))
def test_harrell_equals_lifelines_with_ties(seed: int) -> None:
    from lifelines.utils import concordance_index

    time, event, risk = survival_sample(seed)
    assert_allclose(metrics.harrell_c(time, event, risk), concordance_index(time, -risk, event), rtol=1e-12)


def brute_harrell(time: np.ndarray, event: np.ndarray, risk: np.ndarray) -> float:
    right = pairs = 0.0
    for i, j in itertools.permutations(range(len(time)), 2):
        if event[i] == 1 and (time[j] > time[i] or (time[j] == time[i] and event[j] == 0)):
            pairs += 1
            right += 1.0 if risk[j] < risk[i] else 0.5 if risk[j] == risk[i] else 0.0
    return right / pairs


def test_harrell_weights_are_multiplicities_also_over_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_EVENTS_AT_ONCE", 7)
    time, event, risk = survival_sample(11, 30)
    drawn = np.random.default_rng(1).integers(0, 3, (4, 30))
    values = metrics.harrell_c(time, event, risk, drawn)
    for k in range(4):
        rows = np.repeat(np.arange(30), drawn[k])
        assert_allclose(values[k], brute_harrell(time[rows], event[rows], risk[rows]), rtol=1e-12)


def stratified_sample(seed: int, n: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Survival of three cohorts, in which the cohort decides most of time and risk."""
    time, event, risk = survival_sample(seed, n)
    cohort = np.random.default_rng(seed).choice(["A", "B", "C"], n, p=[0.5, 0.3, 0.2])
    return time + 12.0 * (cohort == "A"), event, np.round(risk - 2 * (cohort == "A"), 1), cohort


@pytest.mark.parametrize("seed", range(4))
def test_stratified_harrell_counts_the_pairs_within_strata(seed: int) -> None:
    from lifelines.utils import concordance_index

    time, event, risk, cohort = stratified_sample(seed)
    counts = [0.0, 0.0, 0.0]
    for i, j in itertools.permutations(range(len(time)), 2):
        later = time[j] > time[i] or (time[j] == time[i] and event[j] == 0)
        if event[i] == 1 and later and cohort[i] == cohort[j]:
            counts[0] += 1
            counts[1] += risk[j] < risk[i]
            counts[2] += risk[j] == risk[i]
    pairs = metrics.concordance(time, event, risk, strata=cohort)
    assert [float(count) for count in pairs] == counts
    value = metrics.harrell_c(time, event, risk, strata=cohort)
    assert_allclose(value, (counts[1] + 0.5 * counts[2]) / counts[0], rtol=1e-12)
    parts = [cohort == name for name in "ABC"]
    of_cohort = [concordance_index(time[at], -risk[at], event[at]) for at in parts]
    weight = [float(metrics.concordance(time[at], event[at], risk[at]).comparable) for at in parts]
    assert_allclose(value, np.average(of_cohort, weights=weight), rtol=1e-12)


def test_a_risk_that_knows_only_the_cohort_has_a_stratified_c_of_one_half() -> None:
    time, event, _, cohort = stratified_sample(3, 200)
    risk = (cohort != "A").astype(float)
    assert metrics.harrell_c(time, event, risk) > 0.6
    assert metrics.harrell_c(time, event, risk, strata=cohort) == 0.5


def test_stratified_weights_are_multiplicities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_EVENTS_AT_ONCE", 7)
    time, event, risk, cohort = stratified_sample(5, 40)
    drawn = np.random.default_rng(2).integers(0, 3, (3, 40))
    values = metrics.harrell_c(time, event, risk, drawn, strata=cohort)
    for k in range(3):
        at = np.repeat(np.arange(40), drawn[k])
        assert_allclose(values[k], metrics.harrell_c(time[at], event[at], risk[at], strata=cohort[at]))


def test_harrell_hand_computed() -> None:
    # Pairs: (1, 2), (1, 3), (1, 4) right, (2, 3) wrong, (2, 4) tied; 3 is censored at the time of nobody.
    assert metrics.harrell_c([1, 2, 3, 4], [1, 1, 0, 0], [9, 1, 2, 1]) == pytest.approx(3.5 / 5)
    # Same time: event against censored is a pair, event against event is not.
    assert metrics.harrell_c([5, 5], [1, 0], [2, 1]) == 1.0
    assert np.isnan(metrics.harrell_c([5, 5], [1, 1], [2, 1]))


@given(seed=st.integers(0, 10_000), replicates=st.integers(1, 5))
def test_a_row_of_weights_gives_what_it_gives_alone(seed: int, replicates: int) -> None:
    rng = np.random.default_rng(seed)
    y, s, _ = sample(seed, 24)
    w = rng.integers(0, 3, (replicates, 24))
    for metric in (metrics.auroc, metrics.average_precision, metrics.pearson, metrics.r2, metrics.mae):
        together = metric(y, s, w)
        assert together.shape == (replicates,)
        assert_allclose(together, [metric(y, s, row) for row in w], rtol=1e-9, equal_nan=True)


def test_what_cannot_be_computed_is_nan() -> None:
    y, s = np.ones(4), np.arange(4.0)
    assert np.isnan(metrics.auroc(y, s))
    assert np.isnan(metrics.auroc([], []))
    assert np.isnan(metrics.average_precision(np.zeros(4), s))
    assert np.isnan(metrics.balanced_accuracy(y, s > 1))
    assert np.isnan(metrics.pearson(s, np.full(4, 0.1)))
    assert np.isnan(metrics.pearson(np.full(4, 1e6), s))
    assert np.isnan(metrics.r2(np.full(4, 0.3), s))
    assert np.isnan(metrics.harrell_c(s + 1, np.zeros(4), s))
    assert np.isnan(metrics.auroc([1, 0], [1, 2], [[0, 3], [1, 0]])).all()


def test_random_order_and_perfect_order() -> None:
    y = np.array([0, 0, 1, 1])
    assert metrics.auroc(y, np.full(4, 0.5)) == 0.5
    assert metrics.average_precision(y, np.full(4, 0.5)) == metrics.prevalence(y) == 0.5
    assert metrics.auroc(y, [1, 2, 3, 4]) == 1.0
    assert metrics.auroc(y, [4, 3, 2, 1]) == 0.0


def test_large_offsets_do_not_look_constant() -> None:
    x = 1e6 + np.arange(10.0)
    assert metrics.pearson(x, np.arange(10.0)) == pytest.approx(1.0)
    assert metrics.r2(x, x + 1) == pytest.approx(1 - 10 / np.sum((x - x.mean()) ** 2))
