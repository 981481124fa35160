"""Gradients at the shared representation: where they must agree with those of the parameters, and what they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equipoise.models.balancing.balancer import Balancer
from equipoise.models.balancing.entries import (
    AGGREGATORS,
    WEIGHTINGS,
    AutoLambdaParams,
    EqualParams,
    GradNormParams,
)
from equipoise.models.balancing.equal import Equal
from equipoise.models.balancing.gradnorm import GradNorm
from equipoise.models.balancing.none import NoAggregation
from equipoise.models.balancing.protocol import StepContext
from equipoise.models.base import SharedRepresentation
from equipoise.models.batch import TaskHead
from equipoise.platform.errors import StudyError
from equipoise.platform.training.build import build_balancer
from equipoise.platform.training.params import BalancingParams

TASKS = ("task 0", "task 1", "task 2")
#: Invariant to a common factor of all gradients, which is what one sample through a linear trunk adds.
SCALE_FREE = ("pcgrad", "cagrad", "gradvac", "mgda", "imtl_g", "aligned_mtl", "upgrad", "conicgrad")


class Trunk(nn.Module):
    """A linear trunk, then a head per task with a hidden layer: losses of ``x`` ``[B, 4]``."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.trunk = nn.Linear(4, 6, bias=False)
        self.representation = SharedRepresentation()
        self.heads = nn.ModuleList(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)) for _ in TASKS)

    def losses(self, x: Tensor) -> Tensor:
        z = self.representation(self.trunk(x))
        return torch.stack([(head(z) - 2 * k).square().mean() for k, head in enumerate(self.heads)])

    def shared_parameters(self) -> list[nn.Parameter]:
        return list(self.trunk.parameters())

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        return list(self.heads[TASKS.index(task)].parameters())


def equal() -> Equal:
    return Equal(EqualParams(), ())


def context(*present: bool) -> StepContext:
    return StepContext(TASKS, torch.tensor(present or (True,) * 3), epoch=0, step=0, seed=1)


