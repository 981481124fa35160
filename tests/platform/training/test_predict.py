"""Predictions: units, classes, independence of the other patients."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from equipoise.datasets.cohorts.cases import Case
from equipoise.models.batch import CaseShape
from equipoise.platform.errors import DataError
from equipoise.platform.evaluation.predictions import COLUMNS
from equipoise.platform.training.batches import CaseList
from equipoise.platform.training.build import build_model
from equipoise.platform.training.predict import MAX_TILES, predict, run_model, small_groups
from equipoise.platform.training.targets import fit_targets

SMALL = {"dim": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "feedforward": 16}


@pytest.fixture
def trained(tasks, make_cases):
    cases = make_cases(9)
    targets = fit_targets(tasks, cases.values())
    return build_model("joint", SMALL, targets.shape, targets.heads, seed=0), targets, cases


def table_of(trained, patients=None):
    model, targets, cases = trained
    return predict(model, targets, CaseList(cases, tuple(patients or cases)), role="test", repeat=1, fold=2)


def test_one_row_per_patient_task_and_class(trained) -> None:
    table = table_of(trained)
    assert list(table.columns) == list(COLUMNS)
    assert len(table) == 9 * (1 + 3 + 1 + 1)
    assert set(table.loc[table["task"] == "MSI", "class"]) == {"MSI-H"}
    assert set(table.loc[table["task"] == "grade", "class"]) == {"low", "mid", "high"}
    assert set(table.loc[table["task"].isin(["LF", "OS"]), "class"]) == {""}
    assert (table[["repeat", "fold"]] == [1, 2]).all(axis=None)


def test_scores_are_probabilities_original_units_and_log_risks(trained) -> None:
    model, targets, cases = trained
    table, out = table_of(trained), run_model(model, targets, CaseList(cases, tuple(cases))).outputs
    wide = table.set_index(["task", "class", "patient"])["score"]
    assert wide["MSI"].to_numpy() == pytest.approx(out["MSI"].softmax(1)[:, 1].numpy(), rel=1e-5)
    grade = np.stack([wide["grade"][name].to_numpy() for name in ("low", "mid", "high")], axis=1)
    assert grade == pytest.approx(out["grade"].softmax(1).numpy(), rel=1e-5)
    assert grade.sum(1) == pytest.approx(np.ones(9))
    scaler = targets.tasks[2].scaler
    assert wide["LF"].to_numpy() == pytest.approx(scaler.inverse(out["LF"][:, 0].numpy()), rel=1e-5)
    assert wide["OS"].to_numpy() == pytest.approx(out["OS"][:, 0].numpy(), rel=1e-5)


def test_labels_are_copied_in_original_units(trained) -> None:
    _, _, cases = trained
    table = table_of(trained).set_index(["task", "class", "patient"]).sort_index()
    assert len(cases) > 0
    for patient, case in cases.items():
        assert table.loc[("MSI", "MSI-H", patient), "target"] == case.targets["MSI"]
        grade = [table.loc[("grade", name, patient), "target"] for name in ("low", "mid", "high")]
        assert grade == [float(case.targets["grade"] == k) for k in range(3)]
        assert table.loc[("LF", "", patient), "target"] == pytest.approx(case.targets["LF"], nan_ok=True)
        label = table.loc[("OS", "", patient), ["time", "event"]].tolist()
        assert label == pytest.approx(case.targets["OS"], nan_ok=True)
    assert table.loc["OS", "target"].isna().all()


def test_unlabelled_patients_are_predicted(trained) -> None:
    model, targets, cases = trained
    stranger = dataclasses.replace(cases["P00"], targets={}, site="elsewhere", omics={})
    table = predict(model, targets, [stranger], role="external", repeat=0, fold=0)
    assert len(table) == 6
    assert table[["target", "time", "event"]].isna().all(axis=None)
    assert np.isfinite(table["score"]).all()


def test_a_score_does_not_depend_on_who_else_is_predicted(trained) -> None:
    together = table_of(trained).set_index(["patient", "task", "class"])["score"]
    alone = table_of(trained, ["P03"]).set_index(["patient", "task", "class"])["score"]
    # Small cases are computed together: sums are rounded in another order.
    assert together.loc[alone.index].to_numpy() == pytest.approx(alone.to_numpy(), rel=1e-6, abs=1e-6)
    _, _, cases = trained
    backwards = table_of(trained, list(cases)[::-1]).set_index(["patient", "task", "class"])["score"]
    assert backwards.loc[together.index].to_numpy() == pytest.approx(together.to_numpy(), rel=1e-6, abs=1e-6)


def test_small_cases_go_together_and_large_ones_alone(trained) -> None:
    _, targets, cases = trained
    first = cases["P00"]

    def with_tiles(count: int) -> Case:
        return dataclasses.replace(first, bag=np.zeros((count, 8), np.float16), coords=np.zeros((count, 2)))

    sizes = [6, 5, 9, 9, 0, 0, 3000, 2000, 40, 7]
    groups = [[len(case.bag) for case in group] for group in small_groups(map(with_tiles, sizes), targets)]
    assert groups == [[6, 5, 9, 9], [0, 0], [3000], [2000], [40], [7]]
    many = list(small_groups([with_tiles(8)] * 2000, targets))
    assert max(map(len, many)) == MAX_TILES // 8
    wide = dataclasses.replace(targets, shape=CaseShape(0, {"rna": 1000}))
    assert [len(group) for group in small_groups([with_tiles(0)] * 600, wide)] == [262, 262, 76]


def test_groups_are_cases_alone_to_rounding(trained) -> None:
    """Bags of different lengths, so that padding is computed and must not be seen."""
    model, targets, cases = trained
    everybody = list(cases.values())
    assert len(list(small_groups(everybody, targets))) < len(everybody)
    together = run_model(model, targets, everybody, keep_latents=True)
    for i, case in enumerate(everybody):
        alone = run_model(model, targets, [case], keep_latents=True)
        for task in ("MSI", "grade", "LF", "OS"):
            for ours, theirs in ((together.outputs, alone.outputs), (together.latents, alone.latents)):
                torch.testing.assert_close(ours[task][i : i + 1], theirs[task], rtol=1e-5, atol=1e-6)
            assert torch.equal(together.label_mask[task][i : i + 1], alone.label_mask[task])
    assert [info.patient for info in together.infos] == list(cases)


def test_prediction_has_no_dropout_and_leaves_the_mode(trained) -> None:
    model, targets, cases = trained
    model.train()
    first, second = (run_model(model, targets, list(cases.values())).outputs["MSI"] for _ in range(2))
    assert torch.equal(first, second)
    assert model.training


def test_nobody_to_predict_is_an_error(trained) -> None:
    model, targets, _ = trained
    with pytest.raises(DataError, match="no patient to predict"):
        run_model(model, targets, [])
