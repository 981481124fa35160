"""Random weights: which numbers, and the same ones everywhere."""

from __future__ import annotations

import torch
from torchjd.scalarization import Random

from equipoise.models.balancing.entries import WeightingParams
from equipoise.models.balancing.protocol import StepContext
from equipoise.models.balancing.rlw import Rlw
from equipoise.models.batch import TaskHead

HEADS = tuple(TaskHead(name, "regression", 1) for name in "abcd")
ALL, NOW = torch.tensor([True] * 4), torch.ones(4, dtype=torch.float64)


def weights(seed: int, epoch: int, step: int, present: torch.Tensor = ALL) -> torch.Tensor:
    return Rlw(WeightingParams(), HEADS).weights(
        NOW, StepContext(tuple("abcd"), present, epoch, step, seed=seed)
    )


def test_draws_belong_to_seed_epoch_and_step() -> None:
    assert torch.equal(weights(1, 2, 3), weights(1, 2, 3))
    assert (
        len(
            {
                tuple(w.tolist())
                for w in (weights(1, 2, 3), weights(2, 2, 3), weights(1, 3, 3), weights(1, 2, 4))
            }
        )
        == 4
    )


def test_weights_are_a_softmax_of_standard_normals() -> None:
    drawn = torch.stack([weights(0, 0, step) for step in range(4000)])
    torch.testing.assert_close(drawn.sum(1), torch.ones(4000, dtype=torch.float64))
    centred = drawn.log() - drawn.log().mean(1, keepdim=True)  # z less the mean of four: variance 3/4
    torch.testing.assert_close(drawn.mean(0), torch.full((4,), 0.25).double(), atol=0.01, rtol=0)
    torch.testing.assert_close(centred.var(0), torch.full((4,), 0.75).double(), atol=0.06, rtol=0)


def test_the_distribution_is_torchjds() -> None:
    ours = torch.stack([weights(0, 0, step) for step in range(3000)]).flatten().sort().values
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = []
        for _ in range(3000):
            losses = torch.ones(4, dtype=torch.float64, requires_grad=True)
            Random()(losses).backward()
            theirs.append(losses.grad)
    assert (ours - torch.stack(theirs).flatten().sort().values).abs().max() < 0.05


def test_absent_tasks_take_no_share() -> None:
    one_absent = weights(0, 0, 0, torch.tensor([True, True, False, True]))
    full = weights(0, 0, 0)
    assert one_absent[2] == 0
    torch.testing.assert_close(one_absent[[0, 1, 3]], full[[0, 1, 3]] / full[[0, 1, 3]].sum())
