"""GradNorm: gradient norms end where the targets are."""

from __future__ import annotations

import pytest
import torch

from equipoise.models.balancing.entries import GradNormParams
from equipoise.models.balancing.gradnorm import GradNorm
from equipoise.models.balancing.protocol import Feedback, StepContext
from equipoise.models.batch import TaskHead

HEADS = tuple(TaskHead(name, "regression", 1) for name in "abc")
ALL = StepContext(tuple("abc"), torch.tensor([True] * 3), 0, 0)


def gram(*norms: float) -> Feedback:
    return Feedback(gram=torch.diag(torch.tensor(norms, dtype=torch.float64) ** 2))


def test_one_step_by_hand() -> None:
    """Norms 1, 2 and 6 about their mean 3, all tasks as far as at the start: up, up, down by lr, sum kept."""
    weighting, losses = GradNorm(GradNormParams(lr=0.1), HEADS), torch.ones(3, dtype=torch.float64)
    assert weighting.weights(losses, ALL).tolist() == [1, 1, 1]
    weighting.learn(losses, ALL, gram(1, 2, 6))
    moved = [1.1, 1.1, 0.9]
    assert weighting.weights(losses, ALL).tolist() == pytest.approx([3 * m / sum(moved) for m in moved])


def test_equal_rates_end_in_equal_norms() -> None:
    weighting, losses = GradNorm(GradNormParams(lr=0.005), HEADS), torch.tensor([5.0, 1.0, 0.1]).double()
    for _ in range(300):
        weighting.learn(losses, ALL, gram(1, 2, 4))
    inverse = torch.tensor([1.0, 0.5, 0.25]).double()
    torch.testing.assert_close(weighting.weights(losses, ALL), 3 * inverse / inverse.sum(), rtol=0.03, atol=0)


def test_a_task_that_lags_behind_gets_the_larger_norm() -> None:
    """The second task is at its first loss, the others at a quarter: rates 1/2, 2, 1/2 to the power α."""
    weighting = GradNorm(GradNormParams(lr=0.005, alpha=1.0), HEADS)
    weighting.learn(torch.ones(3, dtype=torch.float64), ALL, gram(1, 1, 1))
    losses = torch.tensor([0.25, 1.0, 0.25], dtype=torch.float64)
    for _ in range(300):
        weighting.learn(losses, ALL, gram(1, 1, 1))
    assert weighting.weights(losses, ALL).tolist() == pytest.approx([0.5, 2.0, 0.5], rel=0.03)


def test_weights_of_present_tasks_keep_their_sum() -> None:
    weighting = GradNorm(GradNormParams(lr=0.1), HEADS)
    losses = torch.ones(3, dtype=torch.float64)
    weighting.learn(losses, ALL, gram(1, 2, 6))
    before = weighting.weights(losses, ALL)
    here = StepContext(ALL.tasks, torch.tensor([True, False, True]), 0, 1)
    weighting.learn(torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64), here, gram(1, 0, 6))
    after = weighting.weights(losses, ALL)
    assert after[1] == before[1]
    assert after[0] > before[0]
    assert after.sum().item() == pytest.approx(3)


def test_it_asks_for_the_products_of_gradients() -> None:
    assert GradNorm(GradNormParams(), HEADS).needs == {"gram"}
