"""Every balancing method in a plain training loop over a plain module."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from equipoise.models.balancing.loss_balancer import LossBalancer, parameters_of
from equipoise.models.base import SharedRepresentation
from equipoise.platform.errors import StudyError
from equipoise.platform.registry import entries
from equipoise.platform.training.build import build_loss_balancer
from equipoise.platform.training.params import BalancingParams

TASKS = ("a", "b", "c")


class Net(nn.Module):
    """A shared body and a head per task."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 8)
        self.heads = nn.ModuleList(nn.Linear(8, 1) for _ in TASKS)

    def forward(self, x: Tensor) -> list[Tensor]:
        h = torch.tanh(self.body(x))
        return [head(h)[:, 0] for head in self.heads]


def a_net() -> Net:
    torch.manual_seed(3)
    return Net()


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(count, 6, 4, generator=generator)
    return [(row, torch.stack([row[:, 0], 2 - row[:, 0], row[:, 1] ** 2], 1)) for row in x]


def losses_of(net: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    x, y = batch
    return {
        task: ((out - y[:, i]) ** 2).mean() for i, (task, out) in enumerate(zip(TASKS, net(x), strict=True))
    }


def methods() -> list[str | dict]:
    alone = [name for name in entries("weightings") if name != "static"]
    return [
        *alone,
        {"weighting": "static", "weighting_params": {"weights": {"a": 1.0, "b": 0.5, "c": 2.0}}},
        *(f"equal+{name}" for name in entries("aggregators")),
        "uncertainty+pcgrad",
        "auto_lambda+cagrad",
        {"weighting": "dwa", "aggregation": "upgrad", "rescale": "sum_norm"},
        {"aggregation": "pcgrad", "every": 3},
        {"weighting": "auto_lambda", "every": 2},
    ]


def train(balance: LossBalancer, net: nn.Module, optimizer, steps: range) -> None:
    data = batches(9)
    for i in steps:
        balance.step(
            losses_of(net, data[i % 6]),
            optimizer,
            forward=lambda i=i: losses_of(net, data[i % 6]),
            validation=lambda: losses_of(net, data[8]),
            samples=lambda i=i: losses_of(net, data[(i + 3) % 6]),
        )
        if i % 3 == 2:
            balance.end_epoch()


@pytest.mark.parametrize("method", methods(), ids=str)
def test_every_method_trains_and_resumes_bit_for_bit(method) -> None:
    net = a_net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    balance = build_loss_balancer(net, TASKS, method)
    before = sum(losses_of(net, batches(1)[0]).values()).item()
    train(balance, net, optimizer, range(10))
    kept = copy.deepcopy([part.state_dict() for part in (net, optimizer, balance)])
    train(balance, net, optimizer, range(10, 20))
    assert sum(losses_of(net, batches(1)[0]).values()).item() < before
    assert set(balance.weights) == set(TASKS)
    assert all(value == value for value in balance.weights.values())

    again = a_net()
    other = torch.optim.AdamW(again.parameters(), lr=0.01)
    resumed = build_loss_balancer(again, TASKS, method)
    for part, state in zip((again, other, resumed), kept, strict=True):
        part.load_state_dict(state)
    train(resumed, again, other, range(10, 20))
    for mine, theirs in zip(again.parameters(), net.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_gradients_at_a_representation_that_is_given_or_the_model_s_own() -> None:
    """Both ways take the same steps; without a representation the first step says what is missing."""
    x, y = batches(1)[0]
    method = {"aggregation": "mgda", "at": "representation"}
    ends = []
    for own in (False, True):
        net = a_net()
        if own:
            net.representation = SharedRepresentation()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        balance = build_loss_balancer(net, TASKS, method)
        for _ in range(3):
            z = torch.tanh(net.body(x))
            z = net.representation(z) if own else z
            losses = [((head(z)[:, 0] - y[:, i]) ** 2).mean() for i, head in enumerate(net.heads)]
            balance.step(losses, optimizer, **({} if own else {"representation": z}))
        ends.append([p.detach().clone() for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    plain = a_net()
    with pytest.raises(ValueError, match="write at: parameters"):
        build_loss_balancer(plain, TASKS, method).backward(losses_of(plain, (x, y)))


def test_equal_weights_are_the_plain_loop() -> None:
    plain, net = a_net(), a_net()
    reference, optimizer = (torch.optim.SGD(n.parameters(), lr=0.1) for n in (plain, net))
    balance = build_loss_balancer(net, TASKS, "equal")
    for batch in batches(3):
        reference.zero_grad()
        sum(losses_of(plain, batch).values()).backward()
        reference.step()
        balance.step(losses_of(net, batch), optimizer)
    for expected, actual in zip(plain.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-7)


def test_shared_parameters_are_found_from_the_losses() -> None:
    net = a_net()
    balance = build_loss_balancer(net, TASKS, "equal+mgda")
    balance.backward(losses_of(net, batches(1)[0]))
    gradients = balance._balanced.gradients
    assert {id(p) for p in gradients.shared} == {id(p) for p in net.body.parameters()}
    assert {id(p) for p in gradients.task_specific} == {id(p) for p in net.heads.parameters()}


def test_heads_get_their_plain_gradient_and_the_body_the_aggregated_one() -> None:
    net, plain = a_net(), a_net()
    batch = batches(1)[0]
    build_loss_balancer(net, TASKS, "equal+mgda").backward(losses_of(net, batch))
    rows = []
    for i, loss in enumerate(losses_of(plain, batch).values()):
        plain.zero_grad()
        loss.backward(retain_graph=True)
        torch.testing.assert_close(net.heads[i].weight.grad, plain.heads[i].weight.grad)
        rows.append(torch.cat([p.grad.flatten() for p in plain.body.parameters()]))
    shared = torch.cat([p.grad.flatten() for p in net.body.parameters()])
    assert len(rows) == len(TASKS)
    for row in rows:  # the shortest vector of a convex hull: no task's loss rises
        assert row @ shared >= shared @ shared * (1 - 1e-4)


def test_parameters_named_as_shared_are_what_is_aggregated() -> None:
    net = a_net()
    balance = build_loss_balancer(net, TASKS, "equal+pcgrad", shared=[net.body.weight])
    balance.backward({"a": losses_of(net, batches(1)[0])["a"]})
    assert [id(p) for p in balance._balanced.gradients.shared] == [id(net.body.weight)]


def test_a_task_without_labels_takes_no_part() -> None:
    net = a_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    balance = build_loss_balancer(net, TASKS, "uncertainty+pcgrad")
    balance.step(losses_of(net, batches(1)[0]), optimizer)
    learned = balance.weighting.state_dict()["log_variance"]["values"]
    head = net.heads[1].weight.detach().clone()
    losses = losses_of(net, batches(2)[1])
    balance.step([losses["a"], None, losses["c"]], optimizer)
    assert balance.weights["b"] == 0
    assert torch.equal(net.heads[1].weight, head)
    now = balance.weighting.state_dict()["log_variance"]["values"]
    assert now[1] == learned[1]
    assert now[0] != learned[0]


def test_epochs_reach_the_methods_that_learn_from_them() -> None:
    net = a_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    balance = build_loss_balancer(net, TASKS, "dwa")
    for _ in range(2):
        balance.step(losses_of(net, batches(1)[0]), optimizer)
        assert list(balance.weights.values()) == [1, 1, 1]
        means = balance.end_epoch()
    assert list(means) == list(TASKS)
    balance.step(losses_of(net, batches(1)[0]), optimizer)
    assert len(set(balance.weights.values())) == 3
    assert sum(balance.weights.values()) == pytest.approx(3)


def test_two_workers_take_the_step_of_one() -> None:
    """Means over workers are those over all cases, also of a task that one worker has no label of."""
    whole, net = a_net(), a_net()
    batch = batches(1)[0]
    build_loss_balancer(whole, TASKS, "equal").backward(losses_of(whole, batch))
    parts = [(x, y) for x, y in zip(*(t.split(3) for t in batch), strict=True)]

    def mean_over_workers(values: Tensor) -> Tensor:
        """The other worker does what this one does."""
        return values

    balance = build_loss_balancer(net, TASKS, "equal", reduce=mean_over_workers)
    total = None
    for part in parts:
        balance.backward(losses_of(net, part))
        grads = torch.cat([p.grad.flatten().clone() for p in net.parameters()])
        total = grads if total is None else total + grads
    expected = torch.cat([p.grad.flatten() for p in whole.parameters()])
    torch.testing.assert_close(total / 2, expected, rtol=1e-5, atol=1e-6)

    half = build_loss_balancer(net, ("a", "b"), "equal", reduce=lambda values: values / 2)
    x, y = batch
    half.backward({"a": ((net(x)[0] - y[:, 0]) ** 2).mean(), "b": ((net(x)[1] - y[:, 1]) ** 2).mean()})
    torch.testing.assert_close(net.heads[0].weight.grad, whole.heads[0].weight.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("famo", "famo.none needs forward=, a function that returns losses of the same batch"),
        ("auto_lambda", "needs validation=, a function that returns losses of a validation batch"),
        ("equal+sdmgrad", "needs samples=, a function that returns losses of another training batch"),
    ],
)
def test_a_missing_callable_is_named(method: str, message: str) -> None:
    net = a_net()
    balance = build_loss_balancer(net, TASKS, method)
    with pytest.raises(ValueError, match=message):
        balance.step(losses_of(net, batches(1)[0]), torch.optim.SGD(net.parameters(), lr=0.1))
    assert balance.needs[0] in repr(balance)


def test_backward_refuses_what_it_cannot_do() -> None:
    net = a_net()
    losses = losses_of(net, batches(1)[0])
    with pytest.raises(ValueError, match=r"use step\(\)"):
        build_loss_balancer(net, TASKS, "famo").backward(losses)
    with pytest.raises(ValueError, match="needs lr"):
        build_loss_balancer(net, TASKS, "auto_lambda").backward(losses, validation=lambda: losses)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda losses: losses | {"d": losses["a"]}, "no task d; tasks are a, b, c"),
        (lambda losses: list(losses.values())[:2], "2 losses for 3 tasks"),
        (lambda losses: losses | {"a": losses["a"].expand(2)}, "the loss of a has 2 values"),
        (lambda losses: losses | {"a": losses["a"].detach()}, "the loss of a depends on no parameter of Net"),
        (lambda losses: losses | {"a": losses["a"] * torch.nan}, "the loss of a is not finite"),
        (lambda losses: {"a": losses["a"]}, "b, c has no loss in the first step"),
        (lambda losses: dict.fromkeys(losses), "a, b, c has no loss in the first step"),
    ],
)
def test_wrong_losses_are_refused_by_name(change, message: str) -> None:
    net = a_net()
    balance = build_loss_balancer(net, TASKS, "equal")
    with pytest.raises(ValueError, match=message):
        balance.backward(change(losses_of(net, batches(1)[0])))


