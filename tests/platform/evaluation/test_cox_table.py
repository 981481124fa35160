"""Hazard ratios against the gradient and curvature of the product's own likelihood, and on simulated truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import norm

from equipoise.models.cox import cox_partial_likelihood
from equipoise.platform.evaluation.cox_table import RISK, cox_table, read_cox_table, write_cox_table


def cohort(n: int = 400, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predictions of two cohorts with different baselines, and age and stage; both decide, risk is log 2 per SD."""
    rng = np.random.default_rng(seed)
    risk, age = rng.normal(size=n), rng.normal(60, 10, n)
    stage = rng.choice(["I", "II", "III"], n, p=[0.5, 0.3, 0.2])
    where = rng.choice(["A", "B"], n)
    hazard = np.log(2) * risk + 0.03 * (age - 60) + 0.8 * (stage == "III") + 1.5 * (where == "B")
    life, censored = rng.exponential(1000 * np.exp(-hazard)), rng.exponential(1500, n)
    rows = []
    for i in range(n):
        for role, fold in (("val", (i + 1) % 2), ("test", i % 2)):
            rows.append(
                {"patient": f"P{i:03d}", "cohort": where[i], "site": "s", "repeat": 0, "fold": fold, "role": role,
                 "task": "OS", "class": "", "score": risk[i], "target": np.nan,
                 "time": np.ceil(min(life[i], censored[i])), "event": float(life[i] <= censored[i])}
            )  # fmt: skip
    covariates = pd.DataFrame(
        {"AGE": age, **{f"STAGE={s}": (stage == s).astype(float) for s in ("I", "II", "III")}},
        index=[f"P{i:03d}" for i in range(n)],
    )
    return pd.DataFrame(rows), covariates


def test_the_adjusted_model_is_the_maximum_of_the_stratified_likelihood() -> None:
    predictions, covariates = cohort()
    table = cox_table(predictions, covariates)
    adjusted = table[table["model"] == "adjusted"]
    assert adjusted["term"].tolist() == [RISK, "AGE", "STAGE=II", "STAGE=III"]  # stage I is the most frequent
    assert adjusted["unit"].tolist() == ["SD", "SD", "value", "value"]
    test = predictions[predictions["role"] == "test"].set_index("patient").sort_index()
    scale = (
        predictions[predictions["role"] == "val"]
        .groupby("fold")["score"]
        .agg(["mean", lambda s: s.std(ddof=0)])
    )
    risk = (test["score"] - test["fold"].map(scale.iloc[:, 0])) / test["fold"].map(scale.iloc[:, 1])
    x = pd.concat([risk, covariates.loc[test.index, ["AGE", "STAGE=II", "STAGE=III"]]], axis=1).to_numpy()
    x[:, :2] /= x[:, :2].std(axis=0, ddof=1)
    columns = torch.tensor(x)
    days, event = (torch.tensor(test[name].to_numpy()) for name in ("time", "event"))
    strata = torch.tensor((test["cohort"] == "B").to_numpy().astype(int))

    def loss(beta: torch.Tensor) -> torch.Tensor:
        return cox_partial_likelihood(columns @ beta, days, event, strata=strata)

    def gradient_at(at: torch.Tensor) -> torch.Tensor:
        at = at.clone().requires_grad_()
        return torch.autograd.grad(loss(at), at)[0]

    beta = torch.tensor(np.log(adjusted["hr"].to_numpy()))
    steps = 1e-5 * torch.eye(4, dtype=torch.float64)
    curvature = torch.stack([gradient_at(beta + h) - gradient_at(beta - h) for h in steps]) / 2e-5
    left_to_go = torch.linalg.solve(curvature, gradient_at(beta))
    assert left_to_go.abs().max() < 1e-4
    se = torch.linalg.inv(curvature).diagonal().sqrt().numpy()
    estimate = beta.numpy()
    for column, sign in (("low", -1), ("high", 1)):
        assert np.log(adjusted[column].to_numpy()) == pytest.approx(estimate + sign * 1.959964 * se, abs=1e-4)
    assert adjusted["p"].to_numpy() == pytest.approx(2 * norm.sf(abs(estimate / se)), rel=1e-3)


def test_a_simulated_hazard_ratio_is_found_beside_its_confounders() -> None:
    predictions, covariates = cohort(2000, seed=1)
    table = cox_table(predictions, covariates).set_index(["model", "term"])
    row = table.loc[("adjusted", RISK)]
    assert row["hr"] == pytest.approx(2, rel=0.15)
    assert row["high"] / row["low"] < 1.2
    assert row["strata"] == "cohort"
    age = table.loc[("adjusted", "AGE")]
    assert age["hr"] == pytest.approx(np.exp(0.3), rel=0.15)
    assert table.loc[("risk alone", RISK), "n"] == 2000


def test_missing_covariates_and_hopeless_fits_are_said(tmp_path: Path) -> None:
    predictions, covariates = cohort(60)
    covariates.loc[covariates.index[:20], "AGE"] = np.nan
    table = cox_table(predictions, covariates)
    adjusted = table[table["model"] == "adjusted"]
    assert set(adjusted["n"]) == {40}
    assert adjusted["note"].str.contains("20 patients lack a covariate and are left out").all()
    assert adjusted["note"].str.contains("fewer than 10 events per term").all()
    pd.testing.assert_frame_equal(read_cox_table(write_cox_table(table, tmp_path)), table, check_dtype=False)
    flat = cox_table(predictions.assign(event=0.0))
    assert flat["hr"].isna().all()
    assert flat["note"].str.startswith("not estimable: no event").all()
    assert cox_table(predictions[predictions["role"] == "val"]).empty
