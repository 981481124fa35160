"""Coefficients kept for several steps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from equipoise.models.balancing.balancer import Balancer
from equipoise.models.balancing.entries import EqualParams
from equipoise.models.balancing.equal import Equal
from equipoise.models.balancing.protocol import StepContext
from equipoise.models.balancing.refresh import Refresh

TASKS = ("task 0", "task 1")


class Pair(nn.Module):
    """Two linear tasks over a shared linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.shared = nn.Linear(3, 3)
        self.heads = nn.ModuleList(nn.Linear(3, 1) for _ in TASKS)

    def losses(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.shared(x))
        return torch.stack([(head(h) - 3 * k).square().mean() for k, head in enumerate(self.heads)])

    def shared_parameters(self) -> list[nn.Parameter]:
        return list(self.shared.parameters())

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        return list(self.heads[TASKS.index(task)].parameters())


def context(step: int, *present: bool) -> StepContext:
    return StepContext(TASKS, torch.tensor(present or (True, True)), epoch=0, step=step, seed=1)


def test_gradients_are_taken_in_every_kth_step_and_coefficients_kept(build: Callable) -> None:
    model = Pair().double()
    balancer = Balancer(model, TASKS, Equal(EqualParams(), ()), build("mgda", 2), every=3)
    taken, kept = [], None
    for step in range(7):
        x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        losses = model.losses(x)
        g = [
            torch.autograd.grad(loss, list(model.parameters()), retain_graph=True, allow_unused=True)
            for loss in losses
        ]
        record = balancer.backward(losses, losses.detach(), context(step), None)  # type: ignore[arg-type]
        taken.append(record.gram is not None)
        kept = record.weights if record.gram is not None else kept
        assert kept is not None
        assert torch.equal(record.weights, kept)
        for place, parameter in enumerate(model.shared_parameters()):
            torch.testing.assert_close(
                parameter.grad, sum(c * one[place] for c, one in zip(kept, g, strict=True))
            )
        for k, head in enumerate(model.heads):
            torch.testing.assert_close(head.weight.grad, g[k][2 + 2 * k])
    assert taken == [True, False, False, True, False, False, True]


def test_a_task_that_was_absent_is_never_given_a_guess(build: Callable) -> None:
    model = Pair().double()
    balancer = Balancer(model, TASKS, Equal(EqualParams(), ()), build("mgda", 2), every=100)
    x = torch.randn(4, 3, dtype=torch.float64)
    seen = []
    for step, present in enumerate(((True, False), (True, True), (False, True), (True, True))):
        losses = model.losses(x) * torch.tensor(present)
        record = balancer.backward(losses, losses.detach(), context(step, *present), None)  # type: ignore[arg-type]
        seen.append(record.gram is not None)
    assert seen == [False, True, False, False]


def test_state_continues_where_it_was(build: Callable) -> None:
    first = Refresh(3)
    assert first.due((0, 1))
    first.keep((0, 1), torch.tensor([0.25, 0.75]))
    assert not first.due((0, 1))
    second = Refresh(3)
    second.load_state_dict(first.state_dict())
    assert [one.due((0,)) for one in (first, second)] == [False, False]
    assert second.coefficients((1, 0)).tolist() == [0.75, 0.25]
    assert [one.due((0,)) for one in (first, second)] == [True, True]
    assert Refresh(1).state_dict() == {}
    with pytest.raises(ValueError, match="1 or more"):
        Refresh(0)
    with pytest.raises(ValueError, match="no coefficients to keep"):
        Balancer(Pair(), TASKS, Equal(EqualParams(), ()), build("graddrop", 2), every=2)
