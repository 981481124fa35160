"""DB-MTL: logarithms, averages, norms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

J = torch.tensor([[3.0, 0.0], [0.0, 8.0]])


def test_a_step_by_hand(build: Callable, at: Callable) -> None:
    """Gradients of log L are (3, 0)/1.5 and (0, 8)/2; both get the larger norm, 4."""
    d = build("db_mtl").direction(J, torch.tensor([1.5, 2.0]), at(2))
    assert d.tolist() == pytest.approx([4, 4])


def test_weights_of_losses_cancel(build: Callable, at: Callable) -> None:
    losses = torch.ones(2)
    d = build("db_mtl").direction(torch.diag(torch.tensor([0.5, 1.0])) @ J, losses, at(2))
    assert d.tolist() == pytest.approx([8, 8])


def test_averages(build: Callable, at: Callable) -> None:
    """After g and h with β = ½: (g + h)/2; with σ = 1 the second step counts 1 − ½/2."""
    for sigma, new in ((0.0, 0.5), (1.0, 0.75)):
        method = build("db_mtl", beta=0.5, sigma=sigma)
        method.direction(J, torch.ones(2), at(2))
        method.direction(3 * J, torch.ones(2), at(2, 1))
        assert torch.allclose(method.mean, (1 - new) * J + new * 3 * J)


def test_absent_tasks_rest(build: Callable, at: Callable) -> None:
    method = build("db_mtl", 3)
    method.direction(torch.eye(3), torch.ones(3), at(3))
    d = method.direction(2 * torch.eye(3)[[0, 2]], torch.ones(2), at(3, 1, rows=(0, 2)))
    assert d.tolist() == pytest.approx([1.1, 0, 1.1])
    assert method.mean[1].tolist() == [0, 1, 0]
    assert method.seen.tolist() == [2, 1, 2]


def test_a_zero_gradient_is_not_blown_up(build: Callable, at: Callable) -> None:
    d = build("db_mtl").direction(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([1.0, 0.0]), at(2))
    assert d.tolist() == pytest.approx([3, 4])


def test_gradients_are_copied(build: Callable, at: Callable) -> None:
    """The matrix belongs to the balancer, which overwrites it."""
    method, gradients = build("db_mtl"), J.clone()
    method.direction(gradients, torch.ones(2), at(2))
    gradients.zero_()
    assert method.mean.norm() > 0


def test_negative_losses_are_refused(build: Callable, at: Callable) -> None:
    with pytest.raises(ValueError, match="a loss is negative"):
        build("db_mtl").direction(J, torch.tensor([1.0, -0.1]), at(2))
