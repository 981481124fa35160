"""GradDrop: the mask, its randomness, the leak."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from equipoise.models.balancing.graddrop import CHUNK


@pytest.fixture(name="J", scope="module")
def gradients() -> Tensor:
    return torch.randn(3, 2000, generator=torch.Generator().manual_seed(3))


def test_every_coordinate_keeps_one_sign_whole(combine: Callable[..., Tensor], J: Tensor) -> None:
    d = combine("graddrop", J)
    positive, negative = J.clamp(min=0).sum(0), J.clamp(max=0).sum(0)
    kept = torch.isclose(d, positive, atol=1e-5) | torch.isclose(d, negative, atol=1e-5)
    assert kept.all()


def test_signs_are_kept_as_often_as_their_purity(combine: Callable[..., Tensor]) -> None:
    """3 against −1: positive with P = ½(1 + 2/4) = 3/4."""
    d = combine("graddrop", torch.tensor([[3.0], [-1.0]]).expand(2, 20000))
    assert set(d.tolist()) == {3.0, -1.0}
    assert (d > 0).float().mean().item() == pytest.approx(0.75, abs=0.015)


def test_agreement_is_never_dropped(combine: Callable[..., Tensor]) -> None:
    J = torch.tensor([[1.0, -1.0, 0.0], [2.0, -3.0, 0.0]])
    assert combine("graddrop", J).tolist() == [3, -4, 0]


def test_same_seed_and_step_give_the_same_mask(combine: Callable, at: Callable, J: Tensor) -> None:
    torch.manual_seed(1)
    first = combine("graddrop", J, at(3, 4))
    torch.manual_seed(2)
    assert torch.equal(combine("graddrop", J, at(3, 4)), first)
    assert not torch.equal(combine("graddrop", J, at(3, 5)), first)


def test_leak_goes_from_the_mask_to_the_sum(combine: Callable[..., Tensor], J: Tensor) -> None:
    masked, total = combine("graddrop", J), J.sum(0)
    assert torch.allclose(combine("graddrop", J, leak=1.0), total, atol=1e-5)
    assert torch.allclose(combine("graddrop", J, leak=0.3), 0.7 * masked + 0.3 * total, atol=1e-5)


def test_parts_do_not_show(combine: Callable[..., Tensor], at: Callable) -> None:
    """Longer than one part: the mask is that of one draw for all coordinates."""
    long = torch.tensor([[1.0], [-1.0]]).expand(2, CHUNK + 1000)
    uniform = torch.rand(CHUNK + 1000, generator=at(2).generator())
    assert torch.equal(combine("graddrop", long), torch.where(uniform < 0.5, 1.0, -1.0))
