"""ExcessMTL: weights from excess risks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from equipoise.models.balancing.excess_mtl import CHUNK

J = torch.tensor([[3.0, 0.0], [0.0, 4.0]])


def test_two_steps_by_hand(build: Callable, at: Callable) -> None:
    """Baselines g²/|g| = 3 and 4; then g and 2g: 9/√18 and 64/√80."""
    method = build("excess_mtl", step_size=0.5)
    assert method.direction(J, torch.ones(2), at(2)).tolist() == pytest.approx([1.5, 2.0])
    d = method.direction(J * torch.tensor([[1.0], [2.0]]), torch.ones(2), at(2, 1))
    excess = torch.tensor([9 / 18**0.5 / 3, 64 / 80**0.5 / 4])
    w = torch.softmax(0.5 * excess, 0)
    assert d.tolist() == pytest.approx([3 * w[0].item(), 8 * w[1].item()], rel=1e-5)


def test_weights_rest_while_it_warms_up(build: Callable, at: Callable) -> None:
    method = build("excess_mtl", warmup=3)
    for step in range(3):
        assert method.direction(J, torch.ones(2), at(2, step)).tolist() == pytest.approx([1.5, 2.0])
    norms = torch.tensor([3.0, 4.0])
    mean = norms * (1 + 2**-0.5 + 3**-0.5) / 3
    assert method.first.tolist() == pytest.approx(mean.tolist(), rel=1e-5)


def test_absent_tasks_keep_their_share(build: Callable, at: Callable) -> None:
    method = build("excess_mtl", 3, step_size=1.0)
    gradients = torch.diag(torch.tensor([1.0, 2.0, 3.0]))
    method.direction(gradients, torch.ones(3), at(3))
    method.direction(gradients[[0, 2]] * torch.tensor([[5.0], [1.0]]), torch.ones(2), at(3, 1, rows=(0, 2)))
    w = torch.softmax(method.log_w, 0)
    assert w[1].item() == pytest.approx(1 / 3)
    assert w[0] > w[2]


def test_a_silent_task_sets_no_baseline(build: Callable, at: Callable) -> None:
    method = build("excess_mtl")
    silent = torch.tensor([[3.0, 0.0], [0.0, 0.0]])
    method.direction(silent, torch.ones(2), at(2))
    assert method.seen.tolist() == [1, 0]
    assert method.direction(J, torch.ones(2), at(2, 1)).isfinite().all()


def test_parts_do_not_show(build: Callable, at: Callable) -> None:
    method, long = build("excess_mtl"), torch.ones(2, CHUNK + 7)
    method.direction(long, torch.ones(2), at(2))
    assert method.first.tolist() == pytest.approx([CHUNK + 7] * 2, rel=1e-6)
