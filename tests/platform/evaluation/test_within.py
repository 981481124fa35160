"""Metrics within cohorts, and within the classes of a task: means over parts, pooled beside them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from lifelines.utils import concordance_index
from sklearn.metrics import roc_auc_score

from equipoise.datasets.errors import DataError
from equipoise.platform.evaluation.evaluate import all_samples, evaluate
from equipoise.platform.evaluation.intervals import delong
from equipoise.platform.evaluation.leaderboard import compare
from equipoise.platform.evaluation.paired import Candidate
from equipoise.platform.evaluation.params import EvaluationParams

COHORTS = ("A", "B", "C")
PARAMS = EvaluationParams(bootstrap=50)


def predictions(
    score: str, *, cohorts: tuple[str, ...] = COHORTS, n: int = 300, seed: int = 0
) -> pd.DataFrame:
    """Three folds of a binary and a survival task in which the cohort decides much; three patients of D are external.

    ``score``: ``cohort`` knows the cohort only, ``signal`` the patient, too.
    """
    rng = np.random.default_rng(seed)
    cohort = rng.choice(len(cohorts), n)
    signal = rng.normal(size=n)
    positive = (rng.random(n) < 1 / (1 + np.exp(1.5 - 1.2 * cohort - signal))).astype(float)
    time = rng.exponential(900 * np.exp(-0.7 * cohort - 0.5 * signal)) + 1
    event = (rng.random(n) < 0.7).astype(float)
    kind = np.where(rng.random(n) < 0.5, "x", "y")
    value = cohort + (signal if score == "signal" else 0.0)
    rows = []
    for i in range(n):
        base = {"patient": f"P{i:03d}", "cohort": cohorts[cohort[i]], "site": "s", "repeat": 0, "fold": i % 3}
        nothing = {"target": np.nan, "time": np.nan, "event": np.nan}
        for role in ("val", "test"):
            key = base | {"role": role, "fold": (i + (role == "val")) % 3}
            probability = 1 / (1 + np.exp(-value[i]))
            rows += [
                key
                | nothing
                | {"task": "MSI", "class": "MSI-H", "score": probability, "target": positive[i]},
                key
                | nothing
                | {"task": "OS", "class": "", "score": value[i], "time": time[i], "event": event[i]},
            ]
            rows += [
                key | nothing | {"task": "type", "class": c, "score": 0.5, "target": float(kind[i] == c)}
                for c in ("x", "y")
            ]
    return pd.DataFrame(rows)


def value_of(table: pd.DataFrame, cohort: str, task: str, metric: str, fold: str = "all") -> pd.Series:
    keep = (table["role"] == "test") & (table["cohort"] == cohort) & (table["task"] == task)
    keep &= (table["metric"] == metric) & (table["fold"] == fold) & (table["predictor"] == "model")
    rows = table[keep & (table["class"] == "")]
    assert len(rows) == 1
    return rows.iloc[0]


def test_a_score_of_the_cohort_alone_is_worth_one_half() -> None:
    """Before, with all cohorts of a fold pooled, it looked like a good predictor."""
    table = evaluate(predictions("cohort"), PARAMS)
    assert value_of(table, "pooled", "MSI", "auroc")["value"] > 0.7
    assert value_of(table, "pooled", "OS", "c_index")["value"] > 0.6
    assert value_of(table, "all", "MSI", "auroc")["value"] == 0.5
    assert value_of(table, "all", "OS", "c_index")["value"] == 0.5
    assert "within cohort" in value_of(table, "all", "OS", "c_index")["method"]
    assert "pooled over cohorts" in value_of(table, "pooled", "OS", "c_index")["method"]


def test_values_are_means_of_those_of_scikit_learn_and_lifelines_in_every_part() -> None:
    rows = predictions("signal")
    table = evaluate(rows, PARAMS)
    test = rows[rows["role"] == "test"]
    msi, os = test[test["task"] == "MSI"], test[test["task"] == "OS"]
    aurocs = msi.groupby(["fold", "cohort"]).apply(
        lambda r: roc_auc_score(r["target"], r["score"]), include_groups=False
    )
    concordances = os.groupby(["fold", "cohort"]).apply(
        lambda r: concordance_index(r["time"], -r["score"], r["event"]), include_groups=False
    )
    headline = value_of(table, "all", "MSI", "auroc")
    assert headline["value"] == pytest.approx(aurocs.mean())
    assert value_of(table, "all", "OS", "c_index")["value"] == pytest.approx(concordances.mean())
    of_fold = aurocs.groupby("fold").mean()
    assert value_of(table, "all", "MSI", "auroc", "0-1")["value"] == pytest.approx(of_fold[1])
    pooled = msi.groupby("fold").apply(lambda r: roc_auc_score(r["target"], r["score"]), include_groups=False)
    assert value_of(table, "pooled", "MSI", "auroc")["value"] == pytest.approx(pooled.mean())
    assert value_of(table, "pooled", "MSI", "auroc", "0-1")["value"] == pytest.approx(pooled[1])
    assert value_of(table, "B", "MSI", "auroc")["value"] == pytest.approx(aurocs[:, "B"].mean())
    # The variance of the mean is the sum of DeLong's variances of the parts over their squared number.
    parts = [delong(r["target"], r["score"])[1][0, 0] for _, r in msi.groupby(["fold", "cohort"])]
    variance, value = sum(parts) / len(parts) ** 2, headline["value"]
    factor = 1 + 1.4 / 2  # these models, three folds
    half = 1.959964 * np.sqrt(factor * variance) / (value * (1 - value))
    logit = np.log(value / (1 - value))
    expected = 1 / (1 + np.exp(-np.array([logit - half, logit + half])))
    assert headline[["low", "high"]].to_numpy(float) == pytest.approx(expected, rel=1e-4)
    assert headline["n"] == 300


def test_one_cohort_is_as_it_was() -> None:
    rows = predictions("signal", cohorts=("A",))
    table, plain = evaluate(rows, PARAMS), evaluate(rows, EvaluationParams(bootstrap=50, within=[]))
    assert set(table["cohort"]) == {"all"}
    pd.testing.assert_frame_equal(table, plain)


def test_nothing_within_pools_everybody() -> None:
    rows = predictions("signal")
    table = evaluate(rows, EvaluationParams(bootstrap=50, within=[]))
    assert "pooled" not in set(table["cohort"])
    headline = value_of(table, "all", "MSI", "auroc")
    assert headline["value"] == value_of(evaluate(rows, PARAMS), "pooled", "MSI", "auroc")["value"]


def test_the_classes_of_a_task_may_be_strata_of_the_others() -> None:
    rows = predictions("signal", n=400)
    table = evaluate(rows, EvaluationParams(bootstrap=50, within=["cohort", "type"]))
    test = rows[rows["role"] == "test"]
    kind = test[(test["task"] == "type") & (test["target"] == 1)].set_index("patient")["class"]
    msi = test[test["task"] == "MSI"]
    parts = msi.groupby([msi["fold"], msi["cohort"], msi["patient"].map(kind)])
    expected = parts.apply(lambda r: roc_auc_score(r["target"], r["score"]), include_groups=False).mean()
    headline = value_of(table, "all", "MSI", "auroc")
    assert headline["value"] == pytest.approx(expected)
    assert "within cohort and type" in headline["method"]
    by_cohort = value_of(evaluate(rows, PARAMS), "all", "type", "auroc")["value"]
    assert value_of(table, "all", "type", "auroc")["value"] == by_cohort  # no task is a stratum of itself
    with pytest.raises(DataError, match="no classification task 'OS'"):
        evaluate(rows, EvaluationParams(within=["OS"]))


def test_a_part_without_a_class_is_left_out_and_said() -> None:
    rows = predictions("signal")
    alone = (rows["cohort"] == "A") & (rows["task"] == "MSI")
    rows.loc[alone, "target"] = 0.0
    headline = value_of(evaluate(rows, PARAMS), "all", "MSI", "auroc")
    assert headline["value"] > 0.5
    assert headline["note"].startswith(
        "mean of 6 of 9 parts (fold and cohort); not estimable in 0-0 A, 0-1 A, 0-2 A"
    )


def test_an_external_ensemble_is_evaluated_within_its_cohorts() -> None:
    rows = predictions("signal")
    external = rows[rows["role"] == "test"].assign(role="external")
    external["cohort"] = "ext-" + external["cohort"]
    external["patient"] = "E" + external["patient"]
    every = pd.concat([rows, *(external.assign(fold=k) for k in range(3))], ignore_index=True)
    table = evaluate(every, PARAMS)
    of_external = table[
        (table["role"] == "external") & (table["task"] == "MSI") & (table["metric"] == "auroc")
    ]
    of_external = of_external[(of_external["fold"] == "all") & (of_external["predictor"] == "model")]
    values = of_external.set_index("cohort")["value"]
    assert list(values.index) == ["all", "pooled", "ext-A", "ext-B", "ext-C"]
    assert values["all"] == pytest.approx(values[["ext-A", "ext-B", "ext-C"]].mean())
    assert values["pooled"] != pytest.approx(values["all"], abs=1e-3)


def test_samples_of_one_patient_each_have_one_part_per_fold_and_cohort() -> None:
    rows = predictions("signal")
    everybody = next(
        s for s in all_samples(rows, PARAMS) if s.role == "test" and s.task == "OS" and s.cohort == "all"
    )
    assert everybody.within == ("cohort",)
    assert len(everybody.groups) == 9
    tested = np.concatenate([group.patient for group in everybody.groups])
    assert sorted(tested) == list(range(300))


def test_leaderboards_rank_by_the_value_within_cohorts() -> None:
    """A score of the cohort alone beats a weak signal where cohorts are pooled."""
    cohort, signal = predictions("cohort"), predictions("signal")
    rng = np.random.default_rng(5)
    of_patient = dict(zip(signal["patient"].unique(), rng.normal(size=300), strict=True))
    level = {"A": 0.0, "B": 1.0, "C": 2.0}
    weak = signal.copy()
    part = weak["task"] == "MSI"
    raw = signal.loc[part, "score"].map(lambda p: np.log(p / (1 - p))) - signal.loc[part, "cohort"].map(level)
    noise = signal.loc[part, "patient"].map(of_patient)
    weak.loc[part, "score"] = 1 / (1 + np.exp(-(raw + noise)))
    board = compare([Candidate("cohort", cohort), Candidate("weak", weak)], PARAMS)
    rows = board.estimates[(board.estimates["task"] == "MSI") & (board.estimates["metric"] == "auroc")]
    rows = rows[(rows["role"] == "test") & (rows["predictor"] == "model")].set_index(["cohort", "method"])[
        "value"
    ]
    assert rows["pooled", "cohort"] > rows["pooled", "weak"]
    assert rows["all", "cohort"] < rows["all", "weak"]
    folds = board.scores[(board.scores["task"] == "MSI") & (board.scores["metric"] == "auroc")]
    assert set(folds["fold"]) == {"0-0", "0-1", "0-2"}


def test_pairs_within_cohorts_and_weighted_concordances_stand_beside_the_pooled_c() -> None:
    from equipoise.platform.evaluation.survival_scores import horizon, mean_dynamic_auc, uno_c

    rows = predictions("signal")
    rows["score"] = rows["score"].where(rows["task"] != "OS", rows["score"].round(1))
    table = evaluate(rows, PARAMS)
    test = rows[(rows["role"] == "test") & (rows["task"] == "OS")]
    folds = [part for _, part in test.groupby("fold")]
    stratified, tied, comparable = [], 0.0, 0.0
    for fold in folds:
        right = pairs = 0.0
        for _, part in fold.groupby("cohort"):
            t, e, r = (part[name].to_numpy(float) for name in ("time", "event", "score"))
            pair = (e[:, None] == 1) & ((t[:, None] < t) | ((t[:, None] == t) & (e == 0)))
            right += (pair * ((r[:, None] > r) + 0.5 * (r[:, None] == r))).sum()
            pairs += pair.sum()
            tied += (pair & (r[:, None] == r)).sum()
        comparable += pairs
        stratified.append(right / pairs)
    assert value_of(table, "pooled", "OS", "c_stratified")["value"] == pytest.approx(np.mean(stratified))
    assert (
        f"{tied / comparable:.1%} of the comparable pairs are tied"
        in value_of(table, "all", "OS", "c_index")["note"]
    )
    columns = [[fold[name].to_numpy(float) for name in ("time", "event", "score")] for fold in folds]
    uno = [float(uno_c(t, e, r, horizon(t, e)).value) for t, e, r in columns]
    assert value_of(table, "pooled", "OS", "c_uno")["value"] == pytest.approx(np.mean(uno))
    dynamic = [float(mean_dynamic_auc(*fold).value) for fold in columns]
    headline = value_of(table, "pooled", "OS", "auc_dynamic")
    assert headline["value"] == pytest.approx(np.mean(dynamic))
    assert headline["low"] < headline["value"] < headline["high"]
    knows = evaluate(predictions("cohort"), PARAMS)
    assert value_of(knows, "pooled", "OS", "c_stratified")["value"] == 0.5
    assert value_of(knows, "all", "OS", "c_uno")["value"] == pytest.approx(0.5)
