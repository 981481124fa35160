"""Gradient Vaccine: targets, turning, pairs that are not seen."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor


def at_angle(degrees: float, length: float = 1.0) -> Tensor:
    angle = math.radians(degrees)
    other = torch.tensor([length * math.cos(angle), length * math.sin(angle)], dtype=torch.float64)
    return torch.stack([torch.tensor([1.0, 0.0], dtype=torch.float64), other])


def test_the_first_step_of_two_tasks_is_pcgrad(combine: Callable[..., Tensor], matrices: list) -> None:
    """With more, later tasks already meet targets of earlier pairs' cosines."""
    pairs = [case for case in matrices if case.tasks == 2]
    assert len(pairs) == 5
    for case in pairs:
        assert torch.allclose(combine("gradvac", case.J), combine("pcgrad", case.J), atol=1e-9), case.name


def test_targets_follow_cosines(build: Callable, combine: Callable) -> None:
    method = build("gradvac", beta=0.25)
    combine(method, at_angle(60, 3.0))
    assert method.target.tolist() == [[0, pytest.approx(0.125)], [pytest.approx(0.125), 0]]
    combine(method, at_angle(0))
    assert method.target[0, 1] == pytest.approx(0.75 * 0.125 + 0.25)


def test_gradients_are_turned_to_the_target(build: Callable, combine: Callable) -> None:
    """cos 80° is below a target of ½: each ends at 60° from the other."""
    method = build("gradvac")
    method.target[:] = 0.5
    J = at_angle(80, 2.0)
    share = (0.5 * math.sin(math.radians(80)) - math.cos(math.radians(80)) * math.sqrt(0.75)) / math.sqrt(
        0.75
    )
    turned = [J[0] + share / 2 * J[1], J[1] + share * 2 * J[0]]
    assert torch.cosine_similarity(turned[0], J[1], dim=0).item() == pytest.approx(0.5)
    assert combine(method, J).tolist() == pytest.approx((turned[0] + turned[1]).tolist())


def test_agreement_is_left_alone(build: Callable, combine: Callable) -> None:
    method = build("gradvac")
    method.target[:] = 0.5
    J = at_angle(30)
    assert torch.allclose(combine(method, J), J.sum(0))


def test_a_conflict_after_long_agreement_stays_bounded(build: Callable, combine: Callable) -> None:
    method = build("gradvac")
    for _ in range(60):
        combine(method, at_angle(0))
    assert method.target[0, 1] == pytest.approx(1)
    assert combine(method, at_angle(90)).norm() < 20


def test_pairs_keep_targets_while_a_task_is_absent(build: Callable, combine: Callable, at: Callable) -> None:
    method = build("gradvac", 3)
    combine(method, torch.eye(3, dtype=torch.float64) + 0.5)
    before = method.target.copy()
    combine(method, at_angle(0), at(3, 1, rows=(0, 2)))
    assert method.target[0, 2] > before[0, 2]
    assert method.target[1].tolist() == before[1].tolist()
    assert method.target[:, 1].tolist() == before[:, 1].tolist()


def test_a_zero_gradient_changes_nothing(build: Callable, combine: Callable) -> None:
    method = build("gradvac")
    method.target[:] = 0.5
    J = torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    assert combine(method, J).tolist() == [1, 2]
    assert method.target.tolist() == [[0.5, 0.5], [0.5, 0.5]]
