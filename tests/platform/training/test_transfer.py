"""Probes, zero-shot and baselines in an external cohort: closed forms, and no label of a tested patient is read."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from equipoise.datasets.cohorts.cases import Case
from equipoise.datasets.tables.tasks import BinaryTask, MulticlassTask, SurvivalTask, Task
from equipoise.platform.evaluation.params import EvaluationParams, TransferParams
from equipoise.platform.evaluation.transfer import CONSTANT, evaluate_transfer
from equipoise.platform.training.params import Recipe
from equipoise.platform.training.transfer import PRESENCE, PROBE, ZERO_SHOT, fit_transfer

SHIFT = 1.5
TASKS: tuple[Task, ...] = (
    BinaryTask(name="MSI", column="MSI", positive="MSI-H", negative="MSS"),
    MulticlassTask(name="grade", column="grade", classes=["low", "mid", "high"]),
    SurvivalTask(
        name="OS", time={"column": "t", "unit": "days"}, event={"column": "e", "event_value": "dead"}
    ),
)


def cohort(n: int, seed: int, grades: int = 3) -> dict[str, Case]:
    """RNA is missing for most with MSI-H and few others, and holds nothing."""
    rng = np.random.default_rng(seed)
    cases = {}
    for i in range(n):
        msi, grade = float(i % 3 == 0), float(rng.integers(grades))
        lacks = rng.random() < (0.8 if msi else 0.1)
        cases[f"X{i:03d}"] = Case(
            patient=f"X{i:03d}",
            cohort="SYN-X",
            site="S",
            bag=np.zeros((1, 2), np.float16),
            coords=np.zeros((1, 2), np.int32),
            slides=("s",),
            tiles=(1,),
            omics={} if lacks else {"rna": rng.normal(size=4).astype(np.float32)},
            targets={
                "MSI": msi if i % 10 else np.nan,
                "grade": grade,
                "OS": (float(rng.exponential(900 * np.exp(-grade)) + 1), float(rng.random() < 0.7)),
            },
        )
    return cases


def run(cases: dict[str, Case], seed: int, models: int = 2) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predictions and latents of fold models: each its own rotation of the label plus noise."""
    rng = np.random.default_rng(seed)
    rows, vectors = [], []
    for fold in range(models):
        turn = np.linalg.qr(rng.normal(size=(5, 5)))[0]
        for name, case in cases.items():
            key = {"patient": name, "repeat": 0, "fold": fold, "role": "external"}
            place = {"cohort": "SYN-X", "site": "S"}
            for task, label in case.targets.items():
                signal = label[0] / 900 if isinstance(label, tuple) else np.nan_to_num(label)
                x = rng.normal(size=5)
                x[0] += SHIFT * signal
                vectors.append(key | {"task": task, "latent": (turn @ x).astype(np.float32)})
                nothing = {"target": np.nan, "time": np.nan, "event": np.nan}
                if task == "OS":
                    row = nothing | {"class": "", "score": rng.normal(), "time": label[0], "event": label[1]}
                    rows.append(key | place | {"task": task} | row)
                    continue
                names = ["MSI-H"] if task == "MSI" else ["low", "mid", "high"]
                scores = rng.dirichlet(np.ones(3))
                for k, of_class in enumerate(names):
                    truth = label if task == "MSI" else float(label == k)
                    row = nothing | {"class": of_class, "score": scores[k], "target": truth}
                    rows.append(key | place | {"task": task} | row)
    return pd.DataFrame(rows), pd.DataFrame(vectors)


def transfer(cases: dict[str, Case], seed: int = 1) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    predictions, vectors = run(cases, seed)
    found = fit_transfer(
        TASKS, cases, vectors, predictions, Recipe(model="mean_pool"), TransferParams(folds=4)
    )
    return found["SYN-X"], predictions


@pytest.fixture(scope="module")
def made() -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    return transfer(cohort(150, 0))


def test_probe_reaches_what_the_embedding_holds(made) -> None:
    """Two normal classes at a distance d have an AUROC of Φ(d / √2); two rotations of independent noise, d √2."""
    rows = made[0][PROBE].query("task == 'MSI' and `class` == 'MSI-H'")
    assert sorted(rows["fold"].unique()) == [0, 1, 2, 3]
    assert len(rows) == rows["patient"].nunique() == 135  # a tenth has no label
    expected = 0.5 * (1 + math.erf(SHIFT * math.sqrt(2) / 2))
    value = np.mean([roc_auc_score(part["target"], part["score"]) for _, part in rows.groupby("fold")])
    assert value == pytest.approx(expected, abs=0.07)  # some .03 of standard error, and a fit on 100 patients


