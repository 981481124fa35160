"""``elastic_net`` with ``fusion: late`` in folds, and the refit of exact fits on training and validation patients."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge

from equipoise.datasets.cohorts.cases import Case
from equipoise.datasets.cohorts.splits import Fold
from equipoise.platform.training.batches import CaseList, collate
from equipoise.platform.training.convergence import convergence_warnings
from equipoise.platform.training.crossval import load_fold, train_fold
from equipoise.platform.training.loop import FitResult
from equipoise.platform.training.params import Recipe, TrainingParams
from equipoise.platform.training.predict import run_model
from equipoise.platform.training.targets import fit_targets

TABLES = {"clinical": [{"column": "age", "type": "number"}]}
LATE = Recipe(
    model="elastic_net", model_params={"fusion": "late", "l1_ratio": 0.0, "folds": 3}, tables=TABLES, seed=1
)


@pytest.fixture(scope="module")
def cohort() -> dict[str, Case]:
    """90 patients with age, tiles for three quarters and RNA for three quarters of them."""
    rng = np.random.default_rng(7)
    cases = {}
    for i in range(90):
        x = rng.normal(size=3)
        days, censored = 300 * rng.exponential(np.exp(-x.sum())), 300 * rng.exponential(2.0)
        rna = rng.normal(size=12) + x[0]
        tiles = 2 if rng.random() < 0.75 else 0
        omics = {"clinical": np.array([60 + 10 * x[2]], np.float32)}
        if rng.random() < 0.75:
            omics["rna"] = rna.astype(np.float32)
        cases[f"P{i:02d}"] = Case(
            patient=f"P{i:02d}",
            cohort="SYN",
            site="S",
            bag=(rng.normal(size=(tiles, 4)) + x[1]).astype(np.float16)
            if tiles
            else np.empty((0, 0), np.float16),
            coords=np.zeros((tiles, 2), np.int32),
            slides=("s",) * bool(tiles),
            tiles=(tiles,) * bool(tiles),
            omics=omics,
            targets={
                "MSI": float(x[0] + rng.logistic() > 0),
                "grade": float(np.digitize(x[0] + rng.normal(), [-0.7, 0.7])) if i % 11 else np.nan,
                "LF": 3 + x[1] + rng.normal(),
                "OS": (float(np.ceil(min(days, censored))), float(days <= censored)),
            },
            columns={"clinical": ("age",)},
        )
    return cases


def fold_of(cases) -> Fold:
    names = tuple(cases)
    return Fold(0, 0, names[:60], names[60:70], names[70:])


def trained(tasks, cases, recipe, folder):
    keys = dict.fromkeys(cases, "")
    path = train_fold(fold_of(cases), tasks, cases, recipe, folder, features="", content_keys=keys)
    return path, pd.read_parquet(path / "preds.parquet")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_late_fold_is_written_and_read_for_every_kind_of_task(tasks, cohort, tmp_path) -> None:
    path, written = trained(tasks, cohort, LATE, tmp_path)
    again = load_fold(path).predict(CaseList(cohort, fold_of(cohort).test), "test")
    kept = written[written["role"] == "test"].reset_index(drop=True)
    pd.testing.assert_frame_equal(again, kept, check_dtype=False)
    history = pd.read_csv(path / "history.csv").iloc[0]
    for task in ("MSI", "grade", "LF", "OS"):
        weights = [history[f"weight/{task}/{m}"] for m in ("clinical", "rna", "wsi")]
        assert min(weights) >= 0
        assert max(weights) > 0.1
        assert np.isfinite(history[f"gain/{task}"])
    assert history["weight/LF/wsi"] == max(history[f"weight/LF/{m}"] for m in ("clinical", "rna", "wsi"))
    assert json.loads((path / "config.json").read_text())["refit"] == 70


def test_patients_without_rna_are_scored_as_if_nobody_had_any(tasks, cohort, tmp_path) -> None:
    """Never below the row of image and covariates: the very same scores."""
    bare = {name: replace(case, omics={"clinical": case.omics["clinical"]}) for name, case in cohort.items()}
    _, whole = trained(tasks[3:], cohort, LATE, tmp_path / "whole")
    _, without = trained(tasks[3:], bare, LATE, tmp_path / "without")
    lacking = [name for name, case in cohort.items() if "rna" not in case.omics]
    scores = [t[t["patient"].isin(lacking)].set_index(["patient", "role"])["score"] for t in (whole, without)]
    assert len(scores[0]) >= 5
    np.testing.assert_allclose(scores[0], scores[1].loc[scores[0].index], atol=1e-5)
    others = whole[~whole["patient"].isin(lacking)].merge(without, on=["patient", "role"])
    assert (others["score_x"] - others["score_y"]).abs().max() > 0.1


def test_an_exact_fit_is_refitted_with_validation_patients_at_the_chosen_penalty(
    tasks, cohort, tmp_path
) -> None:
    """scikit-learn's ridge: validation scores without these patients, test scores with them."""
    cases = {name: replace(case, omics={}) for name, case in cohort.items() if case.tiles}
    names = tuple(cases)
    fold = Fold(0, 0, names[:45], names[45:55], names[55:])
    recipe = Recipe(model="elastic_net", model_params={"l1_ratio": 0.0}, seed=1)
    (task,) = tasks[2:3]
    path = train_fold(
        fold, [task], cases, recipe, tmp_path, features="", content_keys=dict.fromkeys(cases, "")
    )
    written = pd.read_parquet(path / "preds.parquet").set_index("patient")["score"]
    penalty = pd.read_csv(path / "history.csv")["penalty/LF"][0]
    rows = {name: case.bag.astype(float).mean(axis=0) for name, case in cases.items()}
    mean, spread = (f([rows[p] for p in fold.train], axis=0) for f in (np.mean, np.std))
    targets = fit_targets([task], CaseList(cases, fold.train))
    scale = targets.tasks[0].scaler.transform(1.0) - targets.tasks[0].scaler.transform(0.0)
    for fitted_on, scored in ((fold.train, fold.val), ((*fold.train, *fold.val), fold.test)):
        x = np.stack([(rows[p] - mean) / spread for p in fitted_on])
        y = np.array([cases[p].targets["LF"] for p in fitted_on])
        ridge = Ridge(alpha=penalty * len(y) / 2).fit(x, y * scale)
        expected = ridge.predict(np.stack([(rows[p] - mean) / spread for p in scored])) / scale
        np.testing.assert_allclose(written[list(scored)], expected, atol=1e-4)


