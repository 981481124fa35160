"""SDMGrad: where its iterations end, and what they start from."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


def test_it_needs_two_further_batches(build: Callable, at: Callable) -> None:
    method = build("sdmgrad")
    assert method.needs == {"samples"}
    with pytest.raises(ValueError, match="two further batches"):
        method.coefficients(torch.eye(2), torch.ones(2), at(2))


def test_without_pull_it_comes_to_the_min_norm_point(build: Callable, combine: Callable) -> None:
    J = torch.tensor([[1.0, 0.0, 0.3], [-0.5, 1.0, 0.0], [0.0, 0.2, 1.5]], dtype=torch.float64)
    slow = combine(build("sdmgrad", 3, pull=0.0, lr=0.1, iterations=3000), J)
    assert torch.allclose(slow, combine("mgda", J), atol=1e-6)


def test_much_pull_is_the_mean(combine: Callable[..., Tensor]) -> None:
    J = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(combine("sdmgrad", J, pull=1e6), J.mean(0), atol=1e-5)


def test_products_of_independent_batches_decide(build: Callable, at: Callable) -> None:
    """Not those of the batch whose gradients are combined."""
    cross = torch.tensor([[1.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    method = build("sdmgrad", pull=0.0, lr=0.1, iterations=2000)
    coefficients = method.coefficients(torch.eye(2), torch.ones(2), at(2, cross_gram=cross))
    assert coefficients.tolist() == pytest.approx([0.8, 0.2], abs=1e-6)


def test_absent_tasks_rest(build: Callable, at: Callable) -> None:
    method = build("sdmgrad", 3, lr=0.1)
    cross = torch.tensor([[1.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    method.coefficients(torch.eye(2), torch.ones(2), at(3, rows=(0, 2), cross_gram=cross))
    assert method.w[1] == pytest.approx(1 / 3)
    assert method.w.sum() == pytest.approx(1)
    assert method.w[0] > method.w[2]


def test_noise_without_a_norm_changes_nothing(build: Callable, at: Callable) -> None:
    method = build("sdmgrad")
    coefficients = method.coefficients(torch.eye(2), torch.ones(2), at(2, cross_gram=-torch.eye(2)))
    assert coefficients.tolist() == [0.5, 0.5]
