"""Distillation of differences against a loop over pairs."""

from __future__ import annotations

import pytest
import torch

from equipoise.models.batch import TaskHead
from equipoise.models.gptomic.distillation import pair_distance
from equipoise.models.gptomic.protocol import ObjectiveInputs
from equipoise.models.losses import identity_gather

COX = TaskHead("OS", "survival", 1)


def draw(n: int = 15):
    rng = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(n, 1, generator=rng, dtype=torch.float64) for _ in range(2))
    days = torch.randint(1, 8, (n,), generator=rng).double()  # tied pairs are no pairs
    event = (torch.rand(n, generator=rng) < 0.6).double()
    return student.requires_grad_(), teacher, torch.stack([days, event], dim=1)


def test_pairs_are_those_of_an_event_before_the_other_time() -> None:
    student, teacher, target = draw()
    total, pairs = 0.0, 0
    for i in range(len(student)):
        for j in range(len(student)):
            if target[i, 1] and target[i, 0] < target[j, 0]:
                lag = (student[i] - student[j]) - (teacher[i] - teacher[j])
                total, pairs = total + float(lag.detach()) ** 2, pairs + 1
    assert pairs > 20
    assert pair_distance(student, teacher, target, COX).item() == pytest.approx(total / pairs)


def test_a_shift_of_the_teacher_changes_nothing_and_no_pairs_give_zero() -> None:
    student, teacher, target = draw()
    shifted = pair_distance(student, teacher + 7, target, COX)
    torch.testing.assert_close(shifted, pair_distance(student, teacher, target, COX))
    target[:, 1] = 0
    assert pair_distance(student, teacher, target, COX).item() == 0
    assert pair_distance(student[:0], teacher[:0], target[:0], COX).item() == 0


@pytest.mark.parametrize(("student", "moves"), [("fused", "omics alone"), ("branches", "image")])
def test_the_teacher_is_not_moved(make_model, make_batch, student: str, moves: str) -> None:
    kinds = ((4, 0, 1, 1, 1), (2, 0, 1, 1, 1), (3, 0, 1, 1, 0), (3, 0, 0, 0, 0))
    model = make_model(
        "late",  # trained apart: the fused score has no gradient in the branches
        "rank_distillation",
        modulation_params={"student": student, "weight": 0.5},
        heads=(COX,),
    ).eval()
    batch = make_batch(kinds)
    forward = model.forward_with_branches(batch)
    inputs = ObjectiveInputs(model.task_heads, forward, batch, identity_gather)
    term = model.modulation.term(inputs)
    assert term.shape == (1,)
    own = forward.own
    rows = torch.tensor([0, 1, 2])  # the last case has no omics, so no teacher
    pupil = forward.outputs["OS"] if student == "fused" else own["image"]["OS"]
    expected = 0.5 * pair_distance(pupil[rows], own["omics"]["OS"][rows], batch.targets["OS"][rows], COX)
    torch.testing.assert_close(term[0], expected)
    term.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.own_heads["omics"].parameters())
    assert all(p.grad is None or not p.grad.any() for p in model.learned["omics"].parameters())
    assert bool(model.heads[0].weight.grad is not None) is (student == "fused")
    assert any(p.grad is not None for p in model.learned["image"].parameters()) is (student == "branches")
