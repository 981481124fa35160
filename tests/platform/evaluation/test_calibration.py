"""Survival calibrated on validation patients and its Brier score: lifelines, cases by hand, and known hazards."""

import numpy as np
import pandas as pd
import pytest
from lifelines import KaplanMeierFitter
from numpy.testing import assert_allclose

from equipoise.platform.evaluation.calibration import Calibration, PredictedSurvival, breslow
from equipoise.platform.evaluation.evaluate import evaluate
from equipoise.platform.evaluation.params import EvaluationParams
from equipoise.platform.evaluation.predictions import COLUMNS
from equipoise.platform.evaluation.survival_scores import horizon, integrated_brier

Floats = np.ndarray
PARAMS = EvaluationParams(bootstrap=50)


def simulated(seed: int, n: int = 150, slope: float = 1.0) -> tuple[Floats, Floats, Floats]:
    """Whole days, event and log hazard of patients with exponential survival and uniform censoring."""
    rng = np.random.default_rng(seed)
    risk = rng.normal(size=n)
    lived, followed = rng.exponential(500 * np.exp(-slope * risk)), rng.uniform(200, 2000, n)
    return np.ceil(np.minimum(lived, followed)), (lived <= followed).astype(float), risk


def rows_of(role: str, fold: int, seed: int, score: str = "truth", cohort: str = "a") -> pd.DataFrame:
    time, event, risk = simulated(seed)
    patients = [f"{role}{fold}{cohort}{i}" for i in range(len(time))]
    if role == "external":
        patients = [f"x{cohort}{i}" for i in range(len(time))]
    values = {"truth": risk, "constant": np.full(len(risk), 0.3)}[score]
    # The scale of a partial likelihood is arbitrary: each fold has its own.
    return pd.DataFrame(
        {
            "patient": patients, "cohort": cohort, "site": "s", "repeat": 0, "fold": fold, "role": role,
            "task": "OS", "class": "", "score": (1 + fold) * values + 7 * fold, "target": np.nan,
            "time": time, "event": event,
        }, columns=list(COLUMNS),
    )  # fmt: skip


def study(score: str = "truth", *, cohorts: str = "a") -> pd.DataFrame:
    """Two folds, and one external cohort that both models predict."""
    parts = [
        rows_of(role, fold, 10 * fold + 100 * ord(cohort) + (role == "test"), score, cohort)
        for fold in range(2)
        for role in ("val", "test")
        for cohort in cohorts
    ]
    return pd.concat([*parts, *(rows_of("external", k, 7, score, "X") for k in range(2))], ignore_index=True)


def ibs(table: pd.DataFrame, role: str, predictor: str = "model", cohort: str = "all") -> pd.Series:
    chosen = table[(table["metric"] == "ibs") & (table["role"] == role) & (table["fold"] == "all")]
    chosen = chosen[(chosen["predictor"] == predictor) & (chosen["cohort"] == cohort)]
    assert len(chosen) == 1
    return chosen.iloc[0]


@pytest.mark.parametrize("strata", ["", "ab"])
def test_the_calibration_is_that_of_lifelines(strata: str) -> None:
    from lifelines import CoxPHFitter

    time, event, risk = simulated(0)
    cohort = np.array([strata[i % 2] if strata else "a" for i in range(len(time))])
    calibration = Calibration(time, event, 3 * risk + 5, cohort)
    frame = pd.DataFrame({"time": time, "event": event, "risk": 3 * risk + 5, "cohort": cohort})
    fitter = CoxPHFitter(strata=["cohort"] if strata else None)
    fitter.fit(frame if strata else frame.drop(columns="cohort"), "time", "event")
    new = np.array([2.0, 5.0, 8.0])
    at = np.unique(time[(cohort == "a") & (event == 1)])[5:40]  # lifelines interpolates between its times
    expected = fitter.predict_survival_function(
        pd.DataFrame({"risk": new, "cohort": "a"}), times=at
    ).to_numpy()
    got, _ = calibration.survival(new, np.full(3, "a"), at)
    assert_allclose(got, expected.T, rtol=1e-6)
    # Patients of an unknown cohort have the hazard that all share.
    _, other = calibration.survival(new, np.full(3, "c"), at)
    _, own = calibration.survival(new, np.full(3, "a"), at)
    assert (not np.allclose(other, own)) == bool(strata)


def test_the_reference_is_that_of_lifelines() -> None:
    time, event, risk = simulated(0)
    time = np.ceil(time / 30)  # many ties
    at = np.r_[0.5, np.unique(time), time.max() + 1]
    calibration = Calibration(time, event, risk, np.full(len(time), "a"))
    _, reference = calibration.survival(risk[:2], np.full(2, "a"), at)
    expected = KaplanMeierFitter().fit(time, event).predict(at).to_numpy()
    assert_allclose(reference, np.tile(expected, (2, 1)), atol=1e-12)


def test_a_case_by_hand() -> None:
    """Ten equal validation patients die on days 1 to 10; the two test patients on days 4 and 8."""
    days = np.arange(1.0, 11)
    calibration = Calibration(days, np.ones(10), np.zeros(10), np.full(10, "a"))
    assert calibration.reason == ""
    assert_allclose(breslow(days, np.ones(10), np.zeros(10), [2, 2.5]), 1 / 10 + 1 / 9)
    risk, time = np.array([[1.0], [2.0]]), np.array([4.0, 8.0])
    predicted = PredictedSurvival((calibration,), risk, time, np.ones(2), np.full(2, "a"))
    assert predicted.until == 10
    # S(t) = 1 - k / 10 on day k, and nobody is censored: squared errors of 0, 1, 4, 9 (both alive), 26, 25, 26, 29
    # (one alive) and 4, 1 (none) hundredths on days 0 to 9, and 0 on day 10; trapezoids between 101 times.
    expected = (0 + 1 + 4 + 9 + 26 + 25 + 26 + 29 + 4 + 1) / 1000
    of_model, reference = predicted.brier
    assert_allclose([of_model.value, reference.value], expected, rtol=1e-12)


