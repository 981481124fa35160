"""Risk sets over all training patients in the loop, and batches that hold their share of events."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from equipoise.models.losses import TaskLosses
from equipoise.platform.errors import StudyError
from equipoise.platform.run.loading import load_study
from equipoise.platform.training.batches import CaseList, collate, draw_order
from equipoise.platform.training.build import build_model
from equipoise.platform.training.loop import fit
from equipoise.platform.training.params import TrainingParams
from equipoise.platform.training.strata import draw_stratified_order, strata_of
from equipoise.platform.training.targets import fit_targets

SMALL = {"dim": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "feedforward": 16, "dropout": 0.0}


@pytest.fixture
def survival(tasks, make_cases):
    """Targets, training and validation part of one survival task."""
    cases = make_cases(30)
    patients = tuple(cases)
    train, val = CaseList(cases, patients[:22]), CaseList(cases, patients[22:])
    return fit_targets([tasks[3]], train), train, val


def test_one_epoch_of_frozen_weights_is_the_full_likelihood_and_its_gradient(survival, monkeypatch) -> None:
    targets, train, val = survival
    model = build_model("joint", SMALL, targets.shape, targets.heads, seed=1)
    batch = collate(list(train), targets)
    whole = TaskLosses(targets.heads)(model(batch), batch.targets, batch.label_mask, batch.cohort).means()
    expected = torch.autograd.grad(whole.sum(), list(model.parameters()), allow_unused=True)

    seen: list[list[torch.Tensor]] = []

    def frozen(self, closure=None) -> None:
        seen.append([torch.zeros(0) if p.grad is None else p.grad.clone() for p in model.parameters()])

    monkeypatch.setattr(torch.optim.AdamW, "step", frozen)
    params = TrainingParams(
        epochs=1, batch=5, risk_sets="memory", order="stratified", device="cpu", amp="off"
    )
    history = fit(model, targets, train, val, params, seed=0).history
    assert len(seen) == 5
    assert history[0]["train/OS"] == pytest.approx(whole.item(), rel=1e-5)
    scale = max(float(g.abs().max()) for g in expected if g is not None)
    for parts, gradient in zip(zip(*seen, strict=True), expected, strict=True):
        if gradient is not None:
            mean = torch.stack(list(parts)).mean(dim=0)
            torch.testing.assert_close(mean, gradient, rtol=1e-4, atol=1e-5 * scale)


def test_in_one_batch_of_everybody_memory_changes_nothing(survival) -> None:
    targets, train, val = survival
    weights = []
    for risk_sets in ("batch", "memory"):
        model = build_model("joint", SMALL, targets.shape, targets.heads, seed=1)
        params = TrainingParams(epochs=3, lr=1e-3, batch="full", risk_sets=risk_sets, device="cpu")  # type: ignore[arg-type]
        fit(model, targets, train, val, params, seed=0)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-6)


def test_stratified_batches_hold_their_share_of_every_stratum() -> None:
    rng = np.random.default_rng(0)
    strata = rng.choice(4, 237, p=[0.55, 0.25, 0.15, 0.05])
    share = np.bincount(strata) / 237
    worst = {}
    for name, batches in (
        ("shuffled", lambda epoch: draw_order(237, 32, 5, epoch)),
        ("stratified", lambda epoch: draw_stratified_order(strata, 32, 5, epoch)),
    ):
        errors = []
        for epoch in range(20):
            rows = list(batches(epoch))
            assert sorted(itertools.chain.from_iterable(rows)) == list(range(237))
            assert [len(part) for part in rows] == [32] * 7 + [13]
            errors += [
                np.abs(np.bincount(strata[part], minlength=4) - len(part) * share).max() for part in rows
            ]
        worst[name] = max(errors)
    assert worst["stratified"] < 2
    assert worst["shuffled"] > 4
    first, again, other = (list(draw_stratified_order(strata, 32, 5, epoch)) for epoch in (0, 0, 1))
    assert first == again
    assert first != other


def test_strata_are_events_within_cohorts(survival) -> None:
    targets, train, _ = survival
    strata = strata_of(train, targets)
    keys = {}
    for case, stratum in zip(train, strata, strict=True):
        days, event = case.targets["OS"]
        keys.setdefault(stratum, set()).add((case.cohort, event if days == days else None))
    assert len(keys) == 5  # two cohorts with events and, in one of them, censored and unlabelled patients
    assert all(len(of) == 1 for of in keys.values())


def test_federations_refuse_memory(tmp_path) -> None:
    (tmp_path / "clini.csv").write_text("PATIENT,T,E,AGE\n")
    study = tmp_path / "study.yaml"
    study.write_text(
        """
version: 1
name: few
cohorts: [{name: A, role: develop, clinical: clini.csv}]
tasks: [{name: OS, type: survival, time: {column: T, unit: days}, event: {column: E, event_value: 1}}]
tables: {clinical: [{column: AGE, type: number}]}
model: {kind: clinical}
training: {risk_sets: memory}
federation: {}
"""
    )
    with pytest.raises(StudyError, match="sites keep no scores between rounds"):
        load_study(study)
