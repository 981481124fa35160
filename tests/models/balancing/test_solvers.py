"""Small solvers: optimality conditions on anything, closed forms where there are some."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from equipoise.models.balancing.solvers import (
    FLOOR,
    UnitGradients,
    as_array,
    equilibrium,
    min_norm,
    nonnegative_qp,
    project_on_simplex,
    regularised,
)


@st.composite
def gradients(draw: st.DrawFn) -> np.ndarray:
    """Small whole numbers: zero, parallel, opposite and dependent rows come by themselves."""
    shape = draw(st.tuples(st.integers(2, 6), st.integers(1, 8)))
    return draw(arrays(np.float64, shape, elements=st.integers(-3, 3).map(float)))


def unit(J: np.ndarray) -> UnitGradients:
    return UnitGradients.of(torch.from_numpy(J @ J.T))


@given(arrays(np.float64, st.integers(1, 8), elements=st.floats(-1e3, 1e3)))
def test_projection_on_the_simplex_is_optimal(v: np.ndarray) -> None:
    """The residual v − w is constant where w > 0 and smaller elsewhere."""
    w = project_on_simplex(v)
    assert w.min() >= 0
    assert w.sum() == pytest.approx(1)
    rest = v - w
    assert rest[w > 0] == pytest.approx(np.full((w > 0).sum(), rest.max()), abs=1e-9)


@given(gradients(), st.integers(0, 2**16))
def test_nonnegative_qp_fulfils_its_optimality_conditions(J: np.ndarray, seed: int) -> None:
    A = regularised(J @ J.T)
    b = J @ np.random.default_rng(seed).normal(size=J.shape[1])
    x = nonnegative_qp(A, b)
    slope = A @ x - b
    scale = max(np.abs(b).max(), 1e-300)
    assert x.min() >= 0
    assert slope.min() >= -1e-9 * scale
    assert abs(x @ slope) <= 1e-7 * scale * max(x.max(), 1)


def by_enumeration(A: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The best of all points that solve the problem with some coordinates fixed at 0."""
    points = [np.zeros(len(b))]
    for size in range(1, len(b) + 1):
        for free in map(list, itertools.combinations(range(len(b)), size)):
            x = np.zeros(len(b))
            x[free] = np.linalg.solve(A[np.ix_(free, free)], b[free])
            points += [x] if x.min() >= 0 else []
    return min(points, key=lambda x: 0.5 * x @ A @ x - b @ x)


def test_nonnegative_qp_is_the_best_of_all_choices() -> None:
    """Also for gradients that are nearly parallel or opposite, or of very different length."""
    rng = np.random.default_rng(3)
    for n in range(1, 8):
        for change in ("none", "parallel", "opposite", "graded"):
            J = rng.normal(size=(n, n + 2))
            if n > 1 and change in ("parallel", "opposite"):
                J[1] = J[0] * (3 if change == "parallel" else -2) + 1e-3 * J[1]
            if change == "graded":
                J *= np.logspace(0, -3, n)[:, None]
            C = unit(J).cosines
            for i in range(n):
                found, best = nonnegative_qp(C, -C[:, i]), by_enumeration(C, -C[:, i])
                assert found == pytest.approx(best, abs=1e-8), (n, change, i)


@given(gradients())
def test_min_norm_point_is_optimal(J: np.ndarray) -> None:
    """No vertex of the hull lies on the near side of the plane through d: g_k·d ≥ ‖d‖²."""
    part = unit(J)
    assume(len(part))
    w = part.expand(min_norm(part)).numpy()
    assert w.min() >= 0
    assert w.sum() == pytest.approx(1)
    d = J.T @ w
    assert (J @ d)[part.rows].min() >= d @ d - 1e-6


def test_min_norm_of_nothing_is_nothing() -> None:
    part = unit(np.zeros((3, 2)))
    assert part.expand(min_norm(part)).tolist() == [0, 0, 0]


def test_min_norm_of_two_agrees_with_the_way_for_more() -> None:
    """A third gradient that is far off and no help changes nothing."""
    J = np.array([[2.0, 1.0, 0.0], [-1.0, 1.5, 0.0], [50.0, 80.0, 0.0]])
    two, three = min_norm(unit(J[:2])), min_norm(unit(J))
    assert three == pytest.approx([*two, 0.0], abs=1e-7)


@pytest.mark.parametrize("power", [0.4, 0.5, 1.0, 2.0, 5.0])
@given(J=gradients())
def test_equilibrium_solves_its_equation(power: float, J: np.ndarray) -> None:
    part = unit(J)
    assume(len(part))
    # At a power of 5, tasks in full conflict beside others end within a tenth.
    assume(power < 5 or np.linalg.eigvalsh(part.cosines)[0] > 1e-6)
    pull = part.norms ** (power - 1)
    z = equilibrium(part.cosines, pull, power)
    assert (z > 0).all()
    # Opposite gradients: C z is the difference of numbers up to 1/FLOOR larger.
    assert part.cosines @ z == pytest.approx(pull * z**-power, rel=1e-5)


@pytest.mark.parametrize(("power", "precision"), [(0.4, 1e-5), (0.5, 1e-5), (1.0, 1e-5), (5.0, 1e-3)])
def test_equilibrium_of_opposite_or_graded_gradients(power: float, precision: float) -> None:
    """Newton's steps are far from quadratic for long."""
    opposite = np.array([[0.0, 1.0], [0.0, -1.0], [1.0, 0.0]])
    graded = np.random.default_rng(5).normal(size=(6, 9)) * np.logspace(0, -4, 6)[:, None]
    for J in (opposite, graded) if power < 5 else (opposite,):
        part = unit(J)
        pull = part.norms ** (power - 1)
        z = equilibrium(part.cosines, pull, power)
        assert part.cosines @ z == pytest.approx(pull * z**-power, rel=precision)


def test_equilibrium_without_interaction() -> None:
    z = equilibrium(np.eye(3), np.array([1.0, 8.0, 27.0]), 2.0)
    assert z == pytest.approx([1, 2, 3])


def test_only_singular_cosines_are_lifted() -> None:
    regular = np.array([[1.0, 0.5], [0.5, 1.0]])
    assert regularised(regular) is regular
    parallel = regularised(np.ones((2, 2)))
    assert np.linalg.eigvalsh(parallel)[0] == pytest.approx(FLOOR, rel=1e-6)
    below = regularised(np.array([[1.0, 1.0 + 1e-7], [1.0 + 1e-7, 1.0]]))  # as rounding of float32 leaves it
    assert np.linalg.eigvalsh(below)[0] == pytest.approx(FLOOR, rel=1e-6)


def test_zero_gradients_take_no_part() -> None:
    part = unit(np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]]))
    assert part.rows.tolist() == [1]
    assert part.norms == pytest.approx([5])
    assert part.expand(np.array([2.0])).tolist() == [0, 2, 0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="gradients of the tasks are not finite"):
        as_array(torch.tensor([[1.0, bad], [bad, 1.0]]))
