"""Discrete-time survival against closed forms, the product formula and counted hazards."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from equipoise.models.batch import TaskHead
from equipoise.models.hazards import hazard_nll, hazard_risk, interval_of, survival_of
from equipoise.models.losses import TaskLosses

EDGES = (100.0, 250.0, 600.0)
HEAD = TaskHead("OS", "survival", 4, edges=EDGES)


def draw(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, 4, generator=rng, dtype=torch.float64)
    days = 1 + 800 * torch.rand(n, generator=rng, dtype=torch.float64)
    return logits, days, torch.randint(0, 2, (n,), generator=rng).double()


def product_formula(logits: np.ndarray, day: float, event: float) -> float:
    """Probability of what was seen, interval by interval."""
    hazards = 1 / (1 + np.exp(-logits))
    probability = 1.0
    for k, (start, end) in enumerate(zip((0.0, *EDGES), (*EDGES, math.inf), strict=True)):
        if day < start:
            break
        inside = start <= day < end
        probability *= hazards[k] if inside and event else 1 - hazards[k]
    return probability


def test_a_time_equal_to_an_edge_lies_after_it() -> None:
    days = torch.tensor([1.0, 99.9, 100, 249, 250, 600, 9e9])
    assert interval_of(days, torch.tensor(EDGES)).tolist() == [0, 0, 1, 1, 2, 3, 3]
    assert interval_of(days, torch.tensor([])).tolist() == [0] * 7


def test_it_is_the_product_of_conditional_chances() -> None:
    logits, days, event = draw(60)
    nll = hazard_nll(logits, interval_of(days, torch.tensor(EDGES)), event)
    expected = [
        -math.log(product_formula(*case))
        for case in zip(logits.numpy(), days.tolist(), event.tolist(), strict=True)
    ]
    np.testing.assert_allclose(nll.numpy(), expected, rtol=1e-10)


def test_by_hand() -> None:
    logits = torch.log(torch.tensor([[0.25, 1.0, 3.0]] * 2, dtype=torch.float64))  # hazards 1/5, 1/2, 3/4
    nll = hazard_nll(logits, torch.tensor([1, 1]), torch.tensor([1.0, 0.0]))
    np.testing.assert_allclose(nll.numpy(), [-math.log(0.8 * 0.5), -math.log(0.8 * 0.5)])
    late = hazard_nll(logits, torch.tensor([2, 2]), torch.tensor([1.0, 0.0]))
    np.testing.assert_allclose(late.numpy(), [-math.log(0.8 * 0.5 * 0.75), -math.log(0.8 * 0.5 * 0.25)])
    np.testing.assert_allclose(survival_of(logits)[0].numpy(), [0.8, 0.4, 0.1])
    np.testing.assert_allclose(hazard_risk(logits).numpy(), [[-1.3], [-1.3]])


def test_one_interval_is_binary_cross_entropy_of_the_event() -> None:
    logits, _, event = draw(20)
    nll = hazard_nll(logits[:, :1], torch.zeros(20, dtype=torch.int64), event)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], event, reduction="none")
    torch.testing.assert_close(nll, expected)


def test_all_censored_is_minus_log_survival_and_rises_with_every_hazard() -> None:
    logits, days, _ = draw(30)
    logits.requires_grad_()
    interval = interval_of(days, torch.tensor(EDGES))
    nll = hazard_nll(logits, interval, torch.zeros(30))
    survived = survival_of(logits).gather(1, interval[:, None])[:, 0]
    torch.testing.assert_close(nll, -survived.log())
    (gradient,) = torch.autograd.grad(nll.sum(), logits)
    lived = torch.arange(4) <= interval[:, None]
    assert (gradient[lived] > 0).all()
    assert not gradient[~lived].any()


def test_minimum_is_the_counted_hazards() -> None:
    """Without covariates the estimate of a hazard is events / cases at risk, as in a life table."""
    _, days, event = draw(200, seed=5)
    interval = interval_of(days, torch.tensor(EDGES))
    at_risk = torch.stack([(interval >= k).sum() for k in range(4)])
    events = torch.stack([((interval == k) & (event == 1)).sum() for k in range(4)])
    logits = torch.logit(events / at_risk.double()).requires_grad_()
    hazard_nll(logits.expand(200, 4), interval, event).sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.zeros(4, dtype=torch.float64), atol=1e-10, rtol=0)


def test_gradient_is_the_numerical_one() -> None:
    logits, days, event = draw(7)
    interval = interval_of(days, torch.tensor(EDGES))
    assert torch.autograd.gradcheck(lambda o: hazard_nll(o, interval, event), (logits.requires_grad_(),))
    assert torch.autograd.gradcheck(hazard_risk, (logits,))


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 1e4, -1e4]] * 2, requires_grad=True)
    hazard_nll(logits, torch.tensor([3, 2]), torch.tensor([1.0, 0.0])).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_risk_rises_with_every_hazard() -> None:
    logits, _, _ = draw(10)
    for k in range(4):
        higher = logits.clone()
        higher[:, k] += 0.5
        assert (hazard_risk(higher) > hazard_risk(logits)).all()
    assert ((hazard_risk(logits) <= 0) & (hazard_risk(logits) >= -4)).all()


def test_losses_are_local_sums_over_labelled_cases() -> None:
    logits, days, event = draw(9)
    target = torch.stack([days, event], dim=1)
    mask = torch.tensor([True] * 6 + [False] * 3)
    target[~mask] = 0

    def refuse(rows: torch.Tensor) -> torch.Tensor:
        raise AssertionError("a hazard compares nobody")

    losses = TaskLosses([HEAD], gather=refuse)
    total = losses({"OS": logits}, {"OS": target}, {"OS": mask})
    expected = hazard_nll(logits[:6], interval_of(days[:6], torch.tensor(EDGES)), event[:6]).sum()
    assert total.sums.item() == pytest.approx(expected.item())
    assert total.counts.tolist() == [6]
    parts = [
        losses({"OS": logits[rows]}, {"OS": target[rows]}, {"OS": mask[rows]})
        for rows in (slice(0, 1), slice(1, 9))
    ]
    assert sum(part.sums.item() for part in parts) == pytest.approx(expected.item())


def test_missing_labels_give_no_gradient() -> None:
    logits = torch.randn(2, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target, mask = torch.tensor([[300.0, 1], [0, 0]]), torch.tensor([True, False])
    TaskLosses([HEAD])({"OS": logits}, {"OS": target}, {"OS": mask}).means().sum().backward()
    assert logits.grad is not None
    assert logits.grad[0, :3].all()
    assert not logits.grad[1].any()


def test_a_head_knows_whether_it_compares_patients() -> None:
    assert TaskHead("OS", "survival", 1).compares_patients
    assert not HEAD.compares_patients
    assert not TaskHead("OS", "survival", 1, edges=()).compares_patients
    assert not TaskHead("LF", "regression", 1).compares_patients


@pytest.mark.parametrize(
    ("kind", "outputs", "edges", "message"),
    [
        ("survival", 4, (1.0, 2.0), "a survival head cannot have 4 outputs and 2 edges"),
        ("survival", 3, (2.0, 2.0), "edges are days above 0 in ascending order"),
        ("survival", 2, (0.0,), "edges are days above 0 in ascending order"),
        ("survival", 2, (math.nan,), "edges are days above 0 in ascending order"),
        ("regression", 1, (), "a regression head has no intervals of time"),
    ],
)
def test_edges_that_do_not_fit_are_refused(kind: str, outputs: int, edges: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaskHead("T", kind, outputs, edges=edges)  # type: ignore[arg-type]
