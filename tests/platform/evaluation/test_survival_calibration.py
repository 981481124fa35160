"""Predicted survival at a horizon against Kaplan-Meier written out, and against a known truth."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from equipoise.platform.evaluation.params import EvaluationParams
from equipoise.platform.evaluation.pooled import pooled_samples
from equipoise.platform.evaluation.predictions import COLUMNS, validate
from equipoise.platform.evaluation.survival_calibration import SURVIVAL_COLUMNS, survival_calibration

Rows = Callable[..., pd.DataFrame]


def table_of(predictions: pd.DataFrame, params: EvaluationParams) -> pd.DataFrame:
    return survival_calibration(pooled_samples(validate(predictions), params), params)


def exponential(n: int = 600, off: float = 1.0) -> pd.DataFrame:
    """One fold whose risks are log hazards; test patients die ``off`` times as fast as validation patients."""
    rng = np.random.default_rng(3)
    rows = []
    for role, faster in (("val", 1.0), ("test", off)):
        risk = rng.normal(0, 0.8, n)
        death = rng.exponential(1200 * np.exp(-risk) / faster)
        censored = rng.uniform(300, 4000, n)
        rows.append(
            pd.DataFrame(
                {
                    "patient": [f"{role}{i:04d}" for i in range(n)], "cohort": "a", "site": "a", "repeat": 0,
                    "fold": 0, "role": role, "task": "OS", "class": "", "score": risk, "target": np.nan,
                    "time": np.minimum(death, censored), "event": (death <= censored).astype(float),
                }
            )
        )  # fmt: skip
    return pd.concat(rows, ignore_index=True)[list(COLUMNS)]


def kaplan_meier(part: pd.DataFrame, horizon: float) -> float:
    survival = 1.0
    for time in sorted(part.loc[(part["event"] == 1) & (part["time"] <= horizon), "time"].unique()):
        survival *= 1 - ((part["time"] == time) & (part["event"] == 1)).sum() / (part["time"] >= time).sum()
    return survival


def test_groups_are_kaplan_meier_and_a_true_model_is_calibrated() -> None:
    predictions = exponential()
    table = table_of(predictions, EvaluationParams(horizon=700))
    assert list(table.columns) == list(SURVIVAL_COLUMNS)
    assert table["group"].tolist() == ["all", "1", "2", "3", "4", "5"]
    test = predictions[predictions["role"] == "test"]
    assert table.loc[0, "observed"] == pytest.approx(1 - kaplan_meier(test, 700))
    fifths = pd.qcut(test["score"], 5, labels=False).to_numpy()
    for k in range(5):
        assert table.loc[k + 1, "observed"] == pytest.approx(1 - kaplan_meier(test[fifths == k], 700))
    assert table["predicted"].iloc[1:].is_monotonic_increasing
    inside = (table["low"] <= table["predicted"]) & (table["predicted"] <= table["high"])
    assert inside.all()
    truth = 1 - np.exp(-np.exp(test["score"]) * 700 / 1200)
    assert table.loc[0, "predicted"] == pytest.approx(truth.mean(), abs=0.03)


def test_patients_who_die_faster_than_predicted_are_seen() -> None:
    table = table_of(exponential(off=2.0), EvaluationParams(horizon=700))
    assert (table["observed"] > table["predicted"]).all()
    assert table.loc[0, "low"] > table.loc[0, "predicted"]


def test_the_horizon_is_the_longest_with_enough_follow_up() -> None:
    params = EvaluationParams()
    assert table_of(exponential(), params)["horizon"].iloc[0] == 5 * 365.25
    short = exponential()
    short["event"] = short["event"].where(short["time"] < 800, 0)
    short["time"] = short["time"].clip(upper=800)
    assert table_of(short, params)["horizon"].iloc[0] == 2 * 365.25
    late = table_of(short, EvaluationParams(horizon=3000))
    assert np.isnan(late["observed"]).all()
    assert "the validated follow-up ends after" in late["note"].iloc[0]


def test_without_enough_events_there_is_a_reason(survival: Rows) -> None:
    predictions = pd.concat([survival(role) for role in ("val", "test", "external")], ignore_index=True)
    table = table_of(predictions, EvaluationParams())
    assert set(table["role"]) == {"test", "external"}
    assert table["note"].str.startswith("not estimable").all()
