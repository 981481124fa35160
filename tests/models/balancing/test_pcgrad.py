"""PCGrad: closed form for two tasks, promises, order."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor


def test_two_tasks_by_hand(combine: Callable[..., Tensor]) -> None:
    """g_1 = (1, 0) loses what points against g_2 = (−2, 1) and the other way round."""
    d = combine("pcgrad", torch.tensor([[1.0, 0.0], [-2.0, 1.0]]))
    assert d.tolist() == pytest.approx([1 - 2 * 2 / 5, 2 / 5 + 1])


def test_without_conflict_it_is_the_sum(combine: Callable[..., Tensor]) -> None:
    J = torch.rand(5, 8, dtype=torch.float64)
    assert combine("pcgrad", J).tolist() == pytest.approx(J.sum(0).tolist())


@given(g=st.lists(st.floats(-10, 10), min_size=6, max_size=6))
def test_two_tasks_never_conflict_with_the_result(combine: Callable[..., Tensor], g: list[float]) -> None:
    J = torch.tensor(g, dtype=torch.float64).view(2, 3)
    assert (J @ combine("pcgrad", J)).min() >= -1e-9


def test_opposite_gradients_cancel(combine: Callable[..., Tensor]) -> None:
    g = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    assert combine("pcgrad", torch.stack([g, -3 * g])).abs().max() < 1e-12


def test_order_is_the_step_s_and_nobody_else_s(combine: Callable, at: Callable) -> None:
    """The same at every worker, whatever the global generator; another one in another step."""
    J = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(1)
    first = combine("pcgrad", J, at(6, 0))
    torch.manual_seed(2)
    assert torch.equal(combine("pcgrad", J, at(6, 0)), first)
    assert any(not torch.allclose(combine("pcgrad", J, at(6, step)), first) for step in range(1, 5))
