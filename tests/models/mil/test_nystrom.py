"""Nyström attention: exact where it must be, close where it may be."""

from __future__ import annotations

import math

import pytest
import torch

from equipoise.models.mil.nystrom import NystromAttention, iterative_pinv, nystrom, segment_means


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return (q @ k.transpose(1, 2) / math.sqrt(q.shape[2])).softmax(dim=-1) @ v


@pytest.mark.parametrize(("tokens", "segments"), [(12, 4), (13, 4), (15, 4), (5, 5), (9, 8)])
def test_segments_are_neighbours_of_nearly_equal_number(tokens: int, segments: int) -> None:
    x = draw(2, tokens, 3)
    sizes = [tokens // segments + (i < tokens % segments) for i in range(segments)]
    expected = torch.stack([part.mean(dim=1) for part in x.split(sizes, dim=1)], dim=1)
    torch.testing.assert_close(segment_means(x, segments), expected)


def test_pinv_is_the_inverse_where_there_is_one() -> None:
    scores = draw(3, 6, 6)
    a = (scores + 4 * torch.eye(6, dtype=torch.float64)).softmax(dim=-1)
    torch.testing.assert_close(iterative_pinv(a, 12), torch.linalg.inv(a), rtol=1e-9, atol=1e-9)


def test_pinv_of_a_matrix_without_inverse() -> None:
    a = draw(5, 2, seed=1).abs() @ draw(2, 5, seed=2).abs()
    a = a / a.sum(dim=1, keepdim=True)
    torch.testing.assert_close(iterative_pinv(a[None], 14)[0], torch.linalg.pinv(a), rtol=1e-6, atol=1e-6)


def test_pinv_of_a_matrix_is_its_own() -> None:
    a = draw(2, 6, 6).softmax(dim=-1)
    other = torch.stack([a[0], 50 * a[1]])
    torch.testing.assert_close(iterative_pinv(a, 4)[0], iterative_pinv(other, 4)[0])


def test_attention_is_the_product_of_three_factors() -> None:
    q, k, v = draw(2, 21, 4, seed=1), draw(2, 21, 4, seed=2), draw(2, 21, 4, seed=3)
    ql, kl = segment_means(q, 5), segment_means(k, 5)
    factor = lambda a, b: (a @ b.transpose(1, 2) / 2).softmax(dim=-1)  # noqa: E731
    expected = factor(q, kl) @ (iterative_pinv(factor(ql, kl), 6) @ (factor(ql, k) @ v))
    torch.testing.assert_close(nystrom(q, k, v, 5, 6), expected)


def test_it_is_exact_where_runs_of_tokens_are_alike() -> None:
    """With identical tokens in a segment, landmarks lose nothing: the attention matrix has their rank."""
    q, k = (draw(1, 6, 8, seed=s, scale=3).repeat_interleave(4, dim=1) for s in (1, 2))
    v = draw(1, 24, 8, seed=3)
    torch.testing.assert_close(nystrom(q, k, v, 6, 40), dense(q, k, v), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 7, 8])
def test_small_bags_get_exact_attention(tokens: int) -> None:
    q, k, v = (draw(2, tokens, 4, seed=s) for s in (1, 2, 3))
    torch.testing.assert_close(nystrom(q, k, v, 8, 6), dense(q, k, v))


def test_exact_attention_is_the_limit_of_the_formula() -> None:
    q, k, v = (draw(1, 8, 8, seed=s, scale=2) for s in (1, 2, 3))
    a = (q @ k.transpose(1, 2) / math.sqrt(8)).softmax(dim=-1)
    every_token_a_landmark = a @ (iterative_pinv(a, 60) @ (a @ v))
    torch.testing.assert_close(every_token_a_landmark, nystrom(q, k, v, 8, 6), rtol=1e-5, atol=1e-6)


def test_gradient_is_the_numerical_one() -> None:
    inputs = tuple(draw(1, 7, 2, seed=s).requires_grad_() for s in (1, 2, 3))
    assert torch.autograd.gradcheck(lambda q, k, v: nystrom(q, k, v, 3, 3), inputs)


@torch.no_grad()
def test_the_convolution_mixes_neighbours_of_a_head() -> None:
    layer = NystromAttention(8, 2, 4, 6, 0.0).double().eval()
    x = draw(10, 8)
    without = layer(x)
    kernel = layer.convolution.weight.clone()
    layer.convolution.weight.zero_()
    plain = layer(x)
    v = layer.qkv(x)[:, 16:].unflatten(1, (2, 4))  # [N, H, E]
    added = torch.zeros(10, 2, 4, dtype=torch.float64)
    for n in range(10):
        for offset in range(-16, 17):
            if 0 <= n + offset < 10:
                added[n] += kernel[:, 0, offset + 16] * v[n + offset]
    torch.testing.assert_close(without - plain, added.flatten(1) @ layer.out[0].weight.T)
