"""Linear models end at their optimum, on lifelines' and scikit-learn's answer; other fits say how far they stayed."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from lifelines import CoxPHFitter

from equipoise.datasets.cohorts.cases import Case
from equipoise.datasets.cohorts.splits import Fold
from equipoise.datasets.omics.params import TableParams
from equipoise.models.losses import TaskLosses
from equipoise.platform.training.batches import CaseList, collate
from equipoise.platform.training.build import build_model
from equipoise.platform.training.crossval import fit_recipe, load_fold, train_fold
from equipoise.platform.training.exact import distances, fits_exactly
from equipoise.platform.training.params import Recipe
from equipoise.platform.training.predict import run_model
from equipoise.platform.training.targets import fit_targets

COLUMNS = ("age", "score")
TABLES = TableParams(clinical=[{"column": name, "type": "number"} for name in COLUMNS])
RISK = np.array([0.9, -0.4])


@pytest.fixture(scope="module")
def cohort(tasks) -> dict[str, Case]:
    """80 patients with two covariates, RNA, tiles for most, and labels that depend on the covariates."""
    rng = np.random.default_rng(4)
    cases = {}
    for i in range(80):
        x = rng.normal(size=2)
        days, censored = 300 * rng.exponential(np.exp(-x @ RISK)), 300 * rng.exponential(2.0)
        tiles = 0 if i % 9 == 8 else 3
        bag = (5 + rng.normal(size=(tiles, 4)) + [x[0], 0, 0, 0]).astype(np.float16)
        cases[f"P{i:02d}"] = Case(
            patient=f"P{i:02d}",
            cohort="SYN-A" if i % 2 else "SYN-B",
            site="S",
            bag=bag if tiles else np.empty((0, 0), np.float16),
            coords=np.zeros((tiles, 2), np.int32),
            slides=("s",) * bool(tiles),
            tiles=(tiles,) * bool(tiles),
            omics={
                "clinical": (60 + 10 * x).astype(np.float32),
                "rna": rng.normal(size=30).astype(np.float32),
            },
            targets={
                "MSI": float(x[0] + rng.logistic() > 0),
                "grade": float(np.digitize(x[0] + rng.normal(), [-0.7, 0.7])) if i % 11 else np.nan,
                "LF": 3 + x[1] + rng.normal(),
                "OS": (float(np.ceil(min(days, censored))), float(days <= censored)),
            },
            columns={"clinical": COLUMNS},
        )
    return cases


def parts_of(cohort, modalities=("clinical",), tiles=False):
    """Training and validation patients with some of the modalities."""
    from dataclasses import replace

    empty = {
        "bag": np.empty((0, 0), np.float16),
        "coords": np.empty((0, 2), np.int32),
        "slides": (),
        "tiles": (),
    }
    cases = {
        name: replace(
            case, omics={m: v for m, v in case.omics.items() if m in modalities}, **({} if tiles else empty)
        )
        for name, case in cohort.items()
        if not (tiles and not modalities and not case.tiles)
    }
    names = tuple(cases)
    return CaseList(cases, names[:64]), CaseList(cases, names[64:])


def fitted(tasks, recipe, train, val):
    targets = fit_targets(tasks, train, tables=recipe.tables)
    model = build_model(recipe.model, recipe.model_params, targets.shape, targets.heads, seed=0)
    return model, targets, fit_recipe(model, targets, train, val, recipe, 0, None, None)


def test_clinical_cox_is_that_of_lifelines(tasks, cohort) -> None:
    train, val = parts_of(cohort)
    recipe = Recipe(model="clinical", tables=TABLES)
    model, targets, result = fitted(tasks[3:], recipe, train, val)
    assert result.exact
    assert len(result.history) == 1
    frame = pd.DataFrame([collate([case], targets).omics["clinical"][0].numpy() for case in train]).astype(
        float
    )
    frame[["days", "event"]] = [case.targets["OS"] for case in train]
    frame["cohort"] = [case.cohort for case in train]
    spread = frame[[0, 1]].std(ddof=1)
    frame[[0, 1]] /= spread
    events = frame["event"].sum()
    # One ridge factor for both columns: the table is standardised, with sd 1 (ddof 0) of each.
    penalizer = result.history[0]["penalty/OS"] * events / len(frame) / spread[0] ** 2
    oracle = CoxPHFitter(
        penalizer=penalizer, l1_ratio=0, strata=["cohort"] if targets.heads[0].stratified else None
    )
    oracle.fit(frame, "days", "event", fit_options={"precision": 1e-12})
    np.testing.assert_allclose(
        model.heads[0].weight.detach()[0].numpy(), oracle.params_.to_numpy() / spread, atol=1e-5
    )
    assert model.heads[0].weight[0, 0] > 0.2


@pytest.mark.parametrize(
    ("name", "params", "modalities", "tiles"),
    [
        ("clinical", {}, ("clinical",), False),
        ("omics", {"network": "linear"}, ("rna",), False),
        ("mean_pool", {"layers": 0}, (), True),
        ("elastic_net", {}, ("clinical", "rna"), True),
        ("elastic_net", {"l1_ratio": 0.0}, (), True),
    ],
)
def test_every_task_ends_where_no_direction_lowers_the_objective(
    tasks, cohort, name, params, modalities, tiles
) -> None:
    train, val = parts_of(cohort, modalities, tiles)
    recipe = Recipe(model=name, model_params=params, tables=TABLES)
    model, targets, result = fitted(tasks, recipe, train, val)
    assert result.exact
    for distance in distances(model, targets, train, val, recipe, seed=0).values():
        assert distance.objective == pytest.approx(0, abs=1e-6)
        assert distance.val == pytest.approx(0, abs=1e-6)
    out = run_model(model, targets, train)
    losses = TaskLosses(targets.heads, targets.class_weights)(
        out.outputs, out.targets, out.label_mask, out.cohort
    ).means()
    assert losses[0] == pytest.approx(result.history[0]["train/MSI"], rel=1e-5)
    assert losses[0] < 0.7
    assert set(result.history[0]) >= {"epoch", "val/OS", "penalty/OS", "gain/OS", "monitor"}


def test_a_case_without_tiles_has_the_mean_tile(tasks, cohort) -> None:
    train, _val = parts_of(cohort, ("clinical",), True)
    targets = fit_targets(tasks, train, tables=TABLES)
    model = build_model("elastic_net", {}, targets.shape, targets.heads, seed=0)
    model.prepare([collate([case], targets) for case in train])
    with_tiles = torch.cat([model.latents(collate([c], targets))["MSI"] for c in train if c.tiles])
    without = model.latents(collate([cohort["P08"], cohort["P00"]], targets))["MSI"]
    np.testing.assert_allclose(with_tiles[:, 2:6].mean(dim=0), 0, atol=1e-5)
    np.testing.assert_allclose(with_tiles[:, 2:6].std(dim=0, correction=0), 1, atol=1e-5)
    assert without[0, 2:].tolist() == [0, 0, 0, 0, 1]
    assert without[1, 6] == 0
    np.testing.assert_allclose(model.factors, [0.03, 0.03, 1, 1, 1, 1, 1])


def test_a_solver_does_not_pass_over_task_sampling() -> None:
    recipe = Recipe(model="clinical", tables=TABLES)
    assert fits_exactly(recipe)
    sampled = Recipe(model="clinical", tables=TABLES, training={"task_sampling": {"temperature": 3}})
    assert not fits_exactly(sampled)


def test_balanced_fits_keep_the_loop_and_tell_their_distance(tasks, cohort, tmp_path) -> None:
    train, val = parts_of(cohort)
    two = {"epochs": 2, "monitor": "val_loss"}
    recipe = Recipe(model="clinical", tables=TABLES, balancing="uncertainty", training=two)
    assert not fits_exactly(recipe)
    fold = Fold(0, 0, train.patients, val.patients[:8], val.patients[8:])
    keys = dict.fromkeys(cohort, "")
    folder = train_fold(fold, tasks, train.source, recipe, tmp_path, features="", content_keys=keys)
    config = json.loads((folder / "config.json").read_text())
    assert not config["exact"]
    assert config["optimum"]["OS"]["objective"] > 0.01  # two epochs at 1e-4 do not get there
    assert any("initialised" in warning for warning in config["warnings"])
    assert any("still improved" in warning for warning in config["warnings"])


def test_an_exact_fold_is_written_and_read(tasks, cohort, tmp_path) -> None:
    train, val = parts_of(cohort, ("clinical", "rna"), True)
    recipe = Recipe(model="elastic_net", tables=TABLES)
    fold = Fold(0, 0, train.patients, val.patients[:8], val.patients[8:])
    keys = dict.fromkeys(cohort, "")
    folder = train_fold(fold, tasks, train.source, recipe, tmp_path, features="", content_keys=keys)
    written = pd.read_parquet(folder / "preds.parquet")
    again = load_fold(folder).predict(CaseList(train.source, fold.test), "test")
    pd.testing.assert_frame_equal(
        again, written[written["role"] == "test"].reset_index(drop=True), check_dtype=False
    )
    assert json.loads((folder / "config.json").read_text())["exact"]


def test_a_task_with_one_event_keeps_the_largest_penalty(tasks, cohort) -> None:
    from dataclasses import replace

    train, val = parts_of(cohort)
    rare = {
        name: replace(case, targets=case.targets | {"OS": (case.targets["OS"][0], float(name == "P03"))})
        for name, case in train.source.items()
    }
    train, val = CaseList(rare, train.patients), CaseList(rare, val.patients)
    recipe = Recipe(model="clinical", tables=TABLES)
    model, _, result = fitted(tasks, recipe, train, val)
    assert np.isnan(result.history[0]["gain/OS"])
    assert model.heads[3].weight.abs().max() < 0.05