def test_a_refitted_cox_model_with_l1_is_at_its_optimum(tasks, cohort, tmp_path) -> None:
    """From the model of the first fit as from nothing."""
    from equipoise.models.probes.heads import read_head
    from equipoise.models.probes.path import fit_path
    from equipoise.platform.training.exact import design_of

    recipe = Recipe(model="elastic_net", tables=TABLES, seed=1)
    path, _ = trained(tasks[3:], cohort, recipe, tmp_path)
    fold = load_fold(path)
    penalty = pd.read_csv(path / "history.csv")["penalty/OS"][0]
    cases = CaseList(cohort, (*fold_of(cohort).train, *fold_of(cohort).val))
    design = design_of(fold.model, fold.targets, cases, TrainingParams())
    likelihood, known = design.likelihoods["OS"], design.known["OS"].astype(float)
    cold = fit_path(design.inputs, likelihood, [penalty], l1_ratio=0.5, use=known).fit(0)
    now = read_head(fold.model.heads[0], fold.targets.heads[0])
    np.testing.assert_allclose(now.weights, cold.weights, atol=1e-4)
    assert np.abs(cold.weights).max() > 0.05


def test_test_patients_change_nothing(tasks, cohort, tmp_path) -> None:
    spoilt = cohort | {
        name: replace(cohort[name], targets=cohort[name].targets | {"OS": (1.0, 1.0), "LF": 1e6})
        for name in fold_of(cohort).test
    }
    _, one = trained(tasks[3:], cohort, LATE, tmp_path / "one")
    _, other = trained(tasks[3:], spoilt, LATE, tmp_path / "other")
    np.testing.assert_array_equal(one["score"], other["score"])


def test_a_late_fusion_of_one_modality_keeps_its_order(tasks, cohort) -> None:
    """A weight above 0 changes no concordance; all patterns but one have no modality."""
    from equipoise.platform.training.build import build_model
    from equipoise.platform.training.crossval import fit_recipe

    cases = {n: replace(c, bag=np.empty((0, 0), np.float16), coords=np.empty((0, 2), np.int32), slides=(), tiles=(),
                        omics={"clinical": c.omics["clinical"]}) for n, c in cohort.items()}  # fmt: skip
    train = CaseList(cases, tuple(cases)[:60])
    targets = fit_targets(tasks[3:], train, tables=LATE.tables)
    model = build_model("elastic_net", LATE.model_params, targets.shape, targets.heads, seed=0)
    fit_recipe(model, targets, train, CaseList(cases, tuple(cases)[60:]), LATE, 0, None, None)
    age = np.array([case.omics["clinical"][0] for case in cases.values()])
    risk = run_model(model, targets, CaseList(cases, tuple(cases))).outputs["OS"][:, 0].numpy()
    assert np.corrcoef(age, risk)[0, 1] == pytest.approx(1, abs=1e-5)
    assert model.patterns(collate([cases["P00"]], targets)).tolist() == [1]


def test_a_late_fusion_that_fitted_nothing_says_so() -> None:
    row = {"penalty/OS/rna": np.nan, "penalty/OS/wsi": np.nan, "gain/OS": np.nan}
    (text,) = convergence_warnings(FitResult((row,), 1, False, exact=True), TrainingParams(), ["OS"])
    assert "nothing was fitted" in text
    row |= {"penalty/OS/rna": 0.1, "gain/OS": 0.2}
    assert convergence_warnings(FitResult((row,), 1, False, exact=True), TrainingParams(), ["OS"]) == []
