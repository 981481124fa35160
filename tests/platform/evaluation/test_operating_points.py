"""Decisions at operating points, counted by hand."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from equipoise.platform.evaluation.evaluate import evaluate
from equipoise.platform.evaluation.intervals import wilson
from equipoise.platform.evaluation.operating_points import (
    OPERATING_COLUMNS,
    TwoByTwo,
    decisions,
    misclassified,
    operating_points,
    rules,
)
from equipoise.platform.evaluation.params import EvaluationParams, ThresholdParams
from equipoise.platform.evaluation.pooled import pooled_samples
from equipoise.platform.evaluation.predictions import validate
from equipoise.platform.evaluation.thresholds import fold_thresholds

Rows = Callable[..., pd.DataFrame]


def table_of(predictions: pd.DataFrame, params: EvaluationParams) -> pd.DataFrame:
    known = validate(predictions)
    return operating_points(pooled_samples(known, params), known, params)


def test_shares_of_a_worked_table() -> None:
    table = TwoByTwo(tp=8, fp=5, fn=2, tn=85)
    assert [table.share(name) for name in ("sensitivity", "specificity", "ppv", "npv", "accuracy")] == [
        (8, 10), (85, 90), (8, 13), (85, 87), (93, 100),
    ]  # fmt: skip
    assert (TwoByTwo(0, 0, 2, 8).one_sided, TwoByTwo(2, 8, 0, 0).one_sided) == ("nobody", "everybody")
    assert table.one_sided == ""


def test_counts_and_intervals_of_test_folds_and_external_cohort(binary: Rows) -> None:
    predictions = pd.concat([binary(role) for role in ("val", "test", "external")], ignore_index=True)
    params = EvaluationParams()
    table = table_of(predictions, params)
    assert list(table.columns) == list(OPERATING_COLUMNS)
    assert list(table["point"].unique()) == ["Youden", "sensitivity >= 0.95", "specificity >= 0.95"]
    assert list(table.loc[table["headline"], "point"].unique()) == ["Youden"]
    cuts = fold_thresholds(predictions, params.threshold)
    test = predictions[predictions["role"] == "test"]
    called = (
        test["score"].to_numpy() >= cuts.loc[list(zip(test["repeat"], test["fold"], strict=True))].to_numpy()
    )
    truth = test["target"].to_numpy() == 1
    row = table[(table["role"] == "test") & table["headline"] & (table["metric"] == "ppv")].iloc[0]
    assert (row["tp"], row["fp"]) == ((truth & called).sum(), (~truth & called).sum())
    assert row["value"] == pytest.approx(row["tp"] / (row["tp"] + row["fp"]))
    # Four folds: the variance is 1 + 1.4 / 3 times that of independent patients.
    assert (row["low"], row["high"]) == pytest.approx(wilson(row["tp"], row["n"], 0.95, 1 + 1.4 / 3))
    outside = table[(table["role"] == "external") & table["headline"] & (table["metric"] == "accuracy")].iloc[
        0
    ]
    mean = predictions[predictions["role"] == "external"].groupby("patient")[["score", "target"]].mean()
    right = ((mean["score"] >= cuts.mean()) == (mean["target"] == 1)).sum()
    assert (outside["successes"], outside["n"]) == (right, len(mean))
    assert (outside["low"], outside["high"]) == pytest.approx(wilson(right, len(mean)))


def test_a_threshold_that_calls_nobody_is_said_in_both_tables(binary: Rows) -> None:
    predictions = pd.concat([binary(role) for role in ("val", "test")], ignore_index=True)
    fixed = ThresholdParams(metric="fixed", value=0.999)
    params = EvaluationParams(
        threshold=fixed, operating_points=[ThresholdParams(metric="fixed", value=0.0001)]
    )
    table = table_of(predictions, params).set_index(["headline", "metric"])
    assert np.isnan(table.loc[(True, "ppv"), "value"])
    assert "nobody is called positive" in table.loc[(True, "ppv"), "note"]
    assert table.loc[(True, "sensitivity"), "value"] == 0
    assert "calls everybody positive" in table.loc[(False, "npv"), "note"]
    metrics = evaluate(predictions, params)
    row = metrics[
        (metrics["metric"] == "sensitivity") & (metrics["fold"] == "all") & (metrics["role"] == "test")
    ]
    assert "the threshold calls nobody positive in 4 of 4 parts" in row.iloc[0]["note"]


def test_a_fixed_threshold_needs_no_validation_patients(binary: Rows) -> None:
    table = table_of(binary("test"), EvaluationParams(threshold=ThresholdParams(metric="fixed", value=0.5)))
    assert table.loc[table["headline"], "n"].gt(0).all()
    others = table[~table["headline"]]
    assert others["value"].isna().all()
    assert others["note"].str.contains("no fold has validation patients of both classes").all()


def test_rules_are_listed_once_with_that_of_headlines_first() -> None:
    rule = ThresholdParams(metric="specificity", value=0.95)
    params = EvaluationParams(threshold=rule)
    assert [r.label for r in rules(params)] == ["specificity >= 0.95", "sensitivity >= 0.95"]


def test_the_most_confident_errors_come_first(binary: Rows, multiclass: Rows) -> None:
    predictions = pd.concat([binary(role) for role in ("val", "test", "external")], ignore_index=True)
    rule = ThresholdParams()
    wrong = misclassified(predictions, rule)
    decided = pd.concat([decisions(predictions, rule, role) for role in ("test", "external")])
    expected = decided[decided["positive"] != (decided["target"] == 1)]
    assert set(wrong["patient"]) == set(expected.index)
    assert wrong["margin"].is_monotonic_decreasing
    assert (wrong["actual"] != wrong["called"]).all()
    first = wrong.iloc[0]
    assert first["margin"] == pytest.approx(expected.loc[first["patient"], "margin"].__abs__())
    classes = misclassified(multiclass("test"), rule)
    mean = multiclass("test").pivot(index="patient", columns="class", values="score")
    assert (mean.loc[classes["patient"]].idxmax(axis=1).to_numpy() == classes["called"].to_numpy()).all()
