"""Thresholds, cut-offs and scales depend on validation data and on nothing else."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from equipoise.platform.evaluation.params import ThresholdParams
from equipoise.platform.evaluation.thresholds import (
    apply_cutoffs,
    choose_threshold,
    ensemble,
    fold_means,
    fold_risk_cutoffs,
    fold_thresholds,
    risk_scales,
    standardise_risks,
)

Rows = Callable[..., pd.DataFrame]
YOUDEN = ThresholdParams()


def test_youden_lies_midway_and_takes_the_first_maximum_from_above() -> None:
    assert choose_threshold([0, 0, 1, 1], [0.1, 0.3, 0.5, 0.9], YOUDEN) == pytest.approx(0.4)
    # 0.8 (sensitivity 1/2, specificity 1) ties with 0.35 (1, 1/2): the higher one wins.
    assert choose_threshold([0, 1, 0, 1], [0.2, 0.5, 0.7, 0.9], YOUDEN) == pytest.approx(0.8)


def test_youden_equals_the_best_of_all_cuts() -> None:
    from sklearn.metrics import roc_curve

    rng = np.random.default_rng(0)
    y = (rng.random(60) < 0.4).astype(float)
    s = np.round(rng.normal(size=60) + y, 1)
    fpr, tpr, _ = roc_curve(y, s)
    cut = choose_threshold(y, s, YOUDEN)
    reached = ((s >= cut) & (y == 1)).sum() / (y == 1).sum() - ((s >= cut) & (y == 0)).sum() / (y == 0).sum()
    assert reached == pytest.approx((tpr - fpr).max())


@pytest.mark.parametrize(("value", "expected"), [(0.5, 0.65), (0.75, 0.45), (1.0, 0.15)])
def test_sensitivity_rule_takes_the_highest_threshold_that_reaches_it(value: float, expected: float) -> None:
    rule = ThresholdParams(metric="sensitivity", value=value)
    y, s = [1, 0, 1, 0, 1, 0, 1], [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.2]
    y, s = [*y, 0], [*s, 0.1]
    assert choose_threshold(y, s, rule) == pytest.approx(expected)


def test_without_both_classes_there_is_no_threshold() -> None:
    assert np.isnan(choose_threshold([1, 1], [0.2, 0.4], YOUDEN))
    assert np.isnan(choose_threshold([0, 0], [0.2, 0.4], YOUDEN))


def test_equal_scores_call_everybody_positive() -> None:
    assert choose_threshold([0, 1], [0.5, 0.5], YOUDEN) < 0.5


def test_thresholds_come_from_validation_alone(binary: Rows) -> None:
    val, test = binary("val"), binary("test")
    both = fold_thresholds(pd.concat([val, test]), YOUDEN)
    assert list(both.index) == [(0, k) for k in range(4)]
    scrambled = test.assign(target=1 - test["target"], score=test["score"] ** 3)
    assert both.equals(fold_thresholds(pd.concat([val, scrambled]), YOUDEN))
    assert fold_thresholds(test, YOUDEN).empty
    unlabelled = val.assign(target=np.where(val["fold"] == 2, np.nan, val["target"]))
    assert (0, 2) not in fold_thresholds(unlabelled, YOUDEN).index


def test_risk_cuts_and_means_come_from_validation(survival: Rows, regression: Rows) -> None:
    rows = pd.concat([survival("val"), survival("test")])
    expected = rows[rows["role"] == "val"].groupby("fold")["score"].median()
    assert fold_risk_cutoffs(rows).tolist() == expected.tolist()
    rows = pd.concat([regression("val"), regression("test")])
    expected = rows[rows["role"] == "val"].groupby("fold")["target"].mean()
    assert fold_means(rows).tolist() == pytest.approx(expected.tolist())


def test_ensemble_is_the_mean_score_of_each_patient(binary: Rows) -> None:
    rows = binary("external", n=6, folds=3, models=3)
    mean = ensemble(rows)
    assert len(mean) == 6
    by_hand = rows.groupby("patient")["score"].mean()
    assert mean.set_index("patient")["score"].sort_index().tolist() == pytest.approx(by_hand.tolist())
    assert (mean[["repeat", "fold"]] == 0).all().all()


def test_decisions_follow_the_fold_or_the_mean_of_the_folds(binary: Rows) -> None:
    rows = binary("test", n=12, folds=3)
    cuts = pd.Series(
        [0.2, 0.5, np.nan], pd.MultiIndex.from_tuples([(0, 0), (0, 1), (0, 2)], names=["repeat", "fold"])
    )
    decided = apply_cutoffs(rows, cuts, inclusive=True)
    of = rows.set_index("patient")
    for patient, row in decided.iterrows():
        cut = cuts[(0, of.loc[patient, "fold"])]
        if np.isnan(cut):
            assert np.isnan(row["margin"])
        else:
            assert row["positive"] == (of.loc[patient, "score"] >= cut)
    outside = apply_cutoffs(binary("external", n=5, models=2), cuts, inclusive=True)
    mean = ensemble(binary("external", n=5, models=2)).set_index("patient")["score"]
    assert (outside["positive"] == (mean >= 0.35)).all()


def test_equal_to_the_cut_is_positive_but_not_high_risk(binary: Rows) -> None:
    rows = binary("test", n=3, folds=1).assign(score=0.5)
    cuts = pd.Series([0.5], pd.MultiIndex.from_tuples([(0, 0)], names=["repeat", "fold"]))
    assert apply_cutoffs(rows, cuts, inclusive=True)["positive"].all()
    assert not apply_cutoffs(rows, cuts, inclusive=False)["positive"].any()


def test_risks_are_put_in_units_of_their_folds_validation_patients(survival: Rows) -> None:
    rows = pd.concat([survival("val"), survival("external")])
    scales = risk_scales(rows)
    subset = rows.query("role == 'val' and fold == 2")["score"]
    assert scales.loc[(0, 2)].tolist() == pytest.approx([subset.mean(), subset.std(ddof=0)])
    scaled = standardise_risks(rows, scales)
    again = scaled[scaled["role"] == "val"].groupby("fold")["score"]
    np.testing.assert_allclose(again.mean(), 0, atol=1e-12)
    np.testing.assert_allclose(again.std(ddof=0), 1)


def test_a_fold_that_shouts_does_not_decide_the_ensemble_alone(survival: Rows) -> None:
    """Log risks of one fold times a hundred and moved: the same model, the same ensemble."""
    rows = pd.concat([survival("val"), survival("external")])
    loud = rows.assign(score=np.where(rows["fold"] == 1, 100 * rows["score"] + 7, rows["score"]))
    means = []
    for table in (rows, loud):
        scaled = standardise_risks(table, risk_scales(table))
        means.append(ensemble(scaled[scaled["role"] == "external"])["score"].to_numpy())
    np.testing.assert_allclose(means[0], means[1])


def test_a_fold_without_a_scale_has_no_vote(survival: Rows) -> None:
    rows = pd.concat([survival("val"), survival("external")])
    flat = rows.assign(score=np.where(rows["fold"] == 1, 0.1, rows["score"]))
    assert set(risk_scales(flat).index) == {(0, 0), (0, 2), (0, 3)}
    assert set(standardise_risks(flat, risk_scales(flat))["fold"]) == {0, 2, 3}


@pytest.mark.parametrize(("value", "expected"), [(0.5, 0.25), (0.75, 0.45), (1.0, 0.85)])
def test_specificity_takes_the_lowest_threshold_that_reaches_it(value: float, expected: float) -> None:
    y = np.array([0, 0, 1, 0, 1, 0, 1])
    s = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.8, 0.9])
    cut = choose_threshold(y, s, ThresholdParams(metric="specificity", value=value))
    assert cut == pytest.approx(expected)
    assert ((s < cut) & (y == 0)).sum() / 4 >= value


def test_a_specificity_out_of_reach_calls_nobody_and_a_fixed_threshold_looks_at_nobody() -> None:
    y, s = np.array([1, 0]), np.array([0.3, 0.9])
    cut = choose_threshold(y, s, ThresholdParams(metric="specificity", value=0.9))
    assert not (s >= cut).any()
    assert choose_threshold(np.ones(2), s, ThresholdParams(metric="fixed", value=0.25)) == 0.25
    for wrong in ({"metric": "fixed"}, {"metric": "fixed", "value": 1}, {"metric": "specificity"}):
        with pytest.raises(ValueError, match="needs the"):
            ThresholdParams.model_validate(wrong)
