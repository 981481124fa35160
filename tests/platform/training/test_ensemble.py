"""Members of a fold: every patient is held out once, and a fold that was interrupted ends the same."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch

from equipoise.datasets.cohorts.cases import Case
from equipoise.datasets.cohorts.splits import Fold
from equipoise.datasets.tables.tasks import SurvivalTask
from equipoise.models.cox import cox_partial_likelihood
from equipoise.models.losses import TaskLosses
from equipoise.platform.errors import StudyError
from equipoise.platform.evaluation.predictions import read_predictions
from equipoise.platform.report.run_files import RunFiles
from equipoise.platform.training.added_loss import added_loss
from equipoise.platform.training.batches import CaseList
from equipoise.platform.training.crossval import fold_seed, load_fold, train_fold
from equipoise.platform.training.distributed import SINGLE_WORKER
from equipoise.platform.training.ensemble import stratified_parts
from equipoise.platform.training.params import Recipe, TrainingParams
from equipoise.platform.training.predict import Outputs, run_model
from equipoise.platform.training.reader import BatchReader
from equipoise.platform.training.targets import fit_targets

OS = SurvivalTask(
    name="OS", time={"column": "t", "unit": "days"}, event={"column": "e", "event_value": "dead"}, main=True
)
RECIPE = Recipe(
    model="omics",
    model_params={"network": "relu", "dim": 8, "layers": 1, "dropout": 0.2, "input_dropout": 0.1},
    training=TrainingParams(
        epochs=6, lr=5e-2, batch="full", schedule="constant", monitor="added_loss", members=3
    ),
)


@pytest.fixture(scope="module")
def cases(make_cases):
    """60 patients with RNA, of which the first gene decides how long they live, and without tiles."""
    result = {}
    for name, case in make_cases(60, missing=False).items():
        rng = np.random.default_rng(len(result))
        rna = rng.normal(size=3).astype(np.float32)
        days = float(np.exp(6 - rna[0] + 0.2 * rng.normal()))
        result[name] = dataclasses.replace(
            case,
            bag=np.zeros((0, 0), np.float16),
            coords=np.zeros((0, 2), np.int32),
            slides=(),
            tiles=(),
            omics={"rna": rna},
            targets={"OS": (days, case.targets["OS"][1])},
        )
    return result


@pytest.fixture
def fold(cases) -> Fold:
    people = tuple(cases)
    return Fold(0, 0, people[:35], people[35:45], people[45:])


def run(fold, cases, folder, recipe=RECIPE, report=None):
    keys = dict.fromkeys(cases, "")
    return train_fold(fold, [OS], cases, recipe, folder, features="", content_keys=keys, report=report)


def test_a_fold_of_members(cases, fold, tmp_path) -> None:
    folder = run(fold, cases, tmp_path / "folds")
    config = json.loads((folder / "config.json").read_text())
    assert len(config["members"]) == 3
    history = pd.read_csv(folder / "history.csv")
    assert history.groupby("member").size().tolist() == [6, 6, 6]
    assert list(RunFiles(tmp_path).histories) == [f"0-0, member {k}" for k in (1, 2, 3)]
    table = read_predictions(folder / "preds.parquet").set_index("patient")
    assert set(table.index[table["role"] == "val"]) == set(fold.val)
    trained = load_fold(folder)
    again = trained.predict(CaseList(cases, fold.test), "test").set_index("patient")
    np.testing.assert_allclose(again["score"], table.loc[again.index, "score"], rtol=1e-5)
    # Risks are comparable with those of members, and order the patients.
    rna = np.array([cases[p].omics["rna"][0] for p in fold.test])
    assert np.corrcoef(rna, again.loc[list(fold.test), "score"])[0, 1] > 0.5


def test_a_validation_patient_is_predicted_by_the_member_that_has_not_seen_it(cases, fold, tmp_path) -> None:
    folder = run(fold, cases, tmp_path)
    targets = load_fold(folder).targets
    learned = CaseList(cases, (*fold.train, *fold.val))
    seed = fold_seed(RECIPE.seed, fold)
    held_out = dict(zip(learned.patients, stratified_parts(learned, targets, 3, seed), strict=True))
    table = read_predictions(folder / "preds.parquet").set_index("patient")
    for patient in fold.val:
        by_member = [_of_member(folder, k, cases, patient) for k in range(3)]
        near = np.isclose(by_member, table.loc[patient, "score"], rtol=1e-5)
        assert np.flatnonzero(near).tolist() == [held_out[patient]]


def _of_member(folder, member, cases, patient) -> float:
    from equipoise.models.ensemble import Member

    trained = load_fold(folder)
    one = dataclasses.replace(trained, model=Member(trained.model, member))
    return float(one.predict(CaseList(cases, (patient,)), "val")["score"].iloc[0])


def test_interrupted_members_go_on(cases, fold, tmp_path) -> None:
    whole = run(fold, cases, tmp_path / "whole")
    seen: list[tuple[float, float]] = []

    def stop(row) -> None:
        seen.append((row["member"], row["epoch"]))
        if len(seen) == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(fold, cases, tmp_path / "parts", report=stop)
    assert seen[-1] == (1, 3)
    rest: list[float] = []
    parts = run(fold, cases, tmp_path / "parts", report=lambda row: rest.append(row["member"]))
    assert rest == [1] * 3 + [2] * 6
    assert not list(parts.glob("checkpoint*"))
    for name in ("history.csv", "model.safetensors", "preds.parquet"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()


def test_parts_have_equal_shares_of_events(cases) -> None:
    people = CaseList(cases, tuple(cases))
    targets = fit_targets([OS], cases.values())
    parts = stratified_parts(people, targets, 4, seed=3)
    events = np.array([cases[p].targets["OS"][1] for p in people.patients])
    for counts in (np.bincount(parts), np.bincount(parts[events == 1])):
        assert counts.max() - counts.min() <= 2
    assert np.bincount(parts).max() - np.bincount(parts).min() <= 1
    np.testing.assert_array_equal(parts, stratified_parts(people, targets, 4, seed=3))
    assert not np.array_equal(parts, stratified_parts(people, targets, 4, seed=4))
    with pytest.raises(StudyError, match="2 training patients are too few for 3 members"):
        stratified_parts(CaseList(cases, people.patients[:2]), targets, 3, seed=0)


def test_the_added_loss_is_a_difference_of_likelihoods(cases) -> None:
    targets = fit_targets([OS], cases.values())
    rng = torch.Generator().manual_seed(0)

    def outputs(names) -> Outputs:
        truth = torch.tensor([cases[p].targets["OS"] for p in names])
        known = torch.ones(len(names), dtype=torch.bool)
        cohort = torch.zeros(len(names), dtype=torch.int64)
        return Outputs(
            (), {"OS": torch.randn(len(names), 1, generator=rng)}, {"OS": truth}, {"OS": known}, cohort
        )

    people = tuple(cases)
    train, val = outputs(people[:50]), outputs(people[50:])
    together = [torch.cat([getattr(train, k)["OS"], getattr(val, k)["OS"]]) for k in ("outputs", "targets")]
    events = float(val.targets["OS"][:, 1].sum())
    assert events > 1
    by_hand = (
        cox_partial_likelihood(together[0][:, 0].double(), *together[1].double().T)
        - cox_partial_likelihood(train.outputs["OS"][:, 0].double(), *train.targets["OS"].double().T)
    ) / events
    losses = TaskLosses(targets.heads)
    assert added_loss(losses, train, val) == pytest.approx(float(by_hand), rel=1e-6)


def test_cases_with_a_single_vector_are_held_and_bags_of_tiles_are_not(cases) -> None:
    def with_tiles(count: int) -> dict[str, Case]:
        rng = np.random.default_rng(0)
        return {
            name: dataclasses.replace(
                case,
                bag=rng.normal(size=(count if i % 3 else 0, 4)).astype(np.float32),
                coords=np.zeros((count if i % 3 else 0, 2), np.int32),
            )
            for i, (name, case) in enumerate(cases.items())
        }

    one, many = (CaseList(made, tuple(made)) for made in (with_tiles(1), with_tiles(2)))
    targets = fit_targets([OS], one)
    held, again = BatchReader(targets, one), BatchReader(targets)
    assert len(held._held) == 1
    assert not BatchReader(targets, many)._held
    rows = [5, 3, 11, 0]
    mine, other = (reader.read(one, rows, 8, 0, 0) for reader in (held, again))
    assert torch.equal(mine.bags, other.bags)
    assert torch.equal(mine.mask, other.mask)
    assert mine.mask.any(dim=1).tolist() == [True, False, True, False]
    assert (mine.padded, mine.tileless) == (other.padded, other.tileless)


def test_held_batches_are_those_that_are_read(cases) -> None:
    people = CaseList(cases, tuple(cases))
    targets = fit_targets([OS], cases.values())
    held, again = BatchReader(targets, people), BatchReader(targets)
    rows = [5, 3, 11]
    one, other = (reader.read(people, rows, None, 0, 0) for reader in (held, again))
    for name in ("omics", "present", "targets", "label_mask"):
        for key, value in getattr(one, name).items():
            assert torch.equal(value, getattr(other, name)[key])
    assert torch.equal(one.site, other.site)
    model = load_model(targets)
    ours, theirs = held.outputs(model, people, SINGLE_WORKER), run_model(model, targets, people)
    torch.testing.assert_close(ours.outputs["OS"], theirs.outputs["OS"])
    assert ours.infos == theirs.infos
    assert torch.equal(ours.cohort, theirs.cohort)


def load_model(targets):
    from equipoise.platform.training.build import build_model

    return build_model(RECIPE.model, RECIPE.model_params, targets.shape, targets.heads, seed=0)
