"""Auto-Lambda: its hypergradient is the derivative through the inner step, and weights stay positive."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from equipoise.models.balancing.auto_lambda import AutoLambda
from equipoise.models.balancing.balancer import Balancer
from equipoise.models.balancing.entries import AutoLambdaParams, NoAggregationParams
from equipoise.models.balancing.none import NoAggregation
from equipoise.models.balancing.protocol import Feedback, StepContext
from equipoise.models.batch import TaskHead

TASKS = ("MSI", "LF", "ITH")
HEADS = (
    TaskHead("MSI", "binary", 2, main=True),
    TaskHead("LF", "regression", 1),
    TaskHead("ITH", "regression", 1),
)
ALL = StepContext(TASKS, torch.tensor([True] * 3), 0, 0, lr=0.05)


class Quadratic(nn.Module):
    """Three tasks, shared numbers and one own number each: L_k = ½ ‖A_k θ - b_k‖² + ½ (c·θ - own_k)²."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.shared = nn.Parameter(torch.randn(5, generator=generator))
        self.own = nn.ParameterList([nn.Parameter(torch.randn(1, generator=generator)) for _ in TASKS])
        self.double()

    def shared_parameters(self) -> list[nn.Parameter]:
        return [self.shared]

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        return [self.own[TASKS.index(task)]]

    @staticmethod
    def losses(shared: Tensor, own: list[Tensor], seed: int) -> Tensor:
        """Of one batch; another seed is another batch."""
        generator = torch.Generator().manual_seed(seed)
        found = []
        for number in own:
            a = torch.randn(4, 5, generator=generator, dtype=torch.float64)
            b = torch.randn(4, generator=generator, dtype=torch.float64)
            found.append(0.5 * (a @ shared - b).square().sum() + 0.5 * (shared.sum() - number[0]).square())
        return torch.stack(found)


class Validation:
    """The loop's part: losses of a validation batch at the present parameters."""

    def __init__(self, model: Quadratic) -> None:
        self.model = model

    def validation_losses(self) -> Tensor:
        return self.model.losses(self.model.shared, list(self.model.own), seed=2)


@pytest.fixture
def double() -> object:
    """Buffers of the balancer take the default type: float64 here, to compare with autograd to 12 digits."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def through_the_inner_step(model: Quadratic, lambdas: Tensor, primary: Tensor) -> Tensor:
    """Derivative by λ of the validation loss after a step of gradient descent, by autograd through the step."""
    lambdas = lambdas.clone().requires_grad_()
    parameters = [model.shared, *model.own]
    total = (lambdas * model.losses(model.shared, list(model.own), seed=1)).sum()
    slopes = torch.autograd.grad(total, parameters, create_graph=True)
    shared, *own = (p - ALL.lr * g for p, g in zip(parameters, slopes, strict=True))
    loss = (primary * model.losses(shared, own, seed=2)).sum()
    return torch.autograd.grad(loss, lambdas)[0]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("primary", ["main", "all"])
def test_the_hypergradient_is_the_derivative_through_the_inner_step(primary: str) -> None:
    model = Quadratic()
    weighting = AutoLambda(AutoLambdaParams(primary=primary, init=0.3), HEADS)
    assert weighting.primary.tolist() == ([1, 0, 0] if primary == "main" else [1, 1, 1])
    expected = through_the_inner_step(model, weighting.weights(torch.ones(3), ALL), weighting.primary)
    before = [p.detach().clone() for p in model.parameters()]
    balancer = Balancer(model, TASKS, weighting, NoAggregation(NoAggregationParams(), HEADS))
    losses = model.losses(model.shared, list(model.own), seed=1)
    record = balancer.backward(losses, losses.detach(), ALL, Validation(model))
    torch.testing.assert_close(record.hypergradient, expected, rtol=1e-12, atol=1e-14)
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_it_moves_weights_against_the_hypergradient() -> None:
    weighting = AutoLambda(AutoLambdaParams(), HEADS)
    assert weighting.weights(torch.ones(3), ALL).tolist() == [0.1, 0.1, 0.1]
    slope = torch.tensor([-1e-7, 1e-7, 0.0], dtype=torch.float64)
    weighting.learn(torch.ones(3), ALL, Feedback(hypergradient=slope))
    assert weighting.weights(torch.ones(3), ALL).tolist() == pytest.approx([0.1001, 0.0999, 0.1], abs=1e-9)


@pytest.mark.parametrize("positivity", ["clamp", "softplus", "unconstrained"])
def test_weights_stay_positive_under_a_constant_pull(positivity: str) -> None:
    """The published form goes to -0.9 after 10,000 steps of 1e-4; here 1,000 steps of 1e-3."""
    weighting = AutoLambda(AutoLambdaParams(positivity=positivity, lr=1e-3), HEADS)
    assert weighting.weights(torch.ones(3), ALL).tolist() == pytest.approx([0.1] * 3)
    slope = torch.tensor([1.0, -1.0, 1e-7], dtype=torch.float64)
    for _ in range(1000):
        weighting.learn(torch.ones(3), ALL, Feedback(hypergradient=slope))
    down, up, faint = weighting.weights(torch.ones(3), ALL).tolist()
    assert up > 0.2
    assert down == pytest.approx(faint, abs=1e-6)  # the size of a constant pull does not matter
    if positivity == "unconstrained":
        assert down == pytest.approx(-0.9, abs=1e-3)
    else:
        assert 0 <= down < 0.05


def test_a_weight_at_zero_comes_back() -> None:
    weighting = AutoLambda(AutoLambdaParams(init=1e-4, lr=1e-2), HEADS)
    for sign in [1.0] * 3 + [-1.0] * 30:
        weighting.learn(
            torch.ones(3), ALL, Feedback(hypergradient=torch.full((3,), sign, dtype=torch.float64))
        )
    assert (weighting.weights(torch.ones(3), ALL) > 0.05).all()


def test_without_a_main_task_the_first_one_leads() -> None:
    heads = (TaskHead("LF", "regression", 1), TaskHead("ITH", "regression", 1))
    assert AutoLambda(AutoLambdaParams(), heads).primary.tolist() == [1, 0]


def test_state_of_another_positivity_is_refused() -> None:
    state = AutoLambda(AutoLambdaParams(positivity="softplus"), HEADS).state_dict()
    with pytest.raises(ValueError, match="of positivity softplus, not clamp"):
        AutoLambda(AutoLambdaParams(), HEADS).load_state_dict(state)


def test_a_short_training_moves_the_weights() -> None:
    """Adam moves a weight by its learning rate in a step: 0.0256 of 0.1 in 256 steps of the published one."""
    ends = []
    for total in (256, None):
        weighting = AutoLambda(AutoLambdaParams(), HEADS)
        present = torch.ones(len(HEADS), dtype=torch.bool)
        slope = torch.tensor([-1e-5] + [1e-5] * (len(HEADS) - 1), dtype=torch.float64)
        for step in range(256):
            context = StepContext(tuple(h.name for h in HEADS), present, 0, step, total_steps=total)
            weighting.learn(torch.ones(len(HEADS)), context, Feedback(hypergradient=slope))
        ends.append(weighting.weights(torch.ones(len(HEADS)), context).tolist())
    assert ends[0] == pytest.approx([1.1] + [0.0] * (len(HEADS) - 1), abs=0.01)
    assert ends[1][0] == pytest.approx(0.1256, abs=1e-4)