def test_the_true_hazard_beats_kaplan_meier() -> None:
    table = evaluate(study(), PARAMS)
    for role in ("test", "external"):
        cohort = "X" if role == "external" else "all"
        model, reference = ibs(table, role, cohort=cohort), ibs(table, role, "Kaplan-Meier", cohort)
        assert model["value"] < reference["value"] - 0.03
        assert model["low"] < model["value"] < model["high"] < reference["value"]
        assert "calibrated on the validation patients" in model["note"]
        assert np.isnan(reference["low"])
    truth = []
    for fold in range(2):  # the calibrated score is close to that of the true survival probabilities
        time, event, risk = simulated(100 * ord("a") + 10 * fold + 1)
        grid = np.linspace(0, horizon(time, event), 101)[:-1]
        survival = np.exp(-np.exp(risk)[:, None] * grid / 500)
        truth.append(float(integrated_brier(time, event, survival, grid).value))
    assert ibs(table, "test")["value"] == pytest.approx(np.mean(truth), abs=0.015)


def test_a_constant_score_is_kaplan_meier() -> None:
    table = evaluate(study("constant"), PARAMS)
    for role, cohort in (("test", "all"), ("external", "X")):
        got, reference = ibs(table, role, cohort=cohort), ibs(table, role, "Kaplan-Meier", cohort)
        assert_allclose(got["value"], reference["value"], atol=1e-12)


def test_values_do_not_depend_on_the_scale_of_a_fold() -> None:
    rows = study()
    moved = rows.assign(score=rows["score"].where(rows["fold"] == 0, 20 * rows["score"] - 3))
    first, second = evaluate(rows, PARAMS), evaluate(moved, PARAMS)
    for role, cohort in (("test", "all"), ("external", "X")):
        assert_allclose(ibs(first, role, cohort=cohort)["value"], ibs(second, role, cohort=cohort)["value"])


def test_external_survival_is_the_mean_of_the_fold_models() -> None:
    rows = study()
    time, event, risk = simulated(7)
    models = []
    for fold in range(2):
        val = rows[(rows["role"] == "val") & (rows["fold"] == fold)]
        part = (val[name].to_numpy() for name in ("time", "event", "score", "cohort"))
        t, e, r, c = part
        models.append(Calibration(t.astype(float), e.astype(float), r.astype(float), c.astype(str)))
    at = np.array([100.0, 400.0, 900.0])
    cohort = np.full(len(time), "X")
    risks = np.column_stack([risk, 2 * risk + 7])
    alone = [models[m].survival(risks[:, m], cohort, at)[0] for m in range(2)]
    end = PredictedSurvival(tuple(models), risks, time, event, cohort).until
    grid = np.linspace(0, end, 101)
    mean = np.mean([models[m].survival(risks[:, m], cohort, grid)[0] for m in range(2)], axis=0)
    assert not np.allclose(alone[0], alone[1])
    expected = float(integrated_brier(time, event, mean, grid).value)
    assert ibs(evaluate(rows, PARAMS), "external", cohort="X")["value"] == pytest.approx(expected)


def test_few_validation_events_give_no_value_but_the_reason() -> None:
    rows = study()
    of_fold = (rows["role"] == "val") & (rows["fold"] == 1)
    rows.loc[of_fold & (rows.groupby(of_fold).cumcount() >= 9), "event"] = 0.0
    count = int(rows.loc[of_fold, "event"].sum())
    table = evaluate(rows, PARAMS)
    reason = f"{count} events among the validation patients; their calibration needs 10"
    test = ibs(table, "test")
    assert f"mean of 1 of 2 folds; not estimable in 0-1 (0-1: {reason})" in test["note"]
    external = ibs(table, "external", cohort="X")
    assert "survival is the mean of 1 of 2 folds" in external["note"]
    assert np.isfinite(external["value"])
    rows.loc[rows["role"] == "val", "event"] = 0.0
    nothing = evaluate(rows, PARAMS)
    for role, cohort in (("test", "all"), ("external", "X")):
        row = ibs(nothing, role, cohort=cohort)
        assert np.isnan(row["value"])
        assert "0 events among the validation patients" in row["note"]
    without = evaluate(rows[rows["role"] != "val"], PARAMS)
    assert "no validation patient to calibrate the risk" in ibs(without, "test")["note"]
    assert "ibs" not in set(nothing[nothing["role"] == "val"]["metric"])


def test_cohorts_have_their_own_baseline_where_validation_has_enough_events() -> None:
    """Cohorts that differ in nothing but their hazard: the reference per cohort knows it as the model does."""
    rows = study(cohorts="ab")
    rows = rows[rows["role"] != "external"].reset_index(drop=True)
    slow = rows["cohort"] == "b"
    rows.loc[slow, "time"] = np.ceil(rows.loc[slow, "time"] * 3)
    # A score of the cohort alone does not vary within a baseline: it is a constant, too.
    constant = evaluate(rows.assign(score=slow.astype(float)), PARAMS)
    own = ibs(constant, "test")
    assert own["method"].startswith("mean of 2 folds; within cohort")
    assert_allclose(own["value"], ibs(constant, "test", "Kaplan-Meier")["value"], atol=1e-12)
    assert ibs(evaluate(rows, PARAMS), "test")["value"] < own["value"] - 0.03
