"""Uncertainty weighting against its formula, and that it learns at all."""

from __future__ import annotations

import math

import pytest
import torch
from torchjd.scalarization import UW

from equipoise.models.balancing.entries import UncertaintyParams
from equipoise.models.balancing.protocol import Feedback, StepContext
from equipoise.models.balancing.uncertainty import Uncertainty
from equipoise.models.batch import TaskHead

HEADS = (TaskHead("MSI", "binary", 2), TaskHead("LF", "regression", 1))
CONTEXT = StepContext(("MSI", "LF"), torch.tensor([True, True]), 0, 0)


def test_weights_begin_as_published() -> None:
    weights = Uncertainty(UncertaintyParams(), HEADS).weights(torch.ones(2), CONTEXT)
    assert weights.tolist() == pytest.approx([0.5 * math.exp(0.7)] * 2)  # 1.0069


def test_the_log_variances_change_after_one_step() -> None:
    """They stood outside the optimiser in published code, and weights stayed at 1.0069 for ever."""
    weighting = Uncertainty(UncertaintyParams(lr=0.01), HEADS)
    weighting.learn(torch.tensor([2.0, 0.1], dtype=torch.float64), CONTEXT, Feedback())
    # Adam's first step is lr against the sign of ½(1 - e^0.7 L): up for the large loss, down for the small
    assert weighting.log_variance.values.tolist() == pytest.approx([-0.69, -0.71])


def test_variances_follow_the_losses() -> None:
    weighting = Uncertainty(UncertaintyParams(lr=0.02), HEADS)
    losses = torch.tensor([3.0, 0.25], dtype=torch.float64)
    for _ in range(2000):
        weighting.learn(losses, CONTEXT, Feedback())
    assert weighting.log_variance.values.exp().tolist() == pytest.approx([3.0, 0.25], rel=1e-3)
    assert weighting.weights(losses, CONTEXT).tolist() == pytest.approx([1 / 6, 2], rel=1e-3)


def test_agrees_with_torchjd_over_a_run() -> None:
    weighting, oracle = Uncertainty(UncertaintyParams(lr=0.05, init=0.0), HEADS), UW(2).double()
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


def test_a_short_training_reaches_the_optimum() -> None:
    """Constant losses of 0.6 and 0.03 have the weights 1/(2L) = 0.83 and 16.7; 256 steps of the published size end at
    1.25 and 1.30, which is equal weighting under another name."""
    losses = torch.tensor([0.6, 0.03], dtype=torch.float64)
    ends = []
    for total in (256, None):
        weighting = Uncertainty(UncertaintyParams(), HEADS[:2])
        present = torch.tensor([True, True])
        for step in range(256):
            context = StepContext(("a", "b"), present, 0, step, total_steps=total)
            weighting.learn(losses, context, Feedback())
        ends.append(weighting.weights(losses, context).tolist())
    assert ends[0] == pytest.approx([1 / 1.2, 1 / 0.06], rel=0.05)
    assert max(ends[1]) < 1.5
