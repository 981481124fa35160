"""Dynamic weight average from known histories of losses."""

from __future__ import annotations

import math

import pytest
import torch
from torchjd.scalarization import DWA

from equipoise.models.balancing.dwa import Dwa
from equipoise.models.balancing.entries import DwaParams
from equipoise.models.balancing.protocol import StepContext
from equipoise.models.batch import TaskHead

HEADS = (TaskHead("MSI", "binary", 2), TaskHead("LF", "regression", 1), TaskHead("ITH", "regression", 1))
CONTEXT = StepContext(("MSI", "LF", "ITH"), torch.tensor([True] * 3), 0, 0)
NOW = torch.ones(3, dtype=torch.float64)


def weights_after(*epochs: list[float], temperature: float = 2.0) -> list[float]:
    weighting = Dwa(DwaParams(temperature=temperature), HEADS)
    for epoch in epochs:
        weighting.on_epoch_end(torch.tensor(epoch, dtype=torch.float64))
    return weighting.weights(NOW, CONTEXT).tolist()


def test_the_first_two_epochs_count_one() -> None:
    assert weights_after() == [1, 1, 1]
    assert weights_after([9.0, 1.0, 2.0]) == [1, 1, 1]


def test_weights_by_hand() -> None:
    """Ratios 1/2, 1 and 2 of the last two epochs; the epoch before them is forgotten."""
    shares = [math.exp(0.25), math.exp(0.5), math.exp(1.0)]
    by_hand = [3 * share / sum(shares) for share in shares]
    assert weights_after([7.0, 7.0, 7.0], [2.0, 1.0, 0.5], [1.0, 1.0, 1.0]) == pytest.approx(by_hand)


def test_every_task_goes_by_its_own_loss() -> None:
    """The first task's loss once stood in the second one's average: its ratio would be that of both."""
    assert (
        weights_after([1.0, 10.0, 1.0], [1.0, 5.0, 1.0])[1] < 1 < weights_after([10.0, 1.0, 1], [5, 1, 1])[1]
    )


def test_an_epoch_without_labels_is_not_in_the_history() -> None:
    nan = math.nan
    gap = weights_after([2.0, 1.0, 4.0], [nan, 1.0, 3.0], [1.0, 1.0, 3.0])
    assert gap == pytest.approx(weights_after([2.0, 1.0, 3.0], [1.0, 1.0, 3.0]))
    unseen = weights_after([2.0, 1.0, nan], [1.0, 1.0, nan])
    shares = [math.exp(0.25), math.exp(0.5)]
    assert unseen == pytest.approx([2 * shares[0] / sum(shares), 2 * shares[1] / sum(shares), 1.0])


def test_agrees_with_torchjd() -> None:
    weighting, oracle = Dwa(DwaParams(temperature=1.3), HEADS), DWA(temperature=1.3)
    for epoch in range(6):
        losses = 0.1 + torch.rand(3, generator=torch.Generator().manual_seed(epoch), dtype=torch.float64)
        losses.requires_grad_()
        oracle(losses).backward()
        torch.testing.assert_close(weighting.weights(losses.detach(), CONTEXT), losses.grad)
        oracle.step()
        weighting.on_epoch_end(losses.detach())