def test_unknown_names_and_impossible_pairs_are_refused() -> None:
    net = a_net()
    with pytest.raises(StudyError, match="Did you mean 'pcgrad'"):
        build_loss_balancer(net, TASKS, "equal+pcgrd")
    with pytest.raises(StudyError, match=r"famo\+mgda makes no sense"):
        build_loss_balancer(net, TASKS, "famo+mgda")
    with pytest.raises(ValueError, match="main: no loss z"):
        build_loss_balancer(net, TASKS, "auto_lambda", main=["z"])
    with pytest.raises(ValueError, match="at least one loss and distinct names"):
        build_loss_balancer(net, ["a", "a"])
    with pytest.raises(ValueError, match=r"module inside DataParallel \(model.module\)"):
        build_loss_balancer(nn.DataParallel(net), TASKS)


def test_states_of_other_methods_and_tasks_are_refused() -> None:
    state = build_loss_balancer(a_net(), TASKS, "dwa").state_dict()
    with pytest.raises(ValueError, match=r"the state is of method dwa\+none, not equal\+none"):
        build_loss_balancer(a_net(), TASKS, "equal").load_state_dict(state)
    with pytest.raises(ValueError, match="the state is of tasks"):
        build_loss_balancer(a_net(), TASKS[:2], "dwa").load_state_dict(state)


