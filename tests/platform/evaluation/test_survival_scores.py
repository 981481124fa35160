"""Uno's C, dynamic AUC and Brier score: frozen values of scikit-survival , and their definitions."""

import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose

from equipoise.platform.evaluation.metrics import auroc, harrell_c
from equipoise.platform.evaluation.survival_scores import (
    brier,
    dynamic_auc,
    integrated_brier,
    uncensored,
    uno_c,
)

TIMES = np.array([5.0, 10.0, 20.0])


def cohort(n: int = 80, seed: int = 7) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whole days with many ties, risks with many ties, a third censored."""
    rng = np.random.default_rng(seed)
    risk = np.round(rng.normal(size=n), 1)
    life = np.ceil(rng.exponential(20 * np.exp(-risk)))
    censored = np.ceil(rng.exponential(30, size=n))
    return np.minimum(life, censored), (life <= censored).astype(float), risk


def survival(risk: np.ndarray) -> np.ndarray:
    return np.exp(-np.outer(np.exp(0.8 * risk), TIMES / 22.0))


def test_values_are_those_of_scikit_survival() -> None:
    """concordance_index_ipcw, cumulative_dynamic_auc, brier_score and integrated_brier_score of the same patients."""
    time, event, risk = cohort()
    assert_allclose(uno_c(time, event, risk).value, 0.715995755851077, rtol=1e-12)
    assert_allclose(uno_c(time, event, risk, tau=15.0).value, 0.7337305165439776, rtol=1e-12)
    aucs = [float(dynamic_auc(time, event, risk, at).value) for at in TIMES]
    assert_allclose(aucs, [0.668115848947002, 0.7860774478859334, 0.7518773642204122], rtol=1e-12)
    scores = brier(time, event, survival(risk), TIMES).mean(0)
    assert_allclose(scores, [0.15306251079981095, 0.16954849219435889, 0.19551734477104626], rtol=1e-12)
    assert_allclose(
        integrated_brier(time, event, survival(risk), TIMES).value, 0.17545711282083004, rtol=1e-12
    )


def test_the_censoring_curve_is_that_of_lifelines() -> None:
    from lifelines import KaplanMeierFitter

    time, event, _ = cohort()
    # lifelines lets a censoring precede an event at the same time: half a day apart there is no such tie.
    moved = time + 0.5 * (event == 0)
    fitted = KaplanMeierFitter().fit(moved, 1 - event)
    expected = fitted.survival_function_at_times(np.unique(time) + 0.5).to_numpy()
    assert_allclose(uncensored(time, event, np.unique(time)), expected, rtol=1e-12)


def test_without_censoring_they_are_the_usual_ones() -> None:
    time, _, risk = cohort()
    event = np.ones(len(time))
    assert_allclose(uno_c(time, event, risk).value, harrell_c(time, event, risk), rtol=1e-12)
    assert_allclose(dynamic_auc(time, event, risk, 10).value, auroc(time <= 10, risk), rtol=1e-12)
    s = survival(risk)
    assert_allclose(brier(time, event, s, TIMES), ((time[:, None] > TIMES) - s) ** 2, rtol=1e-12)


def test_uno_is_its_definition() -> None:
    time, event, risk = cohort(40, seed=3)
    left = uncensored(time, event, time)
    right = pairs = 0.0
    for i, j in itertools.permutations(range(40), 2):
        if event[i] and (time[j] > time[i] or (time[j] == time[i] and not event[j])):
            pairs += left[i] ** -2
            right += left[i] ** -2 * (1.0 if risk[j] < risk[i] else 0.5 if risk[j] == risk[i] else 0.0)
    assert_allclose(uno_c(time, event, risk).value, right / pairs, rtol=1e-12)


@pytest.mark.parametrize("score", ["uno", "auc", "brier"])
def test_influence_tells_the_spread_over_samples(score: str) -> None:
    """The mean estimated variance is that of the value over 300 samples; of the Brier score it is a little more."""

    def of(seed: int) -> tuple[float, float]:
        time, event, risk = cohort(120, seed)
        result = {
            "uno": lambda: uno_c(time, event, risk, tau=30.0),
            "auc": lambda: dynamic_auc(time, event, risk, 10.0),
            "brier": lambda: integrated_brier(time, event, survival(risk), TIMES),
        }[score]()
        return float(result.value), float(np.nansum(result.influence**2))

    values, variances = np.array([of(seed) for seed in range(300)]).T
    ratio = variances.mean() / values.var(ddof=1)
    assert (1.0 if score == "brier" else 0.75) < ratio < (1.8 if score == "brier" else 1.33)


def test_what_cannot_be_computed_is_nan_or_refused() -> None:
    time, event, risk = cohort(20)
    assert np.isnan(uno_c(time, np.zeros(20), risk).value)
    assert np.isnan(uno_c(time, event, risk, tau=0.0).value)
    assert np.isnan(dynamic_auc(time, event, risk, 0.5).value)
    assert np.isnan(dynamic_auc(time, event, risk, 1e6).value)
    with pytest.raises(ValueError, match="two ascending times"):
        integrated_brier(time, event, survival(risk), TIMES[:1])


def test_a_risk_without_information_scores_one_half() -> None:
    time, event, _ = cohort()
    flat = np.zeros(len(time))
    assert uno_c(time, event, flat).value == pytest.approx(0.5)
    assert dynamic_auc(time, event, flat, 10.0).value == pytest.approx(0.5)
