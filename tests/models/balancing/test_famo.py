"""FAMO by hand and against torchjd, a second forward pass included."""

from __future__ import annotations

import pytest
import torch
from torchjd.scalarization import FAMO

from equipoise.models.balancing.entries import FamoParams
from equipoise.models.balancing.famo import Famo
from equipoise.models.balancing.protocol import Feedback, StepContext
from equipoise.models.batch import TaskHead

HEADS = tuple(TaskHead(name, "regression", 1) for name in "abc")
ALL = StepContext(tuple("abc"), torch.tensor([True] * 3), 0, 0)


def test_first_weights_by_hand() -> None:
    """z = 1/3 each, so that weights are 1/L over their sum: 1, 1/2 and 1/4 of 7/4."""
    found = Famo(FamoParams(), HEADS).weights(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64), ALL)
    assert found.tolist() == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    shifted = Famo(FamoParams(lower_bound=-1), HEADS)
    assert shifted.weights(torch.tensor([0.0, 1.0, 3.0]), ALL).tolist() == pytest.approx(
        [4 / 7, 2 / 7, 1 / 7]
    )


def test_a_task_that_fell_faster_loses_weight() -> None:
    weighting = Famo(FamoParams(), HEADS)
    before = torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64)
    weighting.learn(before, ALL, Feedback(losses_after=torch.tensor([0.5, 0.9, 1.2], dtype=torch.float64)))
    # falls 0.693, 0.105 and -0.182 about their mean 0.205: Adam's first step has the size lr
    assert weighting.logits.values.tolist() == pytest.approx([-0.025, 0.025, 0.025], rel=1e-4)


def test_agrees_with_torchjd_over_a_run() -> None:
    weighting, oracle = Famo(FamoParams(), HEADS), FAMO(3).double()
    for step in range(60):
        generator = torch.Generator().manual_seed(step)
        losses = 0.1 + torch.rand(3, generator=generator, dtype=torch.float64)
        after = 0.1 + torch.rand(3, generator=generator, dtype=torch.float64)
        leaf = losses.clone().requires_grad_()
        oracle(leaf).backward()
        oracle.update(after)
        torch.testing.assert_close(weighting.weights(losses, ALL), leaf.grad, rtol=1e-6, atol=0)
        weighting.learn(losses, ALL, Feedback(losses_after=after))


def test_it_asks_for_the_losses_after_the_step() -> None:
    assert Famo(FamoParams(), HEADS).needs == {"second_forward"}
