"""Every strategy against its formula, on vectors small enough to work out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from equipoise.platform.errors import StudyError
from equipoise.platform.federation.clients.local_training import ClientContext
from equipoise.platform.federation.engine import build_strategy
from equipoise.platform.federation.messages import TrainRequest
from equipoise.platform.federation.params import FederationParams
from equipoise.platform.federation.strategies.local_objectives import contrast
from equipoise.platform.federation.strategies.strategy import AggregatedUpdate, Contribution, Strategy
from equipoise.platform.federation.vector import Schema, Segment

SCHEMA = Schema(
    (
        Segment("w", (2,), "shared", "weight", 0, 2, True),
        Segment("h", (1,), "task:a", "norm", 2, 3, True),
    )
)
START = np.array([1, 2, 3], np.float32)
DELTA = np.array([0.5, -1, 2], np.float32)
ALL = {"shared": 4, "task:a": 4}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.h = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))


def made(strategy: str, local: dict[str, Any] | None = None, **params: Any) -> Strategy:
    local = {"optimizer": "sgd"} | (local or {})
    return build_strategy(FederationParams(strategy=strategy, strategy_params=params, local=local))  # type: ignore[arg-type]


def context_of(
    arrays: dict[str, np.ndarray] | None = None,
    state: dict[str, np.ndarray] | None = None,
    counts: dict[str, int] = ALL,
    at: np.ndarray = START + DELTA,
) -> ClientContext:
    """A client whose model has the weights ``at`` and gradients of 1."""
    model = Model()
    SCHEMA.load(model, at)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    request = TrainRequest(0, "fit", 0, 0.1, 1, None, START, arrays or {})
    return ClientContext(model, SCHEMA, request, {} if state is None else state, counts)


def gradients(context: ClientContext) -> list[float]:
    return [value for p in context.parameters for value in p.grad.tolist()]  # type: ignore[union-attr]


def aggregated(
    delta: np.ndarray = DELTA, steps: tuple[int, ...] = (2, 4), **arrays: np.ndarray
) -> AggregatedUpdate:
    contributions = tuple(
        Contribution(f"c{i}", {"shared": 1.0 + i, "task:a": 1.0}, s) for i, s in enumerate(steps)
    )
    return AggregatedUpdate(delta, contributions, {"shared": 4, "task:a": 2}, arrays)


def steps_of(strategy: Strategy, *deltas: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    state, at = strategy.init_state(SCHEMA), START.astype(np.float64)
    for delta in deltas:
        at = strategy.step(SCHEMA, at, aggregated(delta), state)
    return at, state


def test_fedavg() -> None:
    assert steps_of(made("fedavg"), DELTA)[0] == pytest.approx(START + DELTA)
    assert steps_of(made("fedavg", server_lr=0.5), DELTA)[0] == pytest.approx(START + DELTA / 2)


def test_fedavgm() -> None:
    result, state = steps_of(made("fedavgm", momentum=0.9, server_lr=0.5), DELTA, 2 * DELTA)
    assert state["velocity"] == pytest.approx(0.9 * DELTA + 2 * DELTA)
    assert result == pytest.approx(START + 0.5 * DELTA + 0.5 * 2.9 * DELTA)


def test_fedprox() -> None:
    strategy, context = made("fedprox", mu=0.2), context_of()
    strategy.on_train_start(context)
    strategy.on_before_optimizer_step(context)
    assert gradients(context) == pytest.approx(1 + 0.2 * DELTA)


def test_a_parameter_without_gradient_gets_none() -> None:
    strategy, context = made("fedprox"), context_of()
    context.parameters[0].grad = None
    strategy.on_train_start(context)
    strategy.on_before_optimizer_step(context)
    assert context.parameters[0].grad is None


def test_scaffold() -> None:
    control, client_control = np.array([1, 0, 2], np.float32), np.array([0.5, 1, 0], np.float32)
    strategy, state = made("scaffold", server_lr=0.5), {"control": client_control.copy()}
    context = context_of({"control": control}, state)
    strategy.on_train_start(context)
    strategy.on_before_optimizer_step(context)
    assert gradients(context) == pytest.approx(1 + control - client_control)
    context.steps = 4
    sent = strategy.on_train_end(context, DELTA)["control_change"]
    assert state["control"] == pytest.approx(client_control - control - DELTA / (4 * 0.1), rel=1e-5)
    assert sent == pytest.approx(state["control"] - client_control, rel=1e-5)
    server = {"control": control.astype(np.float64)}
    change = np.array([1.0, 2.0, 3.0])  # a mean over all clients that could
    result = strategy.step(SCHEMA, START, aggregated(control_change=change), server)
    assert result == pytest.approx(START + 0.5 * DELTA)
    assert server["control"] == pytest.approx(control + change)


def test_scaffold_leaves_alone_what_a_client_does_not_train() -> None:
    strategy = made("scaffold")
    context = context_of({"control": np.ones(3, np.float32)}, counts={"shared": 4, "task:a": 0})
    strategy.on_train_start(context)
    context.steps = 1
    sent = strategy.on_train_end(context, np.array([1, 1, 0], np.float32))["control_change"]
    assert sent == pytest.approx([-11, -11, 0])


def test_scaffold_as_in_flamby() -> None:
    """c grows by (w − w_last) / (K η) at the start of a round, and −c corrects gradients."""
    strategy, state = made("scaffold", variant="flamby"), dict[str, np.ndarray]()
    context = context_of(state=state)
    strategy.on_train_start(context)
    strategy.on_before_optimizer_step(context)
    assert gradients(context) == [1, 1, 1]
    context.steps = 5
    assert strategy.on_train_end(context, DELTA) == {}
    again = context_of(state=state)
    strategy.on_train_start(again)
    strategy.on_before_optimizer_step(again)
    expected = (START - (START + DELTA)) / (5 * 0.1)
    assert state["control"] == pytest.approx(expected, rel=1e-5)
    assert gradients(again) == pytest.approx(1 - expected, rel=1e-5)
    with pytest.raises(ValueError, match="server_lr"):
        made("scaffold", variant="flamby", server_lr=0.5)


@pytest.mark.parametrize("name", ["fedadam", "fedyogi", "fedadagrad"])
@pytest.mark.parametrize("start", [None, 0.0, 0.25])
def test_adaptive_servers(name: str, start: float | None) -> None:
    """The second moment starts from tau squared, or from what the study says."""
    beta1, beta2, tau, lr = 0.9, 0.99, 0.3, 0.1
    m, v, expected = np.zeros(3), np.full(3, 0.09 if start is None else start), START.astype(float)
    for delta in (DELTA.astype(float), -0.5 * DELTA.astype(float)):
        square = delta**2
        m = beta1 * m + (1 - beta1) * delta
        v = {
            "fedadam": beta2 * v + (1 - beta2) * square,
            "fedyogi": v - (1 - beta2) * square * np.sign(v - square),
            "fedadagrad": v + square,
        }[name]
        expected = expected + lr * m / (np.sqrt(v) + tau)
    strategy = made(name, server_lr=lr, beta1=beta1, beta2=beta2, tau=tau, initial_second_moment=start)
    assert steps_of(strategy, DELTA, np.float32(-0.5) * DELTA)[0] == pytest.approx(expected)


def test_fednova() -> None:
    from equipoise.platform.federation.messages import ClientUpdate

    strategy = made("fednova")
    update = ClientUpdate("", 0, "c", "", DELTA, {}, 1, 4)
    assert strategy.update_scale(update) == 1 / 4
    # weights 1 and 2 in the shared group, 1 and 1 in the task's, for 2 and 4 steps
    result = strategy.step(SCHEMA, START, aggregated(), {})
    assert result == pytest.approx(START + DELTA * [10 / 3, 10 / 3, 3])
    rho = 0.5
    heavy = made("fednova", {"momentum": rho})
    whole = sum((1 - rho**k) / (1 - rho) for k in range(1, 5))  # what four steps with momentum add up to
    assert heavy.update_scale(update) == pytest.approx(1 / whole)


def test_feddyn() -> None:
    strategy, state = made("feddyn", alpha=0.2), {"gradient": np.array([1, 1, 1], np.float32)}
    context = context_of(state=state)
    strategy.on_train_start(context)
    strategy.on_before_optimizer_step(context)
    assert gradients(context) == pytest.approx(0.2 * DELTA)
    strategy.on_train_end(context, DELTA)
    assert state["gradient"] == pytest.approx(1 - 0.2 * DELTA)
    server = strategy.init_state(SCHEMA)
    result = strategy.step(SCHEMA, START, aggregated(), server)
    share = np.array([0.5, 0.5, 1.0])  # two of four clients, two of two
    assert server["drift"] == pytest.approx(-0.2 * share * DELTA)
    assert result == pytest.approx(START + DELTA + share * DELTA)


def test_moon() -> None:
    z, server, last = (torch.tensor([row]) for row in ([1.0, 0.0], [1.0, 0.0], [0.0, 1.0]))
    assert float(contrast(z, server, last, 0.5)) == pytest.approx(math.log(1 + math.exp(-2)))
    assert float(contrast(z, last, server, 0.5)) == pytest.approx(math.log(1 + math.exp(2)))
    assert float(contrast(z, last, last, 0.5)) == pytest.approx(math.log(2))
    with pytest.raises(StudyError, match="no method latents"):
        made("moon").on_train_start(context_of())


def test_moon_says_that_no_parameter_changes_the_inputs_of_heads() -> None:
    moon, context = made("moon"), context_of(state={"last": START})
    table = torch.ones(4, 2)
    type(context.model).latents = lambda self, batch: {"a": batch}  # type: ignore[attr-defined]
    try:
        context.batch = lambda: table  # type: ignore[method-assign, assignment]
        moon.on_train_start(context)
        with pytest.raises(StudyError, match="no parameter changes them"):
            moon.on_before_optimizer_step(context)
    finally:
        del type(context.model).latents  # type: ignore[attr-defined]


def test_fedbn_and_fedper_keep_their_part() -> None:
    bn = made("fedbn")
    assert bn.personal_mask(SCHEMA).tolist() == [False, False, True]  # type: ignore[union-attr]
    per = made("fedper", personal=["re:^w"])
    assert per.personal_mask(SCHEMA).tolist() == [True, True, False]  # type: ignore[union-attr]
    state = {"own": np.array([7, 8], np.float32)}
    assert per.personal_weights(SCHEMA, START, state).tolist() == [7, 8, 3]
    assert per.personal_weights(SCHEMA, START, {}) is START
    with pytest.raises(StudyError, match="nothing of this model"):
        made("fedper", personal=["modality"]).personal_mask(SCHEMA)


def test_ditto_and_fine_tuning_predict_with_the_clients_own_model() -> None:
    for name in ("ditto", "finetune"):
        strategy = made(name)
        assert strategy.personal_weights(SCHEMA, START, {"model": DELTA}) is DELTA
        assert strategy.personal_weights(SCHEMA, START, {}) is START
    personal_strategy = made("ditto", lam=0.3).personal_strategy
    assert personal_strategy is not None
    context = context_of()
    personal_strategy.on_train_start(context)
    personal_strategy.on_before_optimizer_step(context)
    assert gradients(context) == pytest.approx(1 + 0.3 * DELTA)
    assert made("finetune", steps=7).personal_steps == 7


def test_fedbuff_counts_old_updates_less() -> None:
    strategy = made("fedbuff", staleness=0.5)
    assert [strategy.staleness(s) for s in (0, 3, 8)] == pytest.approx([1, 1 / 2, 1 / 3])  # type: ignore[attr-defined]


def test_combinations_that_are_not_defined_are_refused() -> None:
    for strategy in ("scaffold", "fednova"):
        with pytest.raises(ValueError, match="optimizer: sgd"):
            made(strategy, {"optimizer": "adamw"})
    with pytest.raises(ValueError, match="momentum"):
        made("scaffold", {"momentum": 0.9})
    with pytest.raises(ValueError, match="cyclic"):
        FederationParams(strategy="cyclic", server_aggregation="median")
    with pytest.raises(ValueError, match="fedbuff"):
        FederationParams(strategy="fedbuff", clock={"deadline": 2})  # type: ignore[arg-type]


def test_who_took_part_does_not_change_a_step_that_must_hide_it() -> None:
    """FedDyn's drift grows by the share of clients that took part; with privacy of clients by the expected one."""
    state, expected = made("feddyn").init_state(SCHEMA), replace(aggregated(), expected_share=0.4)
    alone = replace(expected, contributions=())
    results = [
        made("feddyn").step(SCHEMA, START.astype(np.float64), a, dict(state)) for a in (expected, alone)
    ]
    np.testing.assert_array_equal(*results)
    assert {a.share(g) for a in (expected, alone) for g in ("shared", "task:a")} == {0.4}
