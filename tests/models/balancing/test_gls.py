"""Weights of the geometric mean."""

from __future__ import annotations

import pytest
import torch
from torchjd.scalarization import GeometricMean

from equipoise.models.balancing.entries import GlsParams
from equipoise.models.balancing.gls import Gls
from equipoise.models.balancing.protocol import StepContext
from equipoise.models.batch import TaskHead

HEADS = tuple(TaskHead(name, "regression", 1) for name in "abc")
ALL = StepContext(tuple("abc"), torch.tensor([True] * 3), 0, 0)


def test_weights_by_hand() -> None:
    """(1 · 8 · 27)^(1/3) = 6; weights 6 / 3L."""
    found = Gls(GlsParams(), HEADS).weights(torch.tensor([1.0, 8.0, 27.0], dtype=torch.float64), ALL)
    assert found.tolist() == pytest.approx([2.0, 0.25, 2 / 27])


def test_the_mean_is_over_present_tasks() -> None:
    context = StepContext(ALL.tasks, torch.tensor([True, False, True]), 0, 0)
    found = Gls(GlsParams(), HEADS).weights(torch.tensor([4.0, 0.0, 9.0], dtype=torch.float64), context)
    assert found.tolist() == pytest.approx([6 / 8, 0.0, 6 / 18])


def test_agrees_with_torchjd() -> None:
    losses = torch.rand(3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    GeometricMean()(losses).backward()
    torch.testing.assert_close(Gls(GlsParams(), HEADS).weights(losses.detach(), ALL), losses.grad)
