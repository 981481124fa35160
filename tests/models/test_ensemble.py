"""Members as one model: mean probabilities, mean values, risks on one scale."""

from __future__ import annotations

import pytest
import torch

from equipoise.models.batch import CaseBatch, CaseShape, TaskHead
from equipoise.models.ensemble import Ensemble, Member
from equipoise.models.entries import OmicsParams
from equipoise.models.tables.model import Omics

HEADS = (
    TaskHead("MSI", "binary", 2, main=True),
    TaskHead("LF", "regression", 1),
    TaskHead("OS", "survival", 1),
    TaskHead("PFS", "survival", 3, edges=(100.0, 400.0)),
)
SHAPE = CaseShape(0, {"rna": 6})


def batch_of(b: int, seed: int = 0) -> CaseBatch:
    rng = torch.Generator().manual_seed(seed)
    omics = {"rna": torch.randn(b, 6, generator=rng)}
    empty = (torch.zeros(b, 0, 0), torch.zeros(b, 0, dtype=torch.bool), torch.zeros(b, 0, 2))
    present = {"rna": torch.ones(b, dtype=torch.bool)}
    return CaseBatch(*empty, omics, present, {}, {}, torch.zeros(b, dtype=torch.int64))


def members(count: int = 3) -> list[Omics]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        params = OmicsParams(network="relu", dim=8, layers=1, dropout=0)
        return [Omics(params, SHAPE, HEADS).eval() for _ in range(count)]


def test_what_is_averaged() -> None:
    models, batch, training = members(), batch_of(7), batch_of(40, 1)
    with torch.no_grad():
        models[1].heads[2].weight.mul_(50)  # one member's risks have another unit
        ensemble = Ensemble(models).eval()
        for k, model in enumerate(models):
            ensemble.standardise(k, model(training))
        out, apart = ensemble(batch), [model(batch) for model in models]
        probabilities = torch.stack([part["MSI"].softmax(dim=1) for part in apart]).mean(dim=0)
        torch.testing.assert_close(out["MSI"].softmax(dim=1), probabilities)
        torch.testing.assert_close(out["LF"], sum(part["LF"] for part in apart) / 3)
        hazards = torch.stack([part["PFS"].sigmoid() for part in apart]).mean(dim=0)
        torch.testing.assert_close(out["PFS"].sigmoid(), hazards, atol=1e-5, rtol=1e-4)
        risk = [model(training)["OS"] for model in models]
        by_hand = [(part["OS"] - r.mean()) / r.std(correction=0) for part, r in zip(apart, risk, strict=True)]
        torch.testing.assert_close(out["OS"], sum(by_hand) / 3, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(Member(ensemble, 1)(batch)["OS"], by_hand[1], atol=1e-5, rtol=1e-4)
        from_latents = ensemble.outputs(ensemble.latents(batch))
    assert ensemble.latents(batch)["OS"].shape == (7, 24)
    for name, value in out.items():
        torch.testing.assert_close(from_latents[name], value)


def test_weights_and_scales_are_saved() -> None:
    models, batch = members(2), batch_of(5)
    ensemble = Ensemble(models).eval()
    ensemble.standardise(0, models[0](batch))
    other = Ensemble(members(2)[::-1]).eval()
    other.load_state_dict(ensemble.state_dict())
    for name, value in ensemble(batch).items():
        torch.testing.assert_close(other(batch)[name], value)


def test_a_member_without_an_opinion_counts_nothing() -> None:
    models, batch = members(2), batch_of(5)
    with torch.no_grad():
        models[0].heads[2].weight.zero_()
        ensemble = Ensemble(models).eval()
        for k, model in enumerate(models):
            ensemble.standardise(k, model(batch))
        out = ensemble(batch)["OS"]
        torch.testing.assert_close(out, Member(ensemble, 1)(batch)["OS"] / 2)


def test_no_member_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one member"):
        Ensemble([])
