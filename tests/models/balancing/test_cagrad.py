"""CAGrad: optimality for any number of tasks, the closed form for two, scales."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from equipoise.models.balancing.cagrad import _dual_of_two
from equipoise.models.balancing.solvers import UnitGradients, dual_of_many

Combine = Callable[..., Tensor]


def dual(J: Tensor, w: Tensor, c: float) -> Tensor:
    """F(w) = g_w·g_0 + c‖g_0‖‖g_w‖ for ``[n, t]`` weights: nowhere below the best worst-case gain."""
    g0 = J.mean(0)
    gw = w @ J
    return gw @ g0 + c * g0.norm() * gw.norm(dim=1)


@pytest.mark.parametrize("c", [0.2, 0.4, 0.9, 1.5])
def test_worst_gain_is_the_dual_optimum(combine: Combine, matrices: list, c: float) -> None:
    """Weak duality on random simplex points, equality at the weights that were found: both are optimal."""
    assert len(matrices) == 25
    for case in matrices:
        J = case.J[case.J.norm(dim=1) > 0]
        if len(J) < 2:
            J = torch.cat([J, J.flip(1)])
        d, g0 = combine("cagrad", J, c=c, rescale=0), J.mean(0)
        size = float(J.norm(dim=1).max()) ** 2
        gain = (J @ d).min()
        assert (d - g0).norm() <= c * g0.norm() * (1 + 1e-6), case.name
        random = np.random.default_rng(1).dirichlet(np.full(len(J), 0.5), 500)
        points = torch.cat([torch.from_numpy(random), torch.eye(len(J), dtype=torch.float64)])
        assert dual(J, points, c).min() >= gain - 1e-6 * size, case.name
        unit = UnitGradients.of(J @ J.T)
        b = torch.mean(J @ J.T, dim=1).numpy()
        x = torch.from_numpy(dual_of_many(unit.cosines, unit.norms, b, c * float(g0.norm())))
        assert dual(J, (x / x.sum())[None], c).item() == pytest.approx(float(gain), abs=1e-4 * size), (
            case.name
        )


@given(
    g=st.lists(st.floats(-3, 3), min_size=4, max_size=4),
    c=st.floats(0.05, 0.95),
)
def test_two_tasks_against_a_dense_grid(combine: Combine, g: list[float], c: float) -> None:
    J = torch.tensor(g, dtype=torch.float64).view(2, 2)
    assume((J.norm(dim=1) >= 1e-3).all() and J.mean(0).norm() >= 1e-3)
    w = torch.linspace(0, 1, 5001, dtype=torch.float64)
    least = dual(J, torch.stack([w, 1 - w], 1), c).min()
    gain = (J @ combine("cagrad", J, c=c, rescale=0)).min()
    assert gain.item() == pytest.approx(least.item(), abs=1e-4 * float(J.norm(dim=1).max()) ** 2)


@given(angle=st.floats(0.05, 3.0), ratio=st.floats(0.1, 10), c=st.floats(0.05, 0.95))
def test_closed_form_is_the_solver_s(angle: float, ratio: float, c: float) -> None:
    J = np.array([[1.0, 0.0], [ratio * np.cos(angle), ratio * np.sin(angle)]])
    unit = UnitGradients.of(torch.from_numpy(J @ J.T))
    b = (J @ J.T).mean(1)
    s = c * float(np.linalg.norm(J.mean(0)))
    both = [solve(unit.cosines, unit.norms, b, s) for solve in (_dual_of_two, dual_of_many)]
    assert J.T @ both[0] == pytest.approx(J.T @ both[1], abs=1e-5 * max(ratio, 1))


def test_scale_of_the_lineage(combine: Combine, matrices: list) -> None:
    """Rescale 1 is T/(1+c²) times the paper's, T of the tasks with a gradient; 2 is T/(1+c)."""
    assert len(matrices) == 25
    for case in matrices:
        live = int((case.J.norm(dim=1) > 0).sum())
        plain, lineage, last = (combine("cagrad", case.J, rescale=i) for i in range(3))
        assert torch.allclose(lineage, plain * live / 1.16), case.name
        assert torch.allclose(last, plain * live / 1.4), case.name


def test_scale_of_two_tasks_is_the_published_number(combine: Combine) -> None:
    J = torch.tensor([[1.0, 0.2], [-0.3, 0.8]], dtype=torch.float64)
    plain, lineage = (combine("cagrad", J, rescale=i) for i in range(2))
    assert (lineage.norm() / plain.norm()).item() == pytest.approx(1.7241, abs=1e-4)


def test_without_freedom_it_is_the_mean(combine: Combine) -> None:
    J = torch.randn(4, 6, dtype=torch.float64)
    assert torch.allclose(combine("cagrad", J, c=0.0, rescale=0), J.mean(0))


def test_size_of_gradients_only_scales_it(combine: Combine) -> None:
    """Also where torchjd takes them for zero."""
    J = torch.randn(5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(combine("cagrad", 1e-6 * J) * 1e6, combine("cagrad", J), rtol=1e-6)


def test_nobody_loses_where_no_direction_helps_all(combine: Combine) -> None:
    """Two opposite tasks cannot both gain; the third does, and w alone would not say how."""
    J = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    assert combine("cagrad", J, rescale=0).tolist() == pytest.approx([0, 1], abs=1e-6)
