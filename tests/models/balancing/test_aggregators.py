"""Properties of every gradient aggregator: scale, state, symmetry, absent tasks, tasks with a zero gradient."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from equipoise.models.balancing.entries import AGGREGATORS

NAMES = [name for name in AGGREGATORS if name != "none"]
STATEFUL = {"gradvac", "nash_mtl", "db_mtl", "excess_mtl", "sdmgrad"}

#: ‖d‖ / ‖Σ g_k‖ for T orthogonal gradients of norm n.
SCALE: dict[str, Callable[[int, float], float]] = {
    "pcgrad": lambda T, n: 1,
    "graddrop": lambda T, n: 1,
    "gradvac": lambda T, n: 1,
    "db_mtl": lambda T, n: 1,
    "fairgrad": lambda T, n: 1 / n,
    "upgrad": lambda T, n: 1 / T,
    "mgda": lambda T, n: 1 / T,
    "conicgrad": lambda T, n: 1 / T,
    "imtl_g": lambda T, n: 1 / T,
    "aligned_mtl": lambda T, n: 1 / T,
    "excess_mtl": lambda T, n: 1 / T,
    "sdmgrad": lambda T, n: 1 / T,
    "cagrad": lambda T, n: 1.4 / 1.16,
    "nash_mtl": lambda T, n: 1 / (n * math.sqrt(T)),
}


@pytest.mark.parametrize("name", NAMES)
def test_scale_on_orthogonal_gradients(combine: Callable, name: str) -> None:
    for tasks, norm in ((2, 1.0), (2, 0.01), (6, 1.0), (6, 0.01)):
        J = norm * torch.eye(tasks, dtype=torch.float64)
        ratio = (combine(name, J).norm() / J.sum(0).norm()).item()
        assert ratio == pytest.approx(SCALE[name](tasks, norm), rel=1e-5), (tasks, norm)


@pytest.mark.parametrize(("tasks", "ratio"), [(2, 0.70), (6, 0.2333)])
def test_scale_of_cagrad_as_in_its_paper(combine: Callable, tasks: int, ratio: float) -> None:
    J = torch.eye(tasks, dtype=torch.float64)
    d = combine("cagrad", J, rescale=0)
    assert (d.norm() / J.sum(0).norm()).item() == pytest.approx(ratio, abs=1e-4)


def test_scale_of_fairgrad_at_alpha_two(combine: Callable) -> None:
    J = 0.01 * torch.eye(2, dtype=torch.float64)
    assert (combine("fairgrad", J, alpha=2.0).norm() / J.sum(0).norm()).item() == pytest.approx(464, abs=0.5)


@pytest.mark.parametrize("name", NAMES)
def test_anything_gives_something_finite(combine: Callable, name: str, matrices: list) -> None:
    assert len(matrices) == 25
    for case in matrices:
        d = combine(name, case.J.float())
        assert d.shape == case.J.shape[1:], case.name
        assert d.isfinite().all(), case.name
    assert combine(name, torch.zeros(3, 5)).tolist() == [0] * 5


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"db_mtl", "graddrop", "sdmgrad"}))
def test_a_silent_task_takes_nothing_from_the_others(combine: Callable, name: str) -> None:
    """Up to the mean over one task more where the rule is a mean."""
    J = torch.tensor([[1.0, 0.5, 0.0], [-0.5, 1.0, 0.0]], dtype=torch.float64)
    with_silent = combine(name, torch.cat([J, torch.zeros(1, 3, dtype=torch.float64)]))
    without = combine(name, J)
    assert torch.cosine_similarity(with_silent, without, dim=0).item() == pytest.approx(1)
    assert with_silent.norm() >= without.norm() * 2 / 3 - 1e-9


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"pcgrad", "gradvac"}))
def test_order_of_tasks_does_not_matter(combine: Callable, name: str, matrices: list) -> None:
    assert len(matrices) == 25
    for case in matrices:
        there, back = combine(name, case.J), combine(name, case.J.flip(0))
        assert torch.allclose(back, there, rtol=1e-5, atol=1e-5), case.name


def steps(combine: Callable, at: Callable, method: Any, first: int, last: int) -> list[Tensor]:
    """Directions of some steps of four tasks; one of them is absent now and then."""
    found = []
    for step in range(first, last):
        J = torch.randn(4, 7, generator=torch.Generator().manual_seed(step))
        rows = (0, 1, 2, 3) if step % 3 else (0, 2, 3)
        found.append(combine(method, J[list(rows)], at(4, step, rows=rows)))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_resumed_equals_uninterrupted(build: Callable, combine: Callable, at: Callable, name: str) -> None:
    """State goes through a file that holds nothing but tensors, numbers and containers."""
    params = {"every": 4} if name == "nash_mtl" else {}
    whole, before, after = (build(name, 4, **params) for _ in range(3))
    expected = steps(combine, at, whole, 0, 8)[5:]
    steps(combine, at, before, 0, 5)
    file = io.BytesIO()
    torch.save(before.state_dict(), file)
    assert bool(before.state_dict()) == (name in STATEFUL)
    steps(combine, at, before, 5, 8)  # what was saved is a copy
    file.seek(0)
    after.load_state_dict(torch.load(file, weights_only=True))
    assert len(expected) == 3
    for resumed, uninterrupted in zip(steps(combine, at, after, 5, 8), expected, strict=True):
        assert torch.equal(resumed, uninterrupted)


@pytest.mark.parametrize("name", sorted(set(NAMES) - STATEFUL))
def test_state_of_another_method_is_refused(build: Callable, name: str) -> None:
    with pytest.raises(ValueError, match="has no state, the checkpoint holds target"):
        build(name).load_state_dict({"target": torch.zeros(2, 2)})


@pytest.mark.parametrize("name", NAMES)
def test_gradients_stay_as_they_were(build: Callable, at: Callable, name: str) -> None:
    method = build(name, 3)
    J = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    given = J.clone() if method.kind == "jacobian" else (J @ J.T).double()
    before = given.clone()
    act = method.direction if method.kind == "jacobian" else method.coefficients
    act(given, torch.ones(3, dtype=torch.float64), at(3, cross_gram=(J @ J.T).double()))
    assert torch.equal(given, before)


def test_unknown_parameters_are_refused() -> None:
    assert len(NAMES) > 10
    for name in NAMES:
        with pytest.raises(ValueError, match="Extra inputs are not permitted"):
            AGGREGATORS[name][1](nonsense=1)
