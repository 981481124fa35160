"""Gradients of batches that compare with all patients, against the full likelihood and a loop over its definition."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from equipoise.models.batch import TaskHead
from equipoise.models.losses import TaskLosses
from equipoise.models.score_memory import ScoreMemory

N = 53


def patients(seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Targets with ties, masks with gaps and cohorts of N patients."""
    rng = torch.Generator().manual_seed(seed)
    time, event = torch.randint(1, 12, (N,), generator=rng), torch.rand(N, generator=rng) < 0.4
    mask = torch.rand(N, generator=rng) < 0.8
    target = torch.stack([time, event], dim=1).float() * mask[:, None]
    return {"OS": target}, {"OS": mask}, torch.randint(0, 3, (N,), generator=rng)


def remembering(head: TaskHead, steps: int, scores: Tensor, ties: str = "efron") -> TaskLosses:
    targets, mask, cohort = patients()
    memory = ScoreMemory(steps, ties=ties)  # type: ignore[arg-type]
    memory.start([head], {"OS": scores[:, None]}, targets, mask, cohort)
    return TaskLosses([head], ties=ties, memory=memory)  # type: ignore[arg-type]


@pytest.mark.parametrize("ties", ["efron", "breslow"])
@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("size", [1, 7, 32, N])
def test_the_mean_gradient_over_batches_is_that_of_all_patients(
    ties: str, stratified: bool, size: int
) -> None:
    head = TaskHead("OS", "survival", 1, stratified=stratified)
    targets, mask, cohort = patients()
    x = torch.randn(N, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights = torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    whole = TaskLosses([head], ties=ties)({"OS": (x @ weights)[:, None]}, targets, mask, cohort)  # type: ignore[arg-type]
    (expected,) = torch.autograd.grad(whole.means().sum(), weights)

    steps = math.ceil(N / size)
    losses = remembering(head, steps, (x @ weights).detach(), ties)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    gradients = []
    for rows in order.split(size):
        part = [{name: values[rows] for name, values in parts.items()} for parts in (targets, mask)]
        found = losses({"OS": (x[rows] @ weights)[:, None]}, *part, cohort[rows], rows)
        if bool(mask["OS"][rows].any()):
            torch.testing.assert_close(found.means(), whole.means())  # frozen weights: all scores are known
        gradients.append(torch.autograd.grad(found.means().sum(), weights)[0])
    assert len(gradients) == steps
    torch.testing.assert_close(torch.stack(gradients).mean(dim=0), expected, rtol=1e-10, atol=1e-12)


def test_gradients_are_the_definition_for_events_and_for_the_censored() -> None:
    head = TaskHead("OS", "survival", 1)
    targets, mask, cohort = patients()
    scores = torch.randn(N, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    losses = remembering(head, steps=1, scores=scores, ties="breslow")
    rows = torch.tensor([3, 10, 21, 22, 40, 41])
    risk = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).requires_grad_()
    part = [{name: values[rows] for name, values in parts.items()} for parts in (targets, mask)]
    sums = losses({"OS": risk[:, None]}, *part, cohort[rows], rows).sums
    sums.sum().backward()
    now = scores.clone()
    now[rows] = risk.detach()
    time, event = targets["OS"].double().unbind(dim=1)
    known = [i for i in range(N) if mask["OS"][i]]
    expected = []
    for j in rows.tolist():
        slope = float(event[j])
        for k in known:
            if event[k] and time[k] <= time[j]:
                slope -= math.exp(now[j]) / sum(math.exp(now[i]) for i in known if time[i] >= time[k])
        expected.append(-slope if mask["OS"][j] else 0.0)
    assert risk.grad is not None
    assert risk.grad.tolist() == pytest.approx(expected, rel=1e-9)
    censored = [i for i, row in enumerate(rows.tolist()) if mask["OS"][row] and not event[row]]
    assert censored
    assert all(risk.grad[i] for i in censored)


def test_scores_are_kept_only_when_told_and_only_of_labelled_patients() -> None:
    head = TaskHead("OS", "survival", 1)
    targets, mask, cohort = patients()
    losses = remembering(head, steps=4, scores=torch.zeros(N))
    memory = losses.memory
    assert memory is not None
    rows = torch.arange(8)
    part = [{name: values[rows] for name, values in parts.items()} for parts in (targets, mask)]
    losses({"OS": torch.full((8, 1), 2.0)}, *part, cohort[rows], rows)
    assert not memory.state_dict()["OS"]["score"].any()
    memory.keep()
    kept = memory.state_dict()["OS"]["score"]
    assert torch.equal(kept[:8], 2.0 * mask["OS"][:8])
    assert not kept[8:].any()
    again = ScoreMemory(4)
    again.load_state_dict(memory.state_dict())
    assert "OS" in again
    assert torch.equal(again.state_dict()["OS"]["score"], kept)


def test_a_batch_without_a_label_teaches_nothing_and_others_compare_within_their_batch() -> None:
    head = TaskHead("OS", "survival", 1)
    targets, mask, cohort = patients()
    losses = remembering(head, steps=4, scores=torch.zeros(N))
    risk = torch.ones(3, 1, requires_grad=True)
    rows = torch.arange(3)
    part = [{name: values[:3] for name, values in parts.items()} for parts in (targets, mask)]
    unseen = {"OS": torch.zeros(3, dtype=torch.bool)}
    found = losses({"OS": risk}, part[0], unseen, cohort[:3], rows)
    found.means().sum().backward()
    assert (found.sums.item(), found.counts.item()) == (0, 0)
    assert risk.grad is not None
    assert not risk.grad.any()
    # Validation patients have no place in the memory.
    plain = TaskLosses([head])({"OS": risk}, *part, cohort[:3])
    torch.testing.assert_close(losses({"OS": risk}, *part, cohort[:3]).sums, plain.sums)
