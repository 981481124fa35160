"""FairGrad: its equation, its closed form, its fairness."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_gains_are_powers_of_coefficients(
    build: Callable, at: Callable, matrices: list, alpha: float
) -> None:
    assert len(matrices) == 25
    for kind, tasks, J in matrices:
        G = J @ J.T
        a = build("fairgrad", tasks, alpha=alpha).coefficients(G, torch.ones(tasks), at(tasks))
        live = G.diagonal() > 0
        assert a[live].min() > 0, (kind, tasks)
        assert a[~live].tolist() == [0] * int((~live).sum()), (kind, tasks)
        if kind != "opposite":  # there no a solves it
            powers = (a[live] ** (-1 / alpha)).tolist()
            assert (G @ a)[live].tolist() == pytest.approx(powers, rel=1e-4), (kind, tasks)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_orthogonal_gradients(combine: Callable[..., Tensor], alpha: float) -> None:
    """n² a = a^(−1/α), so that each gains n a = n^((1−α)/(1+α))."""
    d = combine("fairgrad", torch.diag(torch.tensor([0.01, 4.0], dtype=torch.float64)), alpha=alpha)
    power = (1 - alpha) / (1 + alpha)
    assert d.tolist() == pytest.approx([0.01**power, 4.0**power])


def test_opposite_gradients_cancel(combine: Callable[..., Tensor]) -> None:
    g = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert combine("fairgrad", torch.stack([g, -g])).norm() < 1e-6


def test_more_alpha_is_closer_to_max_min(combine: Callable[..., Tensor]) -> None:
    """Share of the lesser gain in the larger one."""
    J = torch.tensor([[3.0, 0.0, 0.0], [0.5, 1.0, 0.0]], dtype=torch.float64)

    def fairness(alpha: float) -> float:
        gains = J @ combine("fairgrad", J, alpha=alpha)
        return (gains.min() / gains.max()).item()

    assert fairness(0.5) < fairness(1.0) < fairness(4.0)
