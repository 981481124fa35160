"""The step: gradients per task, who gets what, the exact hypergradient, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from equipoise.models.balancing.balancer import Balancer
from equipoise.models.balancing.entries import EqualParams, NoAggregationParams
from equipoise.models.balancing.equal import Equal
from equipoise.models.balancing.gradients import BLOCK, TaskGradients
from equipoise.models.balancing.none import NoAggregation
from equipoise.models.balancing.protocol import StepContext
from equipoise.models.balancing.record import cosines

TASKS = ("a", "b", "c")


class Two(nn.Module):
    """A shared layer wider than a block of the Gram matrix, and a head per task that all losses may reach."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(70, 70)
        self.heads = nn.ModuleList(nn.Linear(70, 1) for _ in TASKS)
        assert sum(p.numel() for p in self.shared.parameters()) > BLOCK

    def losses(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.shared(x))
        outs = torch.cat([head(h) for head in self.heads], dim=1)
        mixed = outs + 0.1 * outs.sum(1, keepdim=True)  # as tokens of the joint model see each other
        return torch.stack([(mixed[:, k] - k).square().mean() for k in range(len(TASKS))])

    def shared_parameters(self) -> list[nn.Parameter]:
        return list(self.shared.parameters())

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        return list(self.heads[TASKS.index(task)].parameters())


class Fixed:
    """A gram aggregator with coefficients of our choice, which remembers what it was shown."""

    kind = "gram"
    needs = frozenset()

    def __init__(self, coefficients: list[float]) -> None:
        self.chosen = torch.tensor(coefficients, dtype=torch.float64)
        self.seen: list[tuple[Tensor, StepContext]] = []

    def coefficients(self, gram: Tensor, losses: Tensor, context: StepContext) -> Tensor:
        self.seen.append((gram, context))
        return self.chosen[list(context.rows)]

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None: ...


class Weights(Equal):
    """Fixed loss weights that want to know everything."""

    needs = frozenset({"gram", "validation"})
    primary = torch.tensor([1.0, 0.0, 0.0])

    def __init__(self, values: list[float]) -> None:
        self.values = torch.tensor(values, dtype=torch.float64)

    def weights(self, losses: Tensor, context: StepContext) -> Tensor:
        return self.values


class Tools:
    """Validation losses on other data."""

    def __init__(self, model: Two, x: Tensor) -> None:
        self.model, self.x = model, x

    def second_forward_losses(self) -> Tensor:
        raise AssertionError

    def validation_losses(self) -> Tensor:
        return self.model.losses(self.x)

    def sample_losses(self, index: int) -> Tensor:
        raise AssertionError


@pytest.fixture
def setting() -> tuple[Two, Tensor, Tools, StepContext]:
    torch.manual_seed(0)
    model = Two().double()
    x, y = torch.randn(2, 9, 70, dtype=torch.float64)
    context = StepContext(TASKS, torch.ones(3, dtype=torch.bool), epoch=0, step=0, seed=1, lr=0.05)
    return model, x, Tools(model, y), context


def equal() -> Equal:
    return Equal(EqualParams(), ())


def gradients_of(model: Two, x: Tensor) -> list[list[Tensor]]:
    losses = model.losses(x)
    return [list(torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)) for loss in losses]


def test_gram_matrix_is_that_of_the_shared_gradients(setting) -> None:
    model, x, _, _ = setting
    gradients = TaskGradients(model, TASKS)
    jacobian = gradients.collect(model.losses(x), [0, 1, 2])
    expected = torch.stack([torch.cat([g.flatten() for g in task[:2]]) for task in gradients_of(model, x)])
    torch.testing.assert_close(gradients.gram(jacobian), expected @ expected.T)
    cosine = cosines(gradients.gram(jacobian))
    torch.testing.assert_close(cosine.diagonal(), torch.ones(3, dtype=torch.float64))
    assert cosines(torch.zeros(2, 2)).isnan().all()


