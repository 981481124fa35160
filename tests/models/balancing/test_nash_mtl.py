"""Nash-MTL: the bargaining equation, clipping, and solutions that are kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


def test_gains_are_the_inverse_of_coefficients(build: Callable, at: Callable, matrices: list) -> None:
    assert len(matrices) == 25
    for kind, tasks, J in matrices:
        G = J @ J.T
        a = build("nash_mtl", tasks, max_norm=0).coefficients(G, torch.ones(tasks), at(tasks))
        live = G.diagonal() > 0
        count = int(live.sum())
        assert a[live].min() > 0, (kind, tasks)
        assert a[~live].tolist() == [0] * (tasks - count), (kind, tasks)
        if kind != "opposite":  # there no a solves it
            assert ((G @ a)[live] * a[live]).tolist() == pytest.approx([1] * count, rel=1e-6), (kind, tasks)
            assert (a @ G @ a).item() == pytest.approx(count), (kind, tasks)


@pytest.mark.parametrize("max_norm", [0.3, 1.0])
def test_the_direction_is_clipped(combine: Callable[..., Tensor], max_norm: float) -> None:
    J = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    clipped, free = (combine("nash_mtl", J, max_norm=norm) for norm in (max_norm, 0))
    assert clipped.norm().item() == pytest.approx(max_norm)
    assert torch.allclose(clipped, free * max_norm / 2)


def test_norms_of_gradients_do_not_matter(combine: Callable[..., Tensor]) -> None:
    J = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    stretched = J * torch.tensor([[1e-4], [1.0], [1e3]], dtype=torch.float64)
    assert torch.allclose(combine("nash_mtl", J), combine("nash_mtl", stretched), atol=1e-6)


def test_opposite_gradients_cancel(combine: Callable[..., Tensor]) -> None:
    g = torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64)
    assert combine("nash_mtl", torch.stack([g, -5 * g])).norm() < 1e-6


def test_solutions_are_kept_for_so_many_steps(build: Callable, at: Callable) -> None:
    method = build("nash_mtl", every=3, max_norm=0)
    grams = [torch.diag(torch.tensor([4.0**i, 1.0], dtype=torch.float64)) for i in range(5)]
    first = [method.coefficients(gram, torch.ones(2), at(2, i))[0].item() for i, gram in enumerate(grams)]
    assert first == pytest.approx([1, 1, 1, 0.125, 0.125])


def test_a_task_that_comes_back_has_its_own_coefficient(build: Callable, at: Callable) -> None:
    method = build("nash_mtl", 3, every=10, max_norm=0)
    two = torch.diag(torch.tensor([4.0, 16.0], dtype=torch.float64))
    assert method.coefficients(two, torch.ones(2), at(3, 0, rows=(0, 2))).tolist() == pytest.approx(
        [0.5, 0.25]
    )
    assert method.coefficients(9 * two, torch.ones(2), at(3, 1, rows=(2, 0))).tolist() == pytest.approx(
        [0.25, 0.5]
    )
    # Task 1 was never in a solution: one is worked out for all three.
    three = torch.diag(torch.tensor([1.0, 1.0, 4.0], dtype=torch.float64))
    assert method.coefficients(three, torch.ones(3), at(3, 2)).tolist() == pytest.approx([1, 1, 0.5])
