"""MGDA: closed forms and promises."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


@pytest.mark.parametrize(
    ("second", "weights"),
    [
        ((0.0, 1.0), (0.5, 0.5)),
        ((0.0, 2.0), (0.8, 0.2)),
        ((3.0, 1.0), (1.0, 0.0)),  # the perpendicular meets the line outside: the vertex
        ((-1.0, 0.0), (0.5, 0.5)),
        ((-3.0, 0.0), (0.75, 0.25)),
        ((1.0, 0.0), (0.5, 0.5)),
    ],
)
def test_two_tasks_by_hand(build: Callable, at: Callable, second: tuple, weights: tuple) -> None:
    J = torch.tensor([(1.0, 0.0), second], dtype=torch.float64)
    w = build("mgda").coefficients(J @ J.T, torch.ones(2), at(2))
    assert w.tolist() == pytest.approx(weights, abs=1e-6)


def test_no_task_loses(combine: Callable[..., Tensor], matrices: list) -> None:
    assert len(matrices) == 25
    for case in matrices:
        d, live = combine("mgda", case.J), case.J.norm(dim=1) > 0
        assert (case.J @ d)[live].min() >= d @ d - 1e-7, case.name


def test_zero_inside_the_hull_stops(combine: Callable[..., Tensor]) -> None:
    J = torch.tensor([[1.0, 0.0], [-1.0, 2.0], [-1.0, -2.0]], dtype=torch.float64)
    assert combine("mgda", J).norm() < 1e-6


def test_a_silent_task_does_not_stop_the_others(combine: Callable[..., Tensor]) -> None:
    J = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    assert combine("mgda", J).tolist() == pytest.approx([0.5, 0.5])


def test_all_silent(combine: Callable[..., Tensor]) -> None:
    assert combine("mgda", torch.zeros(3, 4)).tolist() == [0] * 4
