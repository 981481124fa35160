"""Net benefit of predicted survival: against the binary formula, lifelines, and coverage in a simulation."""

import numpy as np
import pytest
from lifelines import KaplanMeierFitter
from tests.platform.evaluation.test_survival_calibration import exponential

from equipoise.platform.evaluation.decision_curves import net_benefit
from equipoise.platform.evaluation.params import EvaluationParams
from equipoise.platform.evaluation.pooled import Pooled, pooled_samples
from equipoise.platform.evaluation.predictions import validate
from equipoise.platform.evaluation.survival_decisions import (
    SURVIVAL_DECISION_COLUMNS,
    survival_decision_curves,
    survival_net_benefit,
)

HORIZON = 2.0
T = np.array([0.05, 0.2, 0.4, 0.7])


def patients(
    n: int, seed: int, *, censored: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Follow-up, event, predicted and true share with an event: exponential, the model slightly off."""
    rng = np.random.default_rng(seed)
    rate = 0.25 * np.exp(rng.normal(0, 1, n))
    death = rng.exponential(1 / rate)
    end = rng.exponential(4, n) if censored else np.full(n, np.inf)
    predicted = 1 - np.exp(-HORIZON * rate * np.exp(rng.normal(0, 0.3, n)))
    return np.minimum(death, end), (death <= end).astype(float), predicted, 1 - np.exp(-HORIZON * rate)


def test_without_censoring_it_is_that_of_a_binary_outcome() -> None:
    time, event, predicted, _ = patients(400, 0, censored=False)
    zeros = np.zeros(400, np.int64)
    target = (time <= HORIZON).astype(float)
    binary = net_benefit(Pooled(target, predicted, np.arange(400), zeros, zeros, 400, 1.0), T)
    found = survival_net_benefit(time, event, predicted, HORIZON, T)
    assert found.model == pytest.approx(binary.model)
    assert found.treat_all == pytest.approx(binary.treat_all)
    assert found.gain == pytest.approx(binary.gain)
    for name in ("low", "high", "gain_low", "gain_high"):
        assert getattr(found, name) == pytest.approx(getattr(binary, name)), name


def test_shares_and_intervals_are_those_of_lifelines() -> None:
    time, event, predicted, _ = patients(300, 1)
    time = np.ceil(time * 10) / 10  # many ties
    found = survival_net_benefit(time, event, predicted, HORIZON, T)
    for k, t in enumerate(T):
        called = predicted >= t
        fitted = KaplanMeierFitter().fit(time[called], event[called])
        survival = float(fitted.predict(HORIZON))
        q, odds = called.mean(), t / (1 - t)
        assert found.model[k] == pytest.approx((1 - survival) * q - survival * q * odds)
        table = fitted.event_table.loc[:HORIZON]
        d, r = table["observed"], table["at_risk"]
        greenwood = survival**2 * (d / (r * (r - d))).sum()
        expected = (1 - survival * (1 + odds)) ** 2 * q * (1 - q) / 300 + (q * (1 + odds)) ** 2 * greenwood
        width = found.high[k] - found.low[k]
        assert width == pytest.approx(2 * 1.96 * np.sqrt(expected), rel=0.03)  # Wilson's is near Wald's here


def test_intervals_cover_what_a_million_patients_say() -> None:
    t = np.array([0.1, 0.3, 0.5])
    odds = t / (1 - t)
    _, _, predicted, share = patients(1_000_000, 99)
    worth = share[:, None] - (1 - share[:, None]) * odds
    model = (worth * (predicted[:, None] >= t)).mean(0)
    gain = model - np.maximum(worth.mean(0), 0)
    found = [survival_net_benefit(*patients(250, seed)[:3], HORIZON, t) for seed in range(400)]
    inside = np.mean([(f.low <= model) & (model <= f.high) for f in found], axis=0)
    leads = np.mean([(f.gain_low <= gain) & (gain <= f.gain_high) for f in found], axis=0)
    assert (np.abs(inside - 0.95) <= 0.03).all(), inside
    assert (leads >= 0.92).all(), leads
    assert (leads[1:] <= 0.98).all(), (
        leads
    )  # at .1 one or two patients in a hundred have an event and are not called


def test_nobody_called_is_worth_nothing_and_everybody_as_much_as_treating_all() -> None:
    time, event, predicted, _ = patients(100, 2)
    found = survival_net_benefit(time, event, predicted * 0 + 0.5, HORIZON, [0.4, 0.6])
    assert found.model[0] == pytest.approx(found.treat_all[0])
    assert found.model[1] == 0.0
    assert (found.low[1], found.high[1]) == (0.0, 0.0)
    assert found.gain[0] == 0.0


def test_the_table_of_a_run() -> None:
    params = EvaluationParams(horizon=700)
    table = survival_decision_curves(pooled_samples(validate(exponential(200)), params), params)
    assert tuple(table.columns) == SURVIVAL_DECISION_COLUMNS
    assert len(table) == 99
    assert (table["horizon"] == 700).all()
    assert table["gain_low"].max() > 0, "a true model is of use somewhere"
    short = EvaluationParams(horizon=1e6)
    empty = survival_decision_curves(pooled_samples(validate(exponential(200)), short), short)
    assert len(empty) == 1
    assert empty["net_benefit"].isna().all()
    assert "follow-up ends" in empty["note"].iloc[0]
    assert tuple(empty.columns) == SURVIVAL_DECISION_COLUMNS
