"""IMTL-G: equal projections, and the two cases in which its normalisation fails."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


def projections(J: Tensor, d: Tensor) -> Tensor:
    return (J / J.norm(dim=1, keepdim=True)) @ d


def test_projections_are_equal_and_uphill_for_nobody(combine: Callable[..., Tensor], matrices: list) -> None:
    assert len(matrices) == 25
    for kind, tasks, J in matrices:
        along = projections(J[J.norm(dim=1) > 0], combine("imtl_g", J))
        if kind == "opposite":
            assert along[:2].sum().abs() < 1e-6, (kind, tasks)
        else:
            assert (along - along.mean()).abs().max() < 1e-6 * along.abs().max(), (kind, tasks)
            assert along.min() > 0, (kind, tasks)


def test_two_tasks_by_hand(combine: Callable[..., Tensor]) -> None:
    """(4, 0) and (0, 1): α = (1/5, 4/5)."""
    assert combine("imtl_g", torch.tensor([[4.0, 0.0], [0.0, 1.0]])).tolist() == pytest.approx([0.8, 0.8])


def test_opposite_gradients_give_nothing(combine: Callable[..., Tensor]) -> None:
    J = torch.tensor([[1.0, 1.0], [-2.0, -2.0]], dtype=torch.float64)
    assert combine("imtl_g", J).tolist() == pytest.approx([0, 0], abs=1e-6)


def test_a_negative_sum_does_not_turn_the_direction(combine: Callable[..., Tensor]) -> None:
    """Cosines .5, .8, .8 and a third gradient of norm 0.01: α ∝ (.91, .91, −45), of negative sum."""
    C = torch.tensor([[1.0, 0.5, 0.8], [0.5, 1.0, 0.8], [0.8, 0.8, 1.0]], dtype=torch.float64)
    J = torch.linalg.cholesky(C) * torch.tensor([[1.0], [1.0], [0.01]], dtype=torch.float64)
    published = torch.linalg.solve(J @ J.T, J.norm(dim=1))
    assert published.sum() < 0
    along = projections(J, combine("imtl_g", J))
    assert along.min() > 0
    assert along.max() <= J.norm(dim=1).max()
