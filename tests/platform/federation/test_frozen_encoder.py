"""ModalTune across sites: the adapter travels, the slide encoder stays what it is and where it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from equipoise.models.base import frozen_digests
from equipoise.models.slide_encoders.random_transformer import RandomTransformer
from equipoise.platform.federation.clients.study_trainer import StudyTrainer
from equipoise.platform.federation.messages import ClientUpdate
from equipoise.platform.federation.vector import Schema
from equipoise.platform.training.batches import CaseList
from equipoise.platform.training.build import build_model

WIDTH, DEPTH = 64, 6
SMALL = {
    "slide_encoder_params": {"width": WIDTH, "depth": DEPTH, "heads": 4},
    "bottleneck": 4,
    "attention_heads": 2,
    "embedding": 4,
    "rna_params": {"hidden": 4, "tokens": 1},
}


@pytest.fixture
def placed(sites):
    """The sites, with places of the tiles in um."""
    return {
        name: CaseList(
            {case.patient: replace(case, mpp=(0.5,), extent=112.0) for case in cases}, cases.patients
        )
        for name, cases in sites.items()
    }


def test_the_adapter_travels_and_the_encoder_does_not_change(federate, placed, monkeypatch) -> None:
    sent, digests = [], {}
    to_parts, train = ClientUpdate.to_parts, StudyTrainer.train

    def noted(self):
        parts = to_parts(self)
        sent.append(sum(len(part) for part in parts))
        return parts

    def watched(self, job):
        before, result = frozen_digests(self.model), train(self, job)
        digests.setdefault(job.client, set()).update(before + frozen_digests(self.model))
        return result

    monkeypatch.setattr(ClientUpdate, "to_parts", noted)
    monkeypatch.setattr(StudyTrainer, "train", watched)
    simulation = federate(model="modaltune", model_params=SMALL, clients=placed, rounds=2)
    model = simulation.factory()
    result = simulation.run()
    assert not np.array_equal(result.vector, simulation.initial)
    adapter = sum(p.numel() for p in model.parameters())
    encoder = sum(p.numel() for p in model.frozen.encoder.parameters())
    assert encoder > 12 * DEPTH * WIDTH**2
    assert simulation.schema.size == adapter
    assert len(sent) == 2 * 4
    assert all(4 * adapter <= size < 4 * adapter + 20_000 < 4 * encoder for size in sent)
    assert set(digests) == {"A", "B", "C", "D"}
    assert set.union(*digests.values()) == set(frozen_digests(model))


def test_updates_belong_to_the_weights_of_the_encoder(targets) -> None:
    tasks = [head.name for head in targets.heads]
    hashes = set()
    for seed in (0, 1, 0):
        own = SMALL | {"slide_encoder_params": SMALL["slide_encoder_params"] | {"seed": seed}}
        model = build_model("modaltune", own, targets.shape, targets.heads, seed=3)
        hashes.add(Schema.of(model, tasks).hash)
    assert len(hashes) == 2


def test_a_client_whose_encoder_changes_fails(federate, placed, monkeypatch) -> None:
    run_stage = RandomTransformer.run_stage

    def drifting(self, at, state):
        if torch.is_grad_enabled():
            self.cls_token.data += 1e-3
        return run_stage(self, at, state)

    monkeypatch.setattr(RandomTransformer, "run_stage", drifting)
    simulation = federate(model="modaltune", model_params=SMALL, clients=placed, rounds=1)
    result = simulation.run()
    assert np.array_equal(result.vector, simulation.initial)
    reasons = [row["reason"] for row in result.audit_log.rows if row["verdict"] == "failed"]
    assert len(reasons) == 4
    assert all("frozen slide encoder have changed" in reason for reason in reasons)
