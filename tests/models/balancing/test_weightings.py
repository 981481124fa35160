"""Properties of every loss weighting: finite weights, absent tasks unchanged, resumed equals uninterrupted."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from equipoise.models.balancing.entries import AGGREGATORS, WEIGHTINGS
from equipoise.models.balancing.protocol import Feedback, LossWeighting, StepContext
from equipoise.models.batch import TaskHead

HEADS = (
    TaskHead("MSI", "binary", 2, main=True),
    TaskHead("LF", "regression", 1),
    TaskHead("ITH", "regression", 1),
)
PARAMS: dict[str, dict[str, Any]] = {
    "static": {"weights": {"MSI": 1.0, "LF": 0.25, "ITH": 0.0}},
    "stch": {"warmup_epochs": 1},
}
CASES = [(name, PARAMS.get(name, {})) for name in WEIGHTINGS] + [
    ("auto_lambda", {"positivity": "softplus", "lr": 0.1}),
    ("auto_lambda", {"positivity": "unconstrained", "lr": 0.1, "primary": "all"}),
    ("auto_lambda", {"lr": 0.1}),
    ("stch", {"warmup_epochs": 1, "log": False, "mu": 0.3}),
]
IDS = [f"{name}-{'-'.join(map(str, params.values()))}".rstrip("-")[:40] for name, params in CASES]
STATEFUL = {"uncertainty", "dwa", "autoscale", "auto_lambda", "gradnorm", "imtl_l", "stch", "famo"}
ALL = torch.tensor([True, True, True])


def made(name: str, params: dict[str, Any]) -> LossWeighting:
    """The weighting as a study would get it."""
    _, model, target = WEIGHTINGS[name]
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)(model(**params), HEADS)


def run(weighting: LossWeighting, steps: range, present: Tensor = ALL, *, size: float = 1.0) -> Tensor:
    """Some steps of four to an epoch with feedback that depends on the step only; weights of all of them."""
    found = []
    for number in steps:
        generator = torch.Generator().manual_seed(number)
        losses = size * torch.rand(3, generator=generator, dtype=torch.float64) * present
        after = size * torch.rand(3, generator=generator, dtype=torch.float64) * present
        gradients = size * torch.randn(3, 5, generator=generator, dtype=torch.float64) * present[:, None]
        hyper = 1e-4 * torch.randn(3, generator=generator, dtype=torch.float64) * present
        context = StepContext(tuple(h.name for h in HEADS), present, number // 4, number % 4, seed=3)
        weights = weighting.weights(losses, context)
        assert weights.shape == (3,)
        assert weights.dtype == torch.float64
        assert not weights.requires_grad
        weighting.learn(losses, context, Feedback(gradients @ gradients.T, hyper, after))
        found.append(torch.where(present, weights, torch.nan))
        if number % 4 == 3:
            weighting.on_epoch_end(torch.where(present, losses, torch.nan))
    return torch.stack(found)


@pytest.mark.parametrize(("name", "params"), CASES, ids=IDS)
def test_stopped_and_resumed_equals_uninterrupted(name: str, params: dict[str, Any]) -> None:
    through = run(made(name, params), range(26))
    first = made(name, params)
    run(first, range(14))
    state = first.state_dict()
    run(first, range(14, 18))  # must not reach into the state that was taken
    second = made(name, params)
    second.load_state_dict(state)
    assert torch.equal(run(second, range(14, 26)), through[14:])
    assert bool(state) == (name in STATEFUL)


@pytest.mark.parametrize("name", sorted(STATEFUL))
def test_what_has_state_shows_it_in_its_weights(name: str) -> None:
    fresh, used = made(name, PARAMS.get(name, {})), made(name, PARAMS.get(name, {}))
    run(used, range(12))
    assert not torch.equal(run(fresh, range(12, 13)), run(used, range(12, 13)))


@pytest.mark.parametrize(("name", "params"), CASES, ids=IDS)
def test_an_absent_task_neither_moves_nor_is_moved(name: str, params: dict[str, Any]) -> None:
    """After steps without ITH, its own numbers stand where they stood; MSI and LF learn as if it did not exist."""
    two = torch.tensor([True, True, False])
    weighting = made(name, params)
    run(weighting, range(8))
    before = _own_number(weighting, 2)
    seen = run(weighting, range(8, 24), two)
    assert torch.isfinite(seen[:, :2]).all()
    assert _own_number(weighting, 2) == before

    other = made(name, params)  # the same, but the absent task's loss is nonsense
    run(other, range(8))
    for number in range(8, 24):
        context = StepContext(tuple(h.name for h in HEADS), two, number // 4, number % 4, seed=3)
        generator = torch.Generator().manual_seed(number)
        losses = torch.rand(3, generator=generator, dtype=torch.float64)
        after = torch.rand(3, generator=generator, dtype=torch.float64)
        gradients = torch.randn(3, 5, generator=generator, dtype=torch.float64) * two[:, None]
        hyper = 1e-4 * torch.randn(3, generator=generator, dtype=torch.float64) * two
        losses[2], after[2] = 1e3, 1e-3
        assert torch.equal(other.weights(losses, context)[:2], seen[number - 8, :2])
        other.learn(losses, context, Feedback(gradients @ gradients.T, hyper, after))
        if number % 4 == 3:
            other.on_epoch_end(torch.where(two, losses, torch.nan))


def _own_number(weighting: LossWeighting, task: int) -> list[float]:
    """What a weighting has stored for one task: entries of every [T] tensor and of its optimiser."""
    found: list[float] = []
    for value in weighting.state_dict().values():
        if isinstance(value, dict):
            averages = value["optimiser"]["state"].get(task, {})
            found += [value["values"][task].item(), *(float(averages[k]) for k in sorted(averages))]
        elif isinstance(value, Tensor):
            found += value[..., task].flatten().tolist()
    return found


@pytest.mark.parametrize(("name", "params"), CASES, ids=IDS)
@settings(max_examples=8, deadline=None)
@given(
    size=st.sampled_from([1e-6, 1e-2, 1.0, 30.0, 1e4]),
    present=st.lists(st.booleans(), min_size=3, max_size=3),
    start=st.integers(0, 1000),
)
def test_weights_are_finite_and_only_where_asked_for_negative(
    name: str, params: dict[str, Any], size: float, present: list[bool], start: int
) -> None:
    here = torch.tensor(present)
    weights = run(made(name, params), range(4 * start, 4 * start + 12), here, size=size)[:, here]
    assert torch.isfinite(weights).all()
    if params.get("positivity") != "unconstrained":
        assert (weights >= 0).all()


@pytest.mark.parametrize("name", sorted(WEIGHTINGS))
def test_a_loss_of_zero_is_survived(name: str) -> None:
    weighting = made(name, PARAMS.get(name, {}))
    context = StepContext(tuple(h.name for h in HEADS), ALL, 0, 0)
    losses = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    for epoch in range(3):
        context = StepContext(context.tasks, ALL, epoch, 0)
        assert torch.isfinite(weighting.weights(losses, context)).all()
        weighting.learn(
            losses, context, Feedback(torch.zeros(3, 3).double(), torch.zeros(3).double(), losses)
        )
        weighting.on_epoch_end(losses)


def test_state_of_other_tasks_or_methods_is_refused() -> None:
    state = made("uncertainty", {}).state_dict()
    with pytest.raises(ValueError, match="has no state, the checkpoint holds log_variance"):
        made("gls", {}).load_state_dict(state)
    state["log_variance"]["values"] = torch.zeros(2)
    with pytest.raises(ValueError, match="weights of 2 tasks, not 3"):
        made("uncertainty", {}).load_state_dict(state)


@pytest.mark.parametrize("name", ["gls", "famo", "stch"])
def test_logarithms_of_negative_losses_are_refused(name: str) -> None:
    context = StepContext(tuple(h.name for h in HEADS), ALL, 0, 0)
    with pytest.raises(ValueError, match="losses of at least 0, not -0.5"):
        made(name, {}).weights(torch.tensor([1.0, -0.5, 1.0]), context)


def test_every_method_has_a_row_in_the_docs(root: Path) -> None:
    text = (root / "docs" / "balancing.md").read_text(encoding="utf-8")
    assert [name for name in (*WEIGHTINGS, *AGGREGATORS) if f"\n| `{name}` |" not in text] == []