def test_shared_parameters_get_the_combination_own_ones_the_weighted_sum(setting) -> None:
    model, x, closures, context = setting
    expected = gradients_of(model, x)
    balancer = Balancer(model, TASKS, Weights([2.0, 1.0, 0.5]), Fixed([1.0, 3.0, -1.0]))
    losses = model.losses(x)
    record = balancer.backward(losses, losses.detach(), context, closures)
    for place, (name, parameter) in enumerate(model.named_parameters()):
        factors = [2.0, 3.0, -0.5] if name.startswith("shared") else [2.0, 1.0, 0.5]
        whole = sum(f * task[place] for f, task in zip(factors, expected, strict=True))
        torch.testing.assert_close(parameter.grad, whole, msg=name)
    assert record.weights.tolist() == [2.0, 3.0, -0.5]
    gram, seen = balancer.aggregator.seen[0]
    assert seen.rows == (0, 1, 2)
    w = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(gram, record.gram * w[:, None] * w)


def test_one_pass_and_task_by_task_agree_without_aggregation(setting) -> None:
    model, x, closures, context = setting
    grads = []
    for aggregator in (NoAggregation(NoAggregationParams(), ()), Fixed([1.0, 1.0, 1.0])):
        losses = model.losses(x)
        Balancer(model, TASKS, equal(), aggregator).backward(losses, losses.detach(), context, closures)
        grads.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_a_probe_does_not_change_the_gradient(setting) -> None:
    model, x, closures, context = setting
    grads, records = [], []
    for probe in (False, True):
        losses = model.losses(x)
        balancer = Balancer(model, TASKS, equal(), NoAggregation(NoAggregationParams(), ()))
        records.append(balancer.backward(losses, losses.detach(), context, closures, probe=probe))
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    assert records[0].gram is None
    assert records[1].gram is not None


def test_an_absent_task_neither_counts_nor_is_shown(setting) -> None:
    model, x, closures, context = setting
    context = dataclasses.replace(context, present=torch.tensor([True, False, True]))
    balancer = Balancer(model, TASKS, equal(), Fixed([1.0, 7.0, 2.0]))
    losses = model.losses(x) * torch.tensor([1.0, 0.0, 1.0])
    record = balancer.backward(losses, losses.detach(), context, closures)
    gram, seen = balancer.aggregator.seen[0]
    assert gram.shape == (2, 2)
    assert seen.rows == (0, 2)
    assert record.weights.tolist() == [1.0, 0.0, 2.0]
    assert record.gram[1].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("missing", ["absent", "zero gradient"])
