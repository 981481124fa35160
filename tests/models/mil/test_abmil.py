"""Gated attention against its equations."""

from __future__ import annotations

import torch

from equipoise.models.mil.abmil import GatedAttention


@torch.no_grad()
def test_output_is_equations_7_and_9(make, bags, batch_of) -> None:
    model, (bag,) = make("abmil").eval(), bags(6)
    h = torch.relu(model.project[0](bag))
    branch = model.attentions[0]
    scores = torch.stack(
        [
            (branch.score.weight[0] * torch.tanh(branch.content(row)) * torch.sigmoid(branch.gate(row))).sum()
            for row in h
        ]
    )
    weights = scores.exp() / scores.exp().sum()
    z = sum(w * row for w, row in zip(weights, h, strict=True))
    torch.testing.assert_close(model.latents(batch_of([bag]))["L.F"][0], z)


@torch.no_grad()
def test_attention_sums_to_one_over_existing_tiles(make, bags, batch_of) -> None:
    weights = make("abmil").eval().attention(batch_of(bags(6, 2), padding=2))
    assert list(weights) == ["MSI", "keys", "L.F", "OS"]
    torch.testing.assert_close(weights["MSI"].sum(dim=1), torch.ones(2))
    assert not weights["MSI"][0, 6:].any()
    assert not weights["MSI"][1, 2:].any()


@torch.no_grad()
def test_branches_are_shared_or_of_the_task(make, bags, batch_of) -> None:
    batch = batch_of(bags(9))
    shared = make("abmil").eval().latents(batch)
    own = make("abmil per task").eval().latents(batch)
    assert torch.equal(shared["MSI"], shared["OS"])
    assert not torch.allclose(own["MSI"], own["OS"])


def test_own_branches_belong_to_the_task(make) -> None:
    branch = sum(p.numel() for p in GatedAttention(16, 8).parameters())
    head = 17 * 2
    assert sum(p.numel() for p in make("abmil").task_parameters("MSI")) == head
    assert sum(p.numel() for p in make("abmil per task").task_parameters("MSI")) == head + branch
    assert len(make("abmil per task").shared_parameters()) == 2  # weight and bias of the projection


@torch.no_grad()
def test_the_order_of_tiles_says_nothing(make, bags, batch_of) -> None:
    model, (bag,) = make("abmil").eval(), bags(11)
    torch.testing.assert_close(model(batch_of([bag]))["OS"], model(batch_of([bag.flip(0)]))["OS"])
