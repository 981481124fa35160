"""What branches say of test patients: rows that add up to the fused model, kept with the fold, compared in pairs."""

import numpy as np
import pandas as pd
import pytest

from equipoise.datasets.cohorts.splits import Fold
from equipoise.platform.evaluation.baselines import evaluate_baselines
from equipoise.platform.evaluation.branches import FOLD_BRANCHES, read_fold_branches
from equipoise.platform.evaluation.params import EvaluationParams
from equipoise.platform.evaluation.predictions import read_predictions
from equipoise.platform.training.batches import CaseList
from equipoise.platform.training.crossval import load_fold, train_fold
from equipoise.platform.training.params import Recipe, TrainingParams

KEYS = ["patient", "task", "class"]


def recipe(model: str = "gptomic", **params) -> Recipe:
    own = (
        {"image": "mean_pool", "image_params": {"dim": 6}, "dim": 6, "layers": 1}
        if model == "gptomic"
        else {}
    )
    return Recipe(
        model=model,
        model_params=own | params,
        training=TrainingParams(epochs=2, batch=8, lr=1e-2, device="cpu"),
        seed=3,
    )


@pytest.fixture(scope="module")
def fold(make_cases) -> tuple[Fold, dict]:
    cases = make_cases(30, missing=False)
    names = list(cases)
    return Fold(0, 0, tuple(names[:16]), tuple(names[16:22]), tuple(names[22:])), cases


def trained(fold, tasks, folder, chosen: Recipe):
    part, cases = fold
    keys = dict.fromkeys(cases, "same")
    return train_fold(part, tasks, cases, chosen, folder, features="none", content_keys=keys)


def test_terms_of_a_sum_add_up_to_the_fused_risk(fold, tasks, tmp_path):
    folder = trained(fold, tasks, tmp_path, recipe(fusion="concat"))
    alone = read_fold_branches([folder])
    assert list(alone) == ["image", "omics"]
    fused = read_predictions(folder / "preds.parquet").query("role == 'test' and task == 'OS'")
    summed = sum(table.query("task == 'OS'").set_index("patient")["score"] for table in alone.values())
    expected = fused.set_index("patient")["score"]
    np.testing.assert_allclose(summed[expected.index], expected, atol=1e-5)
    # The log odds of a class add up as well; probabilities of a branch are those of its own odds.
    odds = sum(
        np.log(p / (1 - p))
        for t in alone.values()
        for p in [t.query("task == 'MSI'").set_index("patient")["score"]]
    )
    p = (
        read_predictions(folder / "preds.parquet")
        .query("role == 'test' and task == 'MSI'")
        .set_index("patient")
    )
    np.testing.assert_allclose(odds[p.index], np.log(p["score"] / (1 - p["score"])), atol=1e-4)


def test_rows_are_those_of_the_model_with_other_scores(fold, tasks, tmp_path):
    part, cases = fold
    folder = trained(fold, tasks, tmp_path, recipe(fusion="kronecker"))
    fused = read_predictions(folder / "preds.parquet").query("role == 'test'")
    for name, table in read_fold_branches([folder]).items():
        both = fused.merge(table, on=KEYS, suffixes=("", "_branch"), validate="one_to_one")
        assert len(both) == len(fused) == len(table), name
        pd.testing.assert_series_equal(both["target"], both["target_branch"], check_names=False)
        assert not np.allclose(both["score"], both["score_branch"])
    without = [patient for patient in part.test if not cases[patient].omics]
    omics = read_fold_branches([folder])["omics"].query("task == 'OS'").set_index("patient")["score"]
    assert len(without) > 1
    assert omics[without].nunique() == 1  # a branch ranks those who lack it equally
    assert omics.nunique() > len(omics) - len(without)
    again = load_fold(folder).predict_branches(CaseList(cases, part.test), "test")
    np.testing.assert_array_equal(again["omics"].query("task == 'OS'")["score"], omics)


def test_a_model_without_branches_has_no_table(fold, tasks, tmp_path):
    folder = trained(fold, tasks, tmp_path, recipe("mean_pool", dim=6))
    assert not (folder / FOLD_BRANCHES).exists()
    assert read_fold_branches([folder]) == {}


def test_the_lead_is_the_paired_difference(fold, tasks, tmp_path):
    folder = trained(fold, tasks, tmp_path, recipe(fusion="concat"))
    predictions = read_predictions(folder / "preds.parquet")
    table = evaluate_baselines(predictions, read_fold_branches([folder]), EvaluationParams(bootstrap=50), 0)
    whole = table.query("role == 'test' and cohort == 'all' and task == 'LF'").set_index("predictor")
    test = predictions.query("role == 'test' and task == 'LF'")

    def r(rows: pd.DataFrame) -> float:  # within cohorts, as metrics are
        return float(np.mean([part["score"].corr(part["target"]) for _, part in rows.groupby("cohort")]))

    for name, rows in read_fold_branches([folder]).items():
        value = r(rows.query("task == 'LF'"))
        assert whole.loc[name, "value"] == pytest.approx(value)
        assert whole.loc[name, "lead"] == pytest.approx(r(test) - value)
