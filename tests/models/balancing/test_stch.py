"""Smooth Tchebycheff: gradient of a smooth maximum, after a warm-up that sets the scale."""

from __future__ import annotations

import math

import pytest
import torch
from torchjd.scalarization import STCH

from equipoise.models.balancing.entries import StchParams
from equipoise.models.balancing.protocol import StepContext
from equipoise.models.balancing.stch import Stch
from equipoise.models.batch import TaskHead

HEADS = tuple(TaskHead(name, "regression", 1) for name in "abc")
ALL = StepContext(tuple("abc"), torch.tensor([True] * 3), 0, 0)
LOSSES = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)


def warmed(nadir: list[float], **params: float) -> Stch:
    weighting = Stch(StchParams(warmup_epochs=2, **params), HEADS)
    weighting.on_epoch_end(torch.full((3,), 99.0))
    weighting.on_epoch_end(torch.tensor(nadir, dtype=torch.float64))
    return weighting


def test_weights_by_hand_at_smoothness_one() -> None:
    """log: softmax of log(L/n) is L/n over its sum, and dividing by L leaves T / n / sum."""
    found = warmed([2.0, 2.0, 8.0]).weights(LOSSES, ALL)
    ratios = [0.5, 1.0, 0.5]
    assert found.tolist() == pytest.approx(
        [3 * r / sum(ratios) / loss for r, loss in zip(ratios, [1, 2, 4], strict=True)]
    )


def test_small_smoothness_follows_the_worst_task() -> None:
    for log in (True, False):
        found = warmed([2.0, 1.0, 8.0], mu=1e-3, log=log).weights(LOSSES, ALL)
        assert found[0] == found[2] == 0
        assert found[1] > 0


def test_agrees_with_torchjd() -> None:
    """Without logarithms the weights are T times the gradient with preferences 1/n."""
    nadir = [2.0, 0.5, 3.0]
    leaf = LOSSES.clone().requires_grad_()
    (3 * STCH(mu=0.7, weights=1 / torch.tensor(nadir, dtype=torch.float64))(leaf)).backward()
    torch.testing.assert_close(warmed(nadir, mu=0.7, log=False).weights(LOSSES, ALL), leaf.grad)
    leaf = LOSSES.clone().requires_grad_()
    (3 * STCH(mu=0.7, weights=torch.ones(3))(torch.log(leaf / torch.tensor(nadir)))).backward()
    torch.testing.assert_close(warmed(nadir, mu=0.7).weights(LOSSES, ALL), leaf.grad)


def test_warm_up_is_the_sum_of_logarithms_or_of_losses() -> None:
    for log, expected in ((True, [1, 0.5, 0.25]), (False, [1, 1, 1])):
        weighting = Stch(StchParams(warmup_epochs=2, log=log), HEADS)
        weighting.on_epoch_end(LOSSES)
        assert weighting.weights(LOSSES, ALL).tolist() == expected


def test_a_nadir_comes_late_where_labels_do() -> None:
    weighting = warmed([2.0, 2.0, math.nan], log=False)
    assert weighting.nadir[2] == 99
    weighting = Stch(StchParams(warmup_epochs=1, log=False), HEADS)
    weighting.on_epoch_end(torch.tensor([2.0, 2.0, math.nan]))
    assert weighting.weights(LOSSES, ALL).tolist() == [1, 1, 1]  # c is here but has no scale yet
    without = StepContext(ALL.tasks, torch.tensor([True, True, False]), 1, 0)
    assert weighting.weights(LOSSES, without)[0] < weighting.weights(LOSSES, without)[1]
    weighting.on_epoch_end(torch.tensor([1.0, 1.0, 5.0]))
    assert weighting.nadir.tolist() == [2, 2, 5]
