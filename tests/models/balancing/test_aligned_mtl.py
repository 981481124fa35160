"""Aligned-MTL: principal components of one length."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


def test_orthogonal_gradients_become_the_shortest_one_s_length(combine: Callable[..., Tensor]) -> None:
    J = torch.diag(torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64))
    assert combine("aligned_mtl", J).tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize(("scale", "length"), [("min", 1.0), ("median", 2.0), ("rmse", (14 / 3) ** 0.5)])
def test_scales(combine: Callable[..., Tensor], scale: str, length: float) -> None:
    J = torch.diag(torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64))
    assert combine("aligned_mtl", J, scale=scale).tolist() == pytest.approx([length / 3] * 3)


def test_parallel_float32_gradients_do_not_vanish(combine: Callable[..., Tensor]) -> None:
    """Their second eigenvalue is rounding, and nothing to scale by."""
    g = torch.randn(5000, generator=torch.Generator().manual_seed(1))
    d = combine("aligned_mtl", torch.stack([g, 1.7 * g]))
    assert d.norm() > 0.5 * g.norm()


def test_small_gradients_count_as_a_direction(combine: Callable[..., Tensor]) -> None:
    """A norm of 1e-4 beside 1 is an eigenvalue of 1e-8, and no rounding: all shrink to it."""
    J = torch.tensor([[1.0, 0.0], [0.0, 1e-4]])
    assert combine("aligned_mtl", J).tolist() == pytest.approx([5e-5, 5e-5])


def test_silent_tasks(combine: Callable[..., Tensor]) -> None:
    assert combine("aligned_mtl", torch.zeros(2, 3)).tolist() == [0, 0, 0]
    assert combine("aligned_mtl", torch.tensor([[2.0, 0.0], [0.0, 0.0]])).tolist() == pytest.approx([1, 0])
