"""IMTL-L against its formula and torchjd."""

from __future__ import annotations

import pytest
import torch
from torchjd.scalarization import IMTLL

from equipoise.models.balancing.entries import ImtlLParams
from equipoise.models.balancing.imtl_l import ImtlL
from equipoise.models.balancing.protocol import Feedback, StepContext
from equipoise.models.batch import TaskHead

HEADS = (TaskHead("MSI", "binary", 2), TaskHead("LF", "regression", 1))
CONTEXT = StepContext(("MSI", "LF"), torch.tensor([True, True]), 0, 0)


def test_scaled_losses_tend_to_one() -> None:
    weighting, losses = ImtlL(ImtlLParams(lr=0.02), HEADS), torch.tensor([4.0, 0.2], dtype=torch.float64)
    assert weighting.weights(losses, CONTEXT).tolist() == [1, 1]
    for _ in range(2000):
        weighting.learn(losses, CONTEXT, Feedback())
    assert weighting.weights(losses, CONTEXT).tolist() == pytest.approx([0.25, 5.0], rel=1e-3)


def test_agrees_with_torchjd_over_a_run() -> None:
    weighting, oracle = ImtlL(ImtlLParams(lr=0.05), HEADS), IMTLL(2).double()
    optimiser = torch.optim.Adam(oracle.parameters(), lr=0.05)
    for step in range(50):
        losses = torch.rand(2, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        losses.requires_grad_()
        optimiser.zero_grad()
        oracle(losses).backward()
        weights = weighting.weights(losses.detach(), CONTEXT)
        torch.testing.assert_close(weights, losses.grad, rtol=1e-12, atol=0)
        optimiser.step()
        weighting.learn(losses.detach(), CONTEXT, Feedback())
