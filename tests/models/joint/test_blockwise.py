"""Blockwise attention against the dense formula: values, gradients, dropout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from equipoise.models.joint import attention, blockwise
from equipoise.models.joint.attention import Attention
from equipoise.models.joint.blockwise import BlockwiseAttention


@pytest.fixture(params=[1, 3, 100], ids=["a query a block", "some queries a block", "one block"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Size of blocks for 2 groups and 7 keys."""
    monkeypatch.setattr(blockwise, "WEIGHTS_AT_ONCE", request.param * 2 * 7)
    return request.param


def queries_keys_values(queries: int = 8, keys: int = 7) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, n, 4, dtype=torch.float64, generator=rng).requires_grad_()
        for n in (queries, keys, keys)
    )
    mask = torch.ones(2, keys, dtype=torch.bool)
    mask[1, 4:] = False
    return q, k, v, mask


def test_without_dropout_it_is_the_dense_formula(block: int) -> None:
    q, k, v, mask = queries_keys_values()
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, :])
    torch.testing.assert_close(BlockwiseAttention.apply(q, k, v, mask, 0.0), dense)
    torch.testing.assert_close(
        BlockwiseAttention.apply(q, k, v, None, 0.0),
        torch.nn.functional.scaled_dot_product_attention(q, k, v),
    )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_gradients_are_the_numerical_ones(block: int, dropout: float, masked: bool) -> None:
    q, k, v, mask = queries_keys_values()

    def same_draw(*parts: Tensor) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(5)
            return BlockwiseAttention.apply(*parts, mask if masked else None, dropout)  # type: ignore[return-value]

    assert torch.autograd.gradcheck(same_draw, (q, k, v))


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    """Equal weights over one-hot values show each weight."""
    n, dropout = 400, 0.3
    q = torch.zeros(1, n, n)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = BlockwiseAttention.apply(q, torch.zeros(1, n, n), torch.eye(n)[None], None, dropout) * n
    kept = weights > 0  # type: ignore[operator]
    assert kept.float().mean().item() == pytest.approx(1 - dropout, abs=0.005)  # 4 standard errors
    assert weights[kept].unique().tolist() == pytest.approx([1 / (1 - dropout)], rel=1e-4)  # type: ignore[index]
    rows, columns = kept[0].float().mean(1), kept[0].float().mean(0)
    assert max(rows.std().item(), columns.std().item()) == pytest.approx((0.21 / n) ** 0.5, rel=0.2)


def test_calls_draw_anew_and_a_seed_repeats_them() -> None:
    q, k, v, _ = (part.detach() for part in queries_keys_values())
    with torch.random.fork_rng():
        draws = []
        for seed in (1, None, 1):
            if seed is not None:
                torch.manual_seed(seed)
            draws.append(BlockwiseAttention.apply(q, k, v, None, 0.5))
    assert torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[1])


def test_a_layer_gives_the_same_with_and_without_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dropout that rounds to nothing leaves the two ways comparable."""
    layer = Attention(24, 3, 1e-9).train()
    x, mask = torch.randn(2, 11, 24), torch.ones(2, 11, dtype=torch.bool)
    mask[1, 8:] = False
    results = []
    for most in (2**21, 50):
        monkeypatch.setattr(attention, "DENSE_WEIGHTS", most)
        monkeypatch.setattr(blockwise, "WEIGHTS_AT_ONCE", most)
        part = x.clone().requires_grad_()
        out = layer(part, part, mask)
        out.square().sum().backward()
        results.append((out.detach(), part.grad, layer.in_proj_weight.grad.clone()))  # type: ignore[union-attr]
        layer.zero_grad()
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