def test_zero_shot_is_the_mean_of_the_fold_models_among_the_classes_that_are_there() -> None:
    cases = cohort(60, 3, grades=2)  # nobody is "high"
    found, predictions = transfer(cases, 5)
    grade = found[ZERO_SHOT].query("task == 'grade'")
    assert sorted(grade["class"].unique()) == ["low", "mid"]
    mean = predictions.query("task == 'grade'").groupby(["patient", "class"])["score"].mean().unstack()
    expected = mean["mid"] / (mean["mid"] + mean["low"])
    mid = grade[grade["class"] == "mid"].set_index("patient")["score"]
    np.testing.assert_allclose(mid, expected[mid.index])


def test_baselines_are_trivial_or_of_the_same_folds(made) -> None:
    found = made[0]
    presence = found[PRESENCE].query("task == 'MSI' and `class` == 'MSI-H'")
    assert roc_auc_score(presence["target"], presence["score"]) > 0.7  # no RNA is nearly the label here
    tables = found["elastic_net, tables"]
    keys = ["patient", "task", "class", "fold", "role"]
    pd.testing.assert_frame_equal(
        tables[keys].sort_values(keys, ignore_index=True),
        found[PROBE][keys].sort_values(keys, ignore_index=True),
        check_dtype=False,
    )


def test_no_label_of_a_tested_patient_is_read() -> None:
    """Two patients of a class change their labels for others of their fold's class: scores of that fold stay."""
    from dataclasses import replace

    import equipoise.platform.training.transfer as module

    cases = cohort(80, 7)
    predictions, vectors = run(cases, 2)
    labelled = module._labelled(TASKS[1], list(cases.values()), predictions, TransferParams(folds=4), 0)
    x = np.stack(vectors.query("task == 'grade' and fold == 0")["latent"].to_list()).astype(float)
    before = module._out_of_fold(labelled, x, Recipe(model="mean_pool"), 0)
    turned = np.where(labelled.fold == 2, 2 - labelled.target, labelled.target)
    after = module._out_of_fold(replace(labelled, target=turned), x, Recipe(model="mean_pool"), 0)
    np.testing.assert_array_equal(after[labelled.fold == 2], before[labelled.fold == 2])
    assert not np.allclose(after[labelled.fold != 2], before[labelled.fold != 2])


def test_table_has_intervals_leads_and_a_constant(made) -> None:
    found = made[0]
    table = evaluate_transfer({"SYN-X": found}, EvaluationParams(), 0).set_index(
        ["task", "metric", "predictor"]
    )
    assert table.at[("grade", "balanced_accuracy", CONSTANT), "value"] == pytest.approx(1 / 3)
    assert table.at[("MSI", "balanced_accuracy", CONSTANT), "value"] == 0.5
    probe = table.loc[("MSI", "balanced_accuracy", PROBE)]
    rows = found[PROBE].query("task == 'MSI'").pivot(index=["fold", "patient"], columns="class")
    called = rows["score"].to_numpy().argmax(axis=1)
    truth = rows["target"].to_numpy().argmax(axis=1)
    folds = rows.index.get_level_values("fold")
    mean = np.mean([balanced_accuracy_score(truth[folds == k], called[folds == k]) for k in range(4)])
    assert probe["value"] == pytest.approx(mean)
    assert probe["low"] < probe["value"] < probe["high"]
    assert math.isnan(probe["lead"])
    zero = table.loc[("MSI", "auroc", ZERO_SHOT)]  # random scores
    assert zero["low"] < 0.5 < zero["high"]
    assert zero["lead_low"] > 0
    lead = table.at[("MSI", "auroc", PROBE), "value"] - zero["value"]
    assert zero["lead"] == pytest.approx(lead)
    assert {"auroc", "balanced_accuracy"} == set(table.loc["grade"].index.get_level_values("metric"))


def test_a_task_that_a_cohort_cannot_test_is_left_out(caplog) -> None:
    cases = cohort(40, 9, grades=1)
    found, _ = transfer(cases)
    assert set(found[PROBE]["task"]) == {"MSI", "OS"}
    assert "too few labels of multiclass" in caplog.text
