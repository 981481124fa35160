"""Baselines over tables: what they read, what they share, how a self-normalising network begins."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from equipoise.models.batch import CaseBatch, CaseShape, TaskHead
from equipoise.models.entries import ClinicalParams, OmicsParams
from equipoise.models.losses import TaskLosses
from equipoise.models.tables.model import Clinical, Omics
from equipoise.models.tables.snn import SelfNormalising

HEADS = (TaskHead("MSI", "binary", 2, main=True), TaskHead("L.F", "regression", 1))
SHAPE = CaseShape(0, {"rna": 6, "mutation": 4})


def batch_of(b: int = 5, shape: CaseShape = SHAPE, seed: int = 0) -> CaseBatch:
    """Cases without tiles; the second lacks the first table."""
    rng = torch.Generator().manual_seed(seed)
    present = {name: torch.ones(b, dtype=torch.bool) for name in shape.omics}
    present[next(iter(shape.omics))][1] = False
    omics = {
        name: torch.randn(b, width, generator=rng) * present[name][:, None]
        for name, width in shape.omics.items()
    }
    site = torch.zeros(b, dtype=torch.int64)
    empty = (torch.zeros(b, 0, 0), torch.zeros(b, 0, dtype=torch.bool), torch.zeros(b, 0, 2))
    return CaseBatch(*empty, omics, present, {}, {}, site)


def build(network: str = "snn") -> Omics:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Omics(OmicsParams(network=network, dim=8), SHAPE, HEADS)


def test_outputs_and_latents() -> None:
    for network, width in (("snn", 8), ("linear", 6 + 4 + 2)):
        model, batch = build(network).eval(), batch_of()
        latents = model.latents(batch)
        assert {tuple(latent.shape) for latent in latents.values()} == {(5, width)}
        outputs = model(batch)
        assert {name: tuple(out.shape) for name, out in outputs.items()} == {"MSI": (5, 2), "L.F": (5, 1)}
        torch.testing.assert_close(model.outputs(latents), outputs)


def test_shared_and_own_parameters_are_all_parameters_once() -> None:
    for network in ("snn", "linear"):
        model = build(network)
        parts = model.shared_parameters() + [p for head in HEADS for p in model.task_parameters(head.name)]
        assert sorted(map(id, parts)) == sorted(map(id, model.parameters()))
        assert bool(model.shared_parameters()) == (network == "snn")


def test_an_absent_table_is_said_and_not_taken_for_the_mean() -> None:
    model, batch = build("linear").eval(), batch_of()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    there = dataclasses.replace(
        batch, present=batch.present | {"rna": torch.ones(5, dtype=torch.bool)}, padded=None
    )
    one, other = model(batch)["MSI"], model(there)["MSI"]
    assert not torch.allclose(one[1], other[1])
    torch.testing.assert_close(one[0], other[0])


def test_one_table_needs_no_flag() -> None:
    model = Clinical(ClinicalParams(), CaseShape(0, {"clinical": 3}), HEADS)
    assert [tuple(p.shape) for p in model.parameters()] == [(2, 3), (2,), (1, 3), (1,)]


def test_tables_of_another_width_are_refused() -> None:
    batch = batch_of(shape=CaseShape(0, {"rna": 5, "mutation": 4}))
    with pytest.raises(ValueError, match="rna: the model was built for 6 columns, the batch has 5"):
        build()(batch)
    with pytest.raises(ValueError, match="mutation: the model was built for 4 columns, the batch has none"):
        build()(batch_of(shape=CaseShape(0, {"rna": 6})))
    with pytest.raises(ValueError, match="reads tables, and the data have none"):
        Clinical(ClinicalParams(), CaseShape(8), HEADS)


def test_a_self_normalising_network_keeps_mean_and_variance() -> None:
    """Klambauer et al. 2017, theorem 1: activations stay near mean 0 and variance 1, dropout or not."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SelfNormalising(400, 400, 8, 0.1)
        x = torch.randn(500, 400)
        for mode in (True, False):
            out = network.train(mode)(x)
            assert abs(out.mean()) < 0.1
            assert 0.8 < out.var() < 1.2


def test_a_signal_in_a_table_is_learned() -> None:
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(3))
    batch = batch_of(64)
    batch = dataclasses.replace(
        batch,
        omics=batch.omics | {"rna": x},
        present={name: torch.ones(64, dtype=torch.bool) for name in SHAPE.omics},
    )
    target = {"MSI": (x[:, 0] > 0).float(), "L.F": x[:, 1]}
    mask = {name: torch.ones(64, dtype=torch.bool) for name in target}
    losses = TaskLosses(HEADS)
    for network in ("linear", "snn"):
        model = build(network).eval()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
        first = losses(model(batch), target, mask).means().detach()
        for _ in range(60):
            optimizer.zero_grad()
            last = losses(model(batch), target, mask).means()
            last.sum().backward()
            optimizer.step()
        assert (last < 0.5 * first).all()


def test_the_small_network_starts_near_zero_and_drops_columns_in_training_only() -> None:
    def build(**params: float) -> Omics:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return Omics(
                OmicsParams(network="relu", dim=8, layers=1, dropout=0, **params),  # type: ignore[arg-type]
                SHAPE,
                HEADS,
            )

    batch = batch_of(200)
    plain, small = build().eval(), build(output_scale=0.1).eval()
    for name, out in plain(batch).items():
        torch.testing.assert_close(small(batch)[name], 0.1 * out)
    dropping = build(input_dropout=0.5)
    torch.testing.assert_close(dropping.eval()(batch)["MSI"], plain(batch)["MSI"])
    assert not torch.allclose(dropping.train()(batch)["MSI"], plain(batch)["MSI"])
