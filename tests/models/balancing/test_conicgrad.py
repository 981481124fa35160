"""ConicGrad: against a numerical optimum over the cone, a closed form in the plane, and its limits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from equipoise.models.balancing.conicgrad import ConicGrad
from equipoise.models.balancing.entries import ConicGradParams

Combine = Callable[..., Tensor]


def best_in_cone(J: np.ndarray, c: float) -> float:
    """Largest least gain over directions of the mean's length in the cone, by SLSQP from several starts."""
    g0 = J.mean(0)
    length = np.linalg.norm(g0)
    # Coordinates in the span of the gradients, where the optimum lies.
    basis = np.linalg.qr(J.T)[0]
    A, u = J @ basis, basis.T @ g0
    rng = np.random.default_rng(0)
    best = -np.inf
    for start in [u, *(u + length * rng.normal(size=(2, len(u))))]:
        x0 = np.append(start, (A @ start).min())
        found = minimize(
            lambda x: -x[-1],
            x0,
            jac=lambda x: np.append(np.zeros(len(x) - 1), -1.0),
            constraints=[
                {"type": "ineq", "fun": lambda x: A @ x[:-1] - x[-1]},
                {"type": "ineq", "fun": lambda x: length**2 - x[:-1] @ x[:-1]},
                {
                    "type": "ineq",
                    "fun": lambda x: x[:-1] @ u - c * length * np.sqrt(x[:-1] @ x[:-1] + 1e-300),
                },
            ],
            options={"maxiter": 400, "ftol": 1e-13},
        )
        d = found.x[:-1]
        d = d * length / np.linalg.norm(d)
        if d @ u >= (c - 1e-6) * length**2:
            best = max(best, float((A @ d).min()))
    return best


@pytest.mark.parametrize("c", [0.2, 0.5, 0.9])
def test_the_worst_off_task_gains_what_is_possible(combine: Combine, matrices: list, c: float) -> None:
    checked = 0
    for case in matrices:
        if case.kind not in ("random", "graded") or case.tasks > 4:
            continue
        J = case.J.numpy()
        d = combine("conicgrad", case.J, c=c).numpy()
        g0 = J.mean(0)
        assert np.linalg.norm(d) == pytest.approx(np.linalg.norm(g0), rel=1e-5), case.name
        assert d @ g0 >= (c - 1e-5) * np.linalg.norm(g0) ** 2, case.name
        scale = float(np.linalg.norm(J, axis=1).max()) ** 2
        assert (J @ d).min() >= best_in_cone(J, c) - 1e-4 * scale, case.name
        checked += 1
    assert checked == 6


@given(angle=st.floats(0.1, 3.0), ratio=st.floats(0.05, 20), c=st.floats(0.05, 0.99))
def test_two_tasks_in_the_plane(angle: float, ratio: float, c: float) -> None:
    """The best of the directions on the cone's two edges, and of those of equal gains and of a gradient inside it."""
    J = np.array([[1.0, 0.0], [ratio * np.cos(angle), ratio * np.sin(angle)]])
    g0 = J.mean(0)
    length, towards = np.linalg.norm(g0), np.arctan2(g0[1], g0[0])
    edge = np.arccos(c)
    difference = J[0] - J[1]
    equal = np.arctan2(difference[0], -difference[1])
    angles = [towards - edge, towards + edge, towards]
    for candidate in (equal, equal + np.pi, 0.0, angle):
        if np.cos(candidate - towards) >= c:
            angles.append(candidate)
    best = max((length * J @ np.array([np.cos(a), np.sin(a)])).min() for a in angles)
    method = ConicGrad(ConicGradParams(c=c), ())
    coefficients = method.coefficients(torch.from_numpy(J @ J.T), torch.ones(2), None).numpy()  # type: ignore[arg-type]
    d = J.T @ coefficients
    assert (J @ d).min() == pytest.approx(best, abs=2e-4 * max(ratio, 1) ** 2)


def test_limits(combine: Combine) -> None:
    """The narrowest cone is the mean; a wide one around gradients that agree is MGDA's direction at the mean's
    length.
    """
    J = torch.tensor([[1.0, 0.2, 0.0], [0.3, 0.9, 0.1], [0.2, 0.1, 2.0]], dtype=torch.float64)
    mean, shortest = J.mean(0), combine("mgda", J)
    assert torch.allclose(combine("conicgrad", J, c=1.0), mean, rtol=1e-6)
    assert torch.allclose(combine("conicgrad", J, c=0.1), shortest * mean.norm() / shortest.norm(), rtol=1e-6)
    assert torch.allclose(combine("conicgrad", 1e-5 * J) * 1e5, combine("conicgrad", J), rtol=1e-5)


def test_opposite_tasks_do_not_blow_up(combine: Combine) -> None:
    J = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    assert combine("conicgrad", J).norm() < 1e-6
    bent = torch.tensor([[1.0, 0.0], [-1.0, 1e-3]], dtype=torch.float64)
    assert combine("conicgrad", bent).norm() == pytest.approx(bent.mean(0).norm().item(), rel=1e-3)