@pytest.mark.parametrize("method", ["cagrad", "fairgrad", "nash_mtl", "upgrad", "imtl_g"])
def test_a_task_without_gradient_changes_nothing_for_the_others(
    setting, build, method: str, missing: str
) -> None:
    """The same shared gradient as of a balancer that has never heard of task c, down to a single task that is left."""
    model, x, closures, context = setting
    for left in (2, 1):
        grads = []
        for case in ("known", "unknown"):
            losses = model.losses(x)
            here = torch.arange(3) < left
            present = here if missing == "absent" or case == "unknown" else torch.ones(3, dtype=torch.bool)
            dead = torch.where(here, losses, losses.detach() * 0 + 0 * losses)
            chosen = dataclasses.replace(context, present=present)
            if case == "unknown" and left == 1:
                balancer = Balancer(model, TASKS, equal(), NoAggregation(NoAggregationParams(), ()))
            else:
                balancer = Balancer(model, TASKS, equal(), build(method, 3))
            balancer.backward(dead, dead.detach(), chosen, closures)
            grads.append([p.grad.clone() for p in model.shared_parameters()])
        for one, other in zip(*grads, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("aggregator", ["none", "pcgrad"])
def test_no_optimiser_moves_what_the_step_says_nothing_about(setting, build, aggregator: str) -> None:
    """Momentum and decoupled weight decay move a parameter with a gradient of zero, and not one without."""
    model, x, closures, context = setting
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    for present in ([True] * 3, [True, False, True]):
        here = torch.tensor(present)
        before = [p.detach().clone() for p in model.heads[1].parameters()]
        h = torch.tanh(model.shared(x))
        each = torch.stack([(head(h) - k).square().mean() for k, head in enumerate(model.heads)])
        losses = each * here
        balancer = Balancer(model, TASKS, equal(), build(aggregator, 3))
        balancer.backward(losses, losses.detach(), dataclasses.replace(context, present=here), closures)
        optimizer.step()
        same = [torch.equal(a, b) for a, b in zip(before, model.heads[1].parameters(), strict=True)]
        assert same == [not present[1]] * 2
        assert all(p.grad is not None for p in model.heads[0].parameters())


def test_hypergradient_is_the_derivative_through_the_inner_step(setting) -> None:
    model, x, closures, context = setting
    weights = torch.tensor([0.7, 0.2, 1.3], dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in model.named_parameters()]
    losses = model.losses(x)
    inner = torch.autograd.grad((weights * losses).sum(), list(model.parameters()), create_graph=True)
    moved = {n: p - context.lr * g for n, p, g in zip(names, model.parameters(), inner, strict=True)}
    validation = torch.func.functional_call(
        Forward(model), {f"model.{n}": p for n, p in moved.items()}, closures.x
    )
    (expected,) = torch.autograd.grad(validation[0], weights)
    before = [p.detach().clone() for p in model.parameters()]
    balancer = Balancer(model, TASKS, Weights([0.7, 0.2, 1.3]), NoAggregation(NoAggregationParams(), ()))
    losses = model.losses(x)
    record = balancer.backward(losses, losses.detach(), context, closures)
    torch.testing.assert_close(record.hypergradient, expected, rtol=1e-10, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


class Forward(nn.Module):
    """``losses`` as ``forward``, for functional calls."""

    def __init__(self, model: Two) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.losses(x)


@pytest.mark.parametrize("coefficients", [[1.0, 1.0, 1.0], [0.1, 0.2, 0.05]])
def test_sum_norm_gives_the_norm_of_the_sum(setting, coefficients: list[float]) -> None:
    model, x, closures, context = setting
    norms = []
    for rescale, chosen in (("none", [1.0, 1.0, 1.0]), ("sum_norm", coefficients)):
        losses = model.losses(x)
        balancer = Balancer(model, TASKS, equal(), Fixed(chosen), rescale=rescale)
        balancer.backward(losses, losses.detach(), context, closures)
        norms.append(torch.cat([p.grad.flatten() for p in model.shared_parameters()]).norm())
    torch.testing.assert_close(norms[0], norms[1])


def test_reduction_sees_every_gradient_once(setting) -> None:
    model, x, closures, context = setting
    reduced: list[int] = []

    def double(values: Tensor) -> Tensor:
        reduced.append(values.numel())
        return values.mul_(2)

    size = sum(p.numel() for p in model.parameters())
    for aggregator, count in (
        (Fixed([1.0, 1.0, 1.0]), 3 * size),
        (NoAggregation(NoAggregationParams(), ()), size),
    ):
        reduced.clear()
        losses = model.losses(x)
        balancer = Balancer(model, TASKS, equal(), aggregator, reduce=double)
        balancer.backward(losses, losses.detach(), context, closures)
        assert reduced == [count]
        expected = [2 * sum(parts) for parts in zip(*gradients_of(model, x), strict=True)]
        for parameter, whole in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, whole)


def test_wrapped_models_and_orphans_are_refused(setting) -> None:
    model, *_ = setting
    wrapped = nn.Sequential(model)  # as DistributedDataParallel, it hides the model's own methods
    with pytest.raises(ValueError, match="must be given bare"):
        TaskGradients(wrapped, TASKS)
    with pytest.raises(ValueError, match=r"neither shared nor a task's own: heads\.2\.weight"):
        TaskGradients(model, TASKS[:2])


def test_a_model_without_shared_parameters_has_nothing_to_balance(setting) -> None:
    model, *_ = setting
    model.shared_parameters = list
    model.shared.requires_grad_(False)
    with pytest.raises(ValueError, match="share no parameter of this Two"):
        Balancer(model, TASKS, equal(), Fixed([1.0, 1.0, 1.0]))
    Balancer(model, TASKS, equal(), NoAggregation(NoAggregationParams(), ()))


def test_generator_is_a_function_of_seed_epoch_and_step() -> None:
    context = StepContext(TASKS, torch.ones(3, dtype=torch.bool), epoch=2, step=5, seed=3)
    draw = torch.rand(4, generator=context.generator())
    assert torch.equal(draw, torch.rand(4, generator=context.generator()))
    for change in ({"seed": 4}, {"epoch": 3}, {"step": 6}):
        other = dataclasses.replace(context, **change).generator()
        assert not torch.equal(draw, torch.rand(4, generator=other))