def grads_of(
    model: nn.Module, balancer: Balancer, x: Tensor, at: StepContext, **more: Any
) -> list[Tensor | None]:
    losses = model.losses(x)  # type: ignore[operator]
    balancer.backward(losses, losses.detach(), at, None, **more)  # type: ignore[arg-type]
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("method", SCALE_FREE)
def test_one_sample_through_a_linear_trunk_gives_the_same_step(build: Callable, method: str) -> None:
    """∂L/∂W = z' xᵀ: all products of gradients at W are ‖x‖² times those at z, so that the coefficients are the
    same.
    """
    model = Trunk().double()
    for x in torch.randn(5, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)):
        steps = [
            grads_of(model, Balancer(model, TASKS, equal(), build(method, 3), at=at), x, context())
            for at in ("parameters", "representation")
        ]
        for one, other in zip(*steps, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_coefficients_are_those_of_the_gradients_at_the_representation(build: Callable) -> None:
    """For several samples they differ from those at the parameters; the step is Σ c_k g_k, heads get their own."""
    model = Trunk().double()
    x = torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    z = model.trunk(x)
    losses = [(head(z) - 2 * k).square().mean() for k, head in enumerate(model.heads)]
    J = torch.stack([torch.autograd.grad(loss, z, retain_graph=True)[0].flatten() for loss in losses])
    c = build("mgda", 3).coefficients(J @ J.T, torch.ones(3), context())
    shared = sum(
        ck * torch.autograd.grad(loss, model.trunk.weight, retain_graph=True)[0]
        for ck, loss in zip(c, losses, strict=True)
    )
    own = torch.autograd.grad(sum(losses), list(model.heads.parameters()))
    got = grads_of(
        model, Balancer(model, TASKS, equal(), build("mgda", 3), at="representation"), x, context()
    )
    torch.testing.assert_close(got[0], shared)
    for one, other in zip(got[1:], own, strict=True):
        torch.testing.assert_close(one, other)


def test_graddrop_drops_at_the_representation(build: Callable) -> None:
    """With the sign mask of the representation the trunk gets Jᵀ d, as the chain rule says; heads the plain sum."""
    model = Trunk().double()
    x = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    z = model.trunk(x)
    losses = [(head(z) - 2 * k).square().mean() for k, head in enumerate(model.heads)]
    J = torch.stack([torch.autograd.grad(loss, z, retain_graph=True)[0].flatten() for loss in losses])
    d = build("graddrop", 3).direction(J, torch.ones(3), context())
    assert not torch.allclose(d, J.sum(0))
    expected = torch.autograd.grad(z, model.trunk.weight, d.view_as(z))[0]
    got = grads_of(
        model, Balancer(model, TASKS, equal(), build("graddrop", 3), at="representation"), x, context()
    )
    torch.testing.assert_close(got[0], expected)


def test_absent_tasks_and_probes(build: Callable) -> None:
    model = Trunk().double()
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    here = context(True, False, True)
    balancer = Balancer(model, TASKS, equal(), build("upgrad", 3), at="representation")
    losses = model.losses(x) * here.present
    record = balancer.backward(losses, losses.detach(), here, None)  # type: ignore[arg-type]
    assert record.weights[1] == 0
    assert record.gram is not None
    assert record.gram[1].tolist() == [0, 0, 0]
    plain = Balancer(model, TASKS, equal(), build("none", 3), at="representation")
    losses = model.losses(x)
    probed = plain.backward(losses, losses.detach(), context(), None, probe=True)  # type: ignore[arg-type]
    assert probed.gram is not None
    torch.testing.assert_close(probed.gram[0, 2], record.gram[0, 2])


def test_products_are_sums_over_the_patients_of_all_workers(build: Callable) -> None:
    """Two workers of two patients each against one of four, by a reduction that knows what the other worker has."""
    model = Trunk().double()
    x = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    alone = Balancer(model, TASKS, equal(), build("fairgrad", 3), at="representation")
    losses = model.losses(x)
    expected = alone.backward(losses, losses.detach(), context(), None)  # type: ignore[arg-type]
    parts = []
    for half in (x[:2], x[2:]):
        part = Balancer(model, TASKS, equal(), build("fairgrad", 3), at="representation")
        share = model.losses(half)
        parts.append(part._products(part._representation_gradients(share, (0, 1, 2), part.kept.take())))  # type: ignore[union-attr]
    assert expected.gram is not None
    torch.testing.assert_close(sum(parts) / 2 / 2, expected.gram)


def test_a_weighting_learns_from_norms_at_the_representation() -> None:
    model = Trunk().double()
    x = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    heads = [TaskHead(task, "regression", 1) for task in TASKS]
    weighting = GradNorm(GradNormParams(lr=0.1), heads)
    balancer = Balancer(
        model, TASKS, weighting, NoAggregation(AGGREGATORS["none"][1](), heads), at="representation"
    )
    losses = model.losses(x)
    record = balancer.backward(losses, losses.detach(), context(), None)  # type: ignore[arg-type]
    balancer.learn(losses.detach(), context(), record, None)  # type: ignore[arg-type]
    norms = record.gram.diagonal().sqrt()  # type: ignore[union-attr]
    assert weighting.learned.values[norms.argmin()] > 1 > weighting.learned.values[norms.argmax()]


def test_what_cannot_work_there_says_why(build: Callable) -> None:
    refused = {
        name
        for registry in (WEIGHTINGS, AGGREGATORS)
        for name, (_, params, _) in registry.items()
        if params.needs_parameters
    }
    assert refused == {"auto_lambda", "db_mtl", "excess_mtl", "sdmgrad"}
    model = Trunk()
    with pytest.raises(ValueError, match="representations of their own"):
        Balancer(model, TASKS, equal(), build("sdmgrad", 3), at="representation")
    assert "representations of their own" in AutoLambdaParams.needs_parameters
    no_graph = Balancer(model, TASKS, equal(), build("mgda", 3), at="representation")
    losses = model.losses(torch.randn(2, 4))
    no_graph.kept.take()  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="write at: parameters"):
        no_graph.backward(losses, losses.detach(), context(), None)  # type: ignore[arg-type]


def test_a_model_without_a_representation_is_refused_by_name_and_a_probe_does_without() -> None:
    heads = [TaskHead(task, "regression", 1) for task in TASKS]
    bare = Trunk()
    del bare.representation
    with pytest.raises(StudyError, match="a Trunk does not say what its tasks share"):
        build_balancer(BalancingParams(aggregation="mgda", at="representation"), bare, heads)
    model = Trunk()
    model.trunk.requires_grad_(False)  # tasks that share nothing that is trained
    plain = build_balancer(BalancingParams(at="representation"), model, heads)
    losses = model.losses(torch.randn(2, 4))
    assert plain.backward(losses, losses.detach(), context(), None, probe=True).gram is None  # type: ignore[arg-type]


def test_a_tensor_can_be_given(build: Callable) -> None:
    model = Trunk().double()
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    balancer = Balancer(model, TASKS, equal(), build("mgda", 3), at="representation")
    first = grads_of(model, balancer, x, context())
    z = model.trunk(x)
    losses = torch.stack([(head(z) - 2 * k).square().mean() for k, head in enumerate(model.heads)])
    balancer.backward(losses, losses.detach(), context(), None, representation=z)  # type: ignore[arg-type]
    for one, parameter in zip(first, model.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad)
