"""What is kept of validation patients says the same as the patients themselves."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from equipoise.datasets.tables.tasks import BinaryTask, RegressionTask, SurvivalTask
from equipoise.platform.evaluation.calibration import SurvivalModels
from equipoise.platform.evaluation.params import ThresholdParams
from equipoise.platform.evaluation.thresholds import risk_scales
from equipoise.platform.prediction.operating_points import OperatingPoints, RiskScale

TASKS = (
    BinaryTask(name="MSI", column="MSI", positive="MSI-H", negative="MSS", main=True),
    RegressionTask(name="LF", column="LF"),
    SurvivalTask(name="OS", time={"column": "t", "unit": "days"}, event={"column": "e", "event_value": "1"}),
)


@pytest.fixture
def table() -> pd.DataFrame:
    """Two folds of 60 validation patients, and 5 external patients; risks of the folds on other scales."""
    rng = np.random.default_rng(3)
    rows = []
    for fold in range(2):
        for i in range(60):
            risk, key = (
                rng.normal(),
                {"patient": f"v{fold}-{i}", "cohort": "A", "site": "S", "fold": fold, "role": "val"},
            )
            days = 900 * np.exp(-0.8 * risk) * rng.exponential()
            rows.append(
                key
                | {"task": "OS", "score": 3 * fold + (1 + fold) * risk, "time": 1 + days, "event": i % 3 > 0}
            )
            positive = rng.random() < 0.4
            rows.append(key | {"task": "MSI", "score": rng.beta(2 + 2 * positive, 3), "target": positive})
            rows.append(key | {"task": "LF", "score": rng.normal(), "target": rng.normal()})
        for i in range(5):
            key = {"patient": f"n{i}", "cohort": "B", "site": "B", "fold": fold, "role": "external"}
            rows += [
                key | {"task": "OS", "score": 3 * fold + (1 + fold) * (i - 2)},
                key | {"task": "MSI", "score": 0.2 * i + 0.05 * fold},
                key | {"task": "LF", "score": float(i + fold)},
            ]
    table = pd.DataFrame(rows).astype({"event": float, "target": float}).assign(repeat=0)
    return table.assign(**{"class": np.where(table["task"] == "MSI", "MSI-H", "")})


@pytest.fixture
def points(table: pd.DataFrame) -> OperatingPoints:
    fitted = OperatingPoints.fit(table, TASKS, ThresholdParams())
    return OperatingPoints.from_json(json.loads(json.dumps(fitted.to_json(), allow_nan=False)))


def external(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["role"] == "external"]


def test_survival_is_that_of_the_calibrated_models(table: pd.DataFrame, points: OperatingPoints) -> None:
    rows = table[table["task"] == "OS"]
    models = SurvivalModels.of(rows, "external")
    horizons = points.tasks["OS"].horizons
    assert len(horizons) >= 3
    risks = external(rows).pivot(index="patient", columns="fold", values="score")
    wanted = np.mean(
        [
            calibration.survival(risks[fold].to_numpy(), np.array(["B"] * 5), np.array(horizons, float))[0]
            for (_, fold), calibration in models.calibrations.items()
        ],
        axis=0,
    )
    found = points.apply(external(table))
    found = found[found["output"] == "survival"].pivot(index="patient", columns="class", values="score")
    for j, days in enumerate(horizons):
        assert found[f"{days} days"].to_numpy() == pytest.approx(wanted[:, j], abs=1e-12)
        assert (np.diff(found[f"{days} days"]) < 0).all()  # patients are ordered by their risk


def test_risks_are_means_of_standardised_risks(table: pd.DataFrame, points: OperatingPoints) -> None:
    val = table[(table["task"] == "OS") & (table["role"] == "val")]
    z = np.zeros(5)
    cut = []
    for fold in range(2):
        known = val.loc[val["fold"] == fold, "score"].to_numpy()
        z += (3 * fold + (1 + fold) * (np.arange(5) - 2) - known.mean()) / known.std() / 2
        cut.append(np.median((known - known.mean()) / known.std()))
    found = points.apply(external(table))
    found = found[found["output"] == "risk"]
    assert found["score"].to_numpy() == pytest.approx(z, abs=1e-12)
    assert found["threshold"].to_numpy() == pytest.approx(np.mean(cut), abs=1e-12)
    assert found["call"].tolist() == np.where(z > np.mean(cut), "high risk", "low risk").tolist()


def test_a_refit_has_the_mean_threshold_and_its_own_scale(
    table: pd.DataFrame, points: OperatingPoints
) -> None:
    known = list(points.tasks["MSI"].cutoffs.values())
    refit = points.for_refit({"OS": RiskScale(mean=1.0, sd=2.0)})
    assert refit.tasks["MSI"].cutoffs == {"0-0": pytest.approx(np.mean(known))}
    one = external(table)[external(table)["fold"] == 0]
    found = refit.apply(one)
    risk = found[found["output"] == "risk"]["score"].to_numpy()
    assert risk == pytest.approx((np.arange(5) - 2 - 1) / 2)
    assert len(refit.tasks["OS"].survival) == 2
    assert (found["output"] == "survival").sum() == 5 * len(points.tasks["OS"].horizons)


def test_what_cannot_be_fixed_is_said(table: pd.DataFrame) -> None:
    rows = table[~((table["role"] == "val") & (table["task"] == "OS") & (table["event"] == 1))]
    rows = rows.assign(target=rows["target"].where(rows["task"] != "MSI", 1.0).where(rows["role"] == "val"))
    points = OperatingPoints.fit(rows, TASKS, ThresholdParams())
    assert "0 events among the validation patients" in points.tasks["OS"].note
    assert "nothing is called" in points.tasks["MSI"].note
    found = points.apply(external(rows))
    msi = found[found["task"] == "MSI"]
    assert (msi["call"] == "").all()
    assert msi["threshold"].isna().all()
    assert not (found["output"] == "survival").any()


def test_a_model_that_orders_nobody_has_no_risk(table: pd.DataFrame) -> None:
    rows = table.assign(score=table["score"].where(table["task"] != "OS", 1.0))
    points = OperatingPoints.fit(rows, TASKS, ThresholdParams())
    assert risk_scales(rows[rows["task"] == "OS"]).empty
    found = points.apply(external(rows))
    risk = found[found["output"] == "risk"]
    assert len(risk) == 5
    assert risk["score"].isna().all()
    assert (risk["call"] == "").all()
