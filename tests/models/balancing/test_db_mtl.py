"""DB-MTL: logarithms, averages, norms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from equipoise.models.balancing.balancer import Balancer
from equipoise.models.balancing.entries import EqualParams
from equipoise.models.balancing.equal import Equal

J = torch.tensor([[3.0, 0.0], [0.0, 8.0]])


def test_a_step_by_hand(build: Callable, at: Callable) -> None:
    """Gradients of log L are (3, 0)/1.5 and (0, 8)/2; both get the larger norm, 4. The balancer divides by L."""
    losses = torch.tensor([1.5, 2.0])
    d = build("db_mtl").direction(J / losses[:, None], losses, at(2))
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


class Tower(nn.Module):
    """One shared number and one own number per task; losses (θ a_k − k)² + 1."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([0.7], dtype=torch.float64))
        self.own = nn.ParameterList(torch.tensor([k + 0.5], dtype=torch.float64) for k in range(2))

    def losses(self) -> torch.Tensor:
        return torch.cat([(self.theta * a - k).square() + 1 for k, a in enumerate(self.own)])

    def shared_parameters(self) -> list[nn.Parameter]:
        return [self.theta]

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        return [self.own[int(task[-1])]]


def test_own_parameters_follow_the_logarithm_too(build: Callable, at: Callable) -> None:
    model = Tower()
    losses = model.losses()
    expected = torch.autograd.grad(losses.log().sum(), list(model.own), retain_graph=True)
    shared = [torch.autograd.grad(loss.log(), model.theta, retain_graph=True)[0] for loss in losses]
    balancer = Balancer(model, at(2).tasks, Equal(EqualParams(), ()), build("db_mtl"))
    balancer.backward(losses, losses.detach(), at(2), None)
    for parameter, gradient in zip(model.own, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    largest = max(abs(float(g)) for g in shared)
    assert float(model.theta.grad) == pytest.approx(largest * sum(float(torch.sign(g)) for g in shared))


def test_negative_losses_are_refused(build: Callable, at: Callable) -> None:
    model = Tower()
    losses = model.losses() - 3
    balancer = Balancer(model, at(2).tasks, Equal(EqualParams(), ()), build("db_mtl"))
    with pytest.raises(ValueError, match="DbMtl needs losses of at least 0"):
        balancer.backward(losses, losses.detach(), at(2), None)
