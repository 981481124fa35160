"""Net benefit against the formula of Vickers and Elkin, worked by hand."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from equipoise.platform.evaluation.decision_curves import (
    DECISION_COLUMNS,
    THRESHOLDS,
    decision_curves,
    net_benefit,
    useful_range,
)
from equipoise.platform.evaluation.params import EvaluationParams
from equipoise.platform.evaluation.pooled import Pooled, pooled_samples
from equipoise.platform.evaluation.predictions import validate

Rows = Callable[..., pd.DataFrame]


def worked_example() -> Pooled:
    """A hundred patients, 30 with an event; at 20 % the model calls 25 of them and 20 others."""
    target = np.r_[np.ones(30), np.zeros(70)]
    score = np.r_[np.full(25, 0.6), np.full(5, 0.1), np.full(20, 0.3), np.full(50, 0.05)]
    zeros = np.zeros(100, np.int64)
    return Pooled(target, score, np.arange(100), zeros, zeros, 100, 1.0)


def test_net_benefit_by_hand() -> None:
    found = net_benefit(worked_example(), [0.2, 0.5])
    # TP / n - FP / n t / (1 - t): at 20 % .25 - .20 / 4; at 50 % the 25 alone. Treat all: pi - (1 - pi) t / (1 - t).
    assert found.model == pytest.approx([0.25 - 0.20 * 0.25, 0.25])
    assert found.treat_all == pytest.approx([0.30 - 0.70 * 0.25, 0.30 - 0.70])
    assert found.gain == pytest.approx([0.20 - 0.125, 0.25])


def test_intervals_are_near_those_of_means_and_wider_where_patients_trained_the_models() -> None:
    found = net_benefit(worked_example(), [0.2])
    worth = np.r_[np.ones(25), np.zeros(5), np.full(20, -0.25), np.zeros(50)]
    everybody = np.r_[np.ones(30), np.full(70, -0.25)]
    assert found.high - found.low == pytest.approx(2 * 1.96 * worth.std(ddof=1) / 10, rel=0.05)
    lead = (worth - everybody).std(ddof=1) / 10
    assert found.gain_high - found.gain_low == pytest.approx(2 * 1.96 * lead, rel=0.1)
    wider = net_benefit(Pooled(**{**worked_example().__dict__, "factor": 1.35}), [0.2])
    assert wider.high - wider.low == pytest.approx((found.high - found.low) * np.sqrt(1.35), rel=0.05)


def test_ten_patients_without_an_event_do_not_show_that_sparing_them_is_right() -> None:
    """At 2 % one event in fifty balances; none among ten is what most useless models see (82 % of them)."""
    target, score = np.r_[np.zeros(10), np.ones(20), np.zeros(70)], np.r_[np.zeros(10), np.full(90, 0.5)]
    zeros = np.zeros(100, np.int64)
    found = net_benefit(Pooled(target, score, np.arange(100), zeros, zeros, 100, 1.0), [0.02])
    assert found.gain[0] == pytest.approx(0.1 * 0.02 / 0.98)
    assert found.gain_low[0] < 0
    share = 0.2775  # upper limit of none among ten: Wilson, z^2 / (n + z^2)
    sparing = 0.1 * (share / 0.98)
    assert found.gain_low[0] == pytest.approx(found.gain[0] - sparing, rel=0.01)


def test_repeated_tests_of_a_patient_are_not_further_patients() -> None:
    once = worked_example()
    twice = Pooled(
        *(np.tile(v, 2) for v in (once.target, once.score, once.patient)),
        np.repeat([0, 1], 100), np.repeat([0, 1], 100), 100, 1.0,
    )  # fmt: skip
    for one, two in zip(net_benefit(once), net_benefit(twice), strict=True):
        assert two == pytest.approx(one, nan_ok=True)


def test_a_threshold_below_all_scores_treats_all_and_above_all_treats_none() -> None:
    found = net_benefit(worked_example(), [0.01, 0.9])
    assert found.model[0] == pytest.approx(found.treat_all[0])
    assert found.model[1] == 0.0
    assert found.gain[1] == 0.0


def test_curves_of_a_table(binary: Rows, multiclass: Rows) -> None:
    parts = [make(role) for make in (binary, multiclass) for role in ("val", "test", "external")]
    predictions = validate(pd.concat(parts, ignore_index=True))
    params = EvaluationParams()
    table = decision_curves(pooled_samples(predictions, params), params)
    assert list(table.columns) == list(DECISION_COLUMNS)
    keys = table[["role", "cohort", "task", "class"]].drop_duplicates()
    assert len(keys) == 2 * (1 + 3)
    assert len(table) == len(keys) * len(THRESHOLDS)
    assert (table["low"] <= table["net_benefit"]).all()
    assert (table["net_benefit"] <= table["high"]).all()
    test = predictions[(predictions["role"] == "test") & (predictions["task"] == "MSI")]
    at = table[(table["task"] == "MSI") & (table["role"] == "test") & (table["threshold"] == 0.5)].iloc[0]
    called = test["score"] >= 0.5
    by_hand = ((called & (test["target"] == 1)).sum() - (called & (test["target"] == 0)).sum()) / len(test)
    assert at["net_benefit"] == pytest.approx(by_hand)
    assert at["n"] == test["patient"].nunique()


def test_the_range_in_which_the_model_is_useful() -> None:
    curve = pd.DataFrame({"threshold": [0.1, 0.2, 0.3, 0.4], "gain_low": [-0.1, 0.02, 0.01, -0.2]})
    assert useful_range(curve) == (0.2, 0.3)
    assert useful_range(curve.assign(gain_low=-1.0)) is None
