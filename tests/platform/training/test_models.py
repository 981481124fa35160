"""Every model that reads slides goes through the loop, with several tasks and with one."""

from __future__ import annotations

import numpy as np
import pytest

from equipoise.platform.evaluation.metrics import auroc
from equipoise.platform.training.batches import CaseList
from equipoise.platform.training.build import build_model
from equipoise.platform.training.loop import fit
from equipoise.platform.training.params import TrainingParams
from equipoise.platform.training.predict import predict, run_model
from equipoise.platform.training.targets import fit_targets

SMALL = {
    "joint": {"dim": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "feedforward": 16},
    "mean_pool": {"dim": 16},
    "abmil": {"dim": 16, "hidden": 8, "branches": "task"},
    "transmil": {"dim": 16, "heads": 2, "landmarks": 4},
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("count", [1, 4])
def test_a_planted_signal_is_found(tasks, make_cases, name: str, count: int) -> None:
    cases = make_cases(26, missing=False)
    patients = tuple(cases)
    train, val = CaseList(cases, patients[:20]), CaseList(cases, patients[20:])
    targets = fit_targets(tasks[:count], train)
    model = build_model(name, SMALL[name], targets.shape, targets.heads, seed=0)
    fit(model, targets, train, val, TrainingParams(epochs=7, lr=1e-2, batch=5), seed=0)
    out = run_model(model, targets, train)
    score = out.outputs["MSI"].softmax(1)[:, 1]
    assert auroc(out.targets["MSI"].numpy(), score.numpy()) > 0.9
    table = predict(model, targets, val, role="val", repeat=0, fold=0)
    assert len(table) == 6 * (1 if count == 1 else 6)
    assert np.isfinite(table["score"]).all()
