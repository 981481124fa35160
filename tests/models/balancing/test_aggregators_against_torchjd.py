"""Aggregators against torchjd 0.18 on gradients of 2 to 6 tasks, with factors where conventions differ.

torchjd's CAGrad, NashMTL and UPGrad need solvers that are not installed; their tests check optimality instead.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchjd.aggregation as oracle
from torch import Tensor

Combine = Callable[..., Tensor]


def close(ours: Tensor, theirs: Tensor, J: Tensor, tolerance: float = 1e-7) -> bool:
    """Up to rounding, in units of the largest gradient."""
    return bool((ours - theirs).norm() <= tolerance * J.norm(dim=1).max())


def same_numbers(context: object) -> None:
    """torchjd draws from the global generator; give it the step's."""
    torch.manual_seed(context.generator().initial_seed())  # type: ignore[attr-defined]


def test_pcgrad(combine: Combine, at: Callable, matrices: list) -> None:
    assert len(matrices) == 25
    for case in matrices:
        ours = combine("pcgrad", case.J)
        same_numbers(at(case.tasks))
        assert close(ours, oracle.PCGrad()(case.J), case.J), case.name


def test_gradvac(build: Callable, combine: Combine, at: Callable, matrices: list) -> None:
    """Over several steps: targets too, but where a gradient is 0 or becomes it: torchjd then counts a cosine of 0,
    or of rounding, and here it is none."""
    assert len(matrices) == 25
    for kind, tasks, J in matrices:
        ours, theirs = build("gradvac", tasks), oracle.GradVac(eps=1e-14)
        for step in range(1 if kind in ("zero", "opposite") else 4):
            turned = J + 0.3 * step * J.flip(1)
            found = combine(ours, turned, at(tasks, step))
            same_numbers(at(tasks, step))
            assert close(found, theirs(turned), turned, 1e-6), (kind, tasks, step)


@pytest.mark.parametrize("leak", [0.0, 0.2])
def test_graddrop(combine: Combine, at: Callable, matrices: list, leak: float) -> None:
    assert len(matrices) == 25
    for case in matrices:
        J = case.J.float().repeat(1, 50)
        ours = combine("graddrop", J, leak=leak)
        same_numbers(at(case.tasks))
        theirs = oracle.GradDrop(leak=torch.full((case.tasks,), leak) if leak else None)
        assert close(ours, theirs(J), J, 1e-5), case.name


def test_mgda(combine: Combine, matrices: list) -> None:
    """torchjd's iterations come from above and stop short of the shortest vector.

    With a zero gradient its result is 0; here it is that of the other tasks.
    """
    assert len(matrices) == 25
    for case in matrices:
        J, theirs = case.J, oracle.MGDA(epsilon=1e-9, max_iters=1000)
        if case.kind == "zero":
            assert theirs(J).norm() < 1e-3, case.name
            J = J[:-1]
        ours, expected = combine("mgda", J), theirs(J)
        assert ours.norm() <= expected.norm() + 1e-7, case.name
        assert close(ours, expected, J, 0.03), case.name


def test_imtl_g(combine: Combine, matrices: list) -> None:
    """Parallel gradients: the same direction, another length, see the class."""
    assert len(matrices) == 25
    for kind, tasks, J in matrices:
        ours, theirs = combine("imtl_g", J), oracle.IMTLG()(J)
        if kind == "parallel":
            cosine = torch.cosine_similarity(ours, theirs, dim=0).abs().item()
            assert cosine == pytest.approx(1, abs=1e-6), (kind, tasks)
        elif kind == "opposite":
            # Nothing is equally long along a gradient and its opposite but 0; torchjd comes to noise over noise
            # or to what is left of the others.
            assert (J[:2] @ ours).norm() < 1e-6 * J.norm() ** 2, (kind, tasks)
        else:
            live = J[J.norm(dim=1) > 0]
            alpha = torch.linalg.solve(live @ live.T, live.norm(dim=1))
            factor = alpha.sum() / alpha.abs().sum() if alpha.sum() <= 0.1 * alpha.abs().sum() else 1.0
            assert close(ours, factor * theirs, J, 1e-6), (kind, tasks)


@pytest.mark.parametrize("scale", ["min", "median", "rmse"])
def test_aligned_mtl(combine: Combine, matrices: list, scale: str) -> None:
    assert len(matrices) == 25
    for case in matrices:
        theirs = oracle.AlignedMTL(scale_mode=scale)(case.J)
        assert close(combine("aligned_mtl", case.J, scale=scale), theirs, case.J), case.name


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_fairgrad(combine: Combine, matrices: list, alpha: float) -> None:
    """Where there is a solution; SciPy divides by 0 on its way if a gradient is."""
    solvable = [(kind, tasks, _solvable(kind, J)) for kind, tasks, J in matrices]
    assert len(solvable) == 25
    for kind, tasks, J in solvable:
        ours, theirs = combine("fairgrad", J, alpha=alpha), oracle.FairGrad(alpha=alpha)(J)
        assert close(ours, theirs, theirs[None], 1e-3), (kind, tasks)


def _solvable(kind: str, J: Tensor) -> Tensor:
    """Without the gradient that has no solution; regular ones where none is left."""
    if kind in ("zero", "graded"):
        J = J[: max(2, len(J) - 1)]
    if kind == "opposite":
        J = J[torch.tensor([0, *range(2, len(J))])]
    if len(J) < 2 or (J.norm(dim=1) < 0.05).any():
        return torch.eye(3, dtype=torch.float64) + 0.1
    return J


def test_excess_mtl(build: Callable, combine: Combine, at: Callable, matrices: list) -> None:
    """A zero gradient has no baseline to be measured by; torchjd divides by its epsilon."""
    assert len(matrices) == 25
    for kind, tasks, whole in matrices:
        J = whole[:-1] if kind == "zero" and tasks > 2 else whole
        if (J.norm(dim=1) == 0).any():
            J = J + 1
        ours, theirs = build("excess_mtl", len(J), step_size=0.3), oracle.ExcessMTL(0.3, n_warmup_steps=1)
        for step in range(4):
            turned = J + 0.3 * step * J.flip(1)
            found = combine(ours, turned, at(len(J), step))
            assert close(found, theirs(turned), turned, 1e-3), (kind, tasks, step)


def test_sdmgrad(build: Callable, at: Callable, matrices: list) -> None:
    """Large gradients: torchjd adds 1e-8 to the scale, and steps of 10 with momentum do not forgive."""
    assert len(matrices) == 25
    for kind, tasks, J in matrices:
        ours, theirs = build("sdmgrad", tasks), oracle.SDMGradWeighting()
        for step in range(3):
            cross = 1e6 * J @ (J + 0.2 * (step + 1) * J.flip(1)).T
            found = ours.coefficients(J @ J.T, torch.ones(tasks), at(tasks, step, cross_gram=cross))
            assert torch.allclose(found, theirs(cross), atol=1e-5), (kind, tasks, step)