def test_a_list_or_a_dictionary_of_losses_names_the_tasks() -> None:
    net = a_net()
    assert build_loss_balancer(net, [nn.MSELoss(), nn.L1Loss()]).tasks == ("0", "1")
    assert build_loss_balancer(net, {"x": nn.MSELoss(), "y": nn.L1Loss()}).tasks == ("x", "y")
    balance = build_loss_balancer(net, TASKS, {"weighting": "auto_lambda"}, main=["b"])
    assert balance.weighting.primary.tolist() == [0, 1, 0]
    assert balance.name == BalancingParams(weighting="auto_lambda").name


def test_the_representation_says_where_training_stands() -> None:
    net = a_net()
    balance = build_loss_balancer(net, TASKS, "equal+pcgrad")
    assert repr(balance) == "LossBalancer(equal+pcgrad, tasks a, b, c; epoch 0, step 0)"
    balance.backward(losses_of(net, batches(1)[0]))
    assert "step 1; weights a " in repr(balance)


def test_parameters_of_a_loss() -> None:
    w, v = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    assert parameters_of((w * 2).sum()) == {id(w)}
    assert parameters_of((w * v).sum()) == {id(w), id(v)}
    assert parameters_of(w) == {id(w)}
    assert parameters_of(torch.ones(())) == set()
