"""Cross attention by hand, residuals, and what is hidden."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from equipoise.models.modaltune.interaction import Attend, Extractor, Injector, SelfAttend

W, BOTTLENECK, HEADS = 12, 8, 2


def drawn(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.double().eval()


def norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias


def attention(mha: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """One head after the other."""
    weights = (mha.q_proj_weight, mha.k_proj_weight, mha.v_proj_weight)
    biases = mha.in_proj_bias.chunk(3)
    q, k, v = (x @ w.T + b for x, w, b in zip((query, key, value), weights, biases, strict=True))
    size, mixed = BOTTLENECK // HEADS, []
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        scores = (q[..., part] @ k[..., part].transpose(-1, -2) / math.sqrt(size)).exp()
        mixed.append(scores / scores.sum(-1, keepdim=True) @ v[..., part])
    return torch.cat(mixed, -1) @ mha.out_proj.weight.T + mha.out_proj.bias


def by_hand(module: Attend, query: Tensor, key: Tensor) -> Tensor:
    inner = norm(query, module.query_norm) @ module.down.weight.T + module.down.bias
    keys = norm(key, module.key_norm)
    return attention(module.attention, inner, keys, keys) @ module.up.weight.T + module.up.bias


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(1)
    shapes = {"x": (3, 5, W), "c": (3, 4, W), "place": (4, W)}
    return {name: torch.randn(shape, generator=rng, dtype=torch.float64) for name, shape in shapes.items()}


@pytest.mark.parametrize("doubled", [False, True])
def test_injector_by_hand(tensors, doubled) -> None:
    """``doubled`` is the residual of the published code, which is no longer x + gamma CA."""
    x, c, place = tensors.values()
    module = drawn(Injector(W, BOTTLENECK, HEADS, doubled=doubled))
    said = by_hand(module.attend, x, c + place)
    wanted = x + module.gamma * (x + said if doubled else said)
    torch.testing.assert_close(module(x, c, place), wanted)


@pytest.mark.parametrize("doubled", [False, True])
def test_extractor_by_hand(tensors, doubled) -> None:
    x, c, place = tensors.values()
    module = drawn(Extractor(W, BOTTLENECK, HEADS, doubled=doubled))
    after = (2 if doubled else 1) * c + by_hand(module.attend, c + place, x)
    first, down, _, up = module.perceptron
    hidden = (norm(after, first) @ down.weight.T + down.bias).clamp(min=0)
    wanted = after + hidden @ up.weight.T + up.bias
    torch.testing.assert_close(module(c, place, x, torch.ones(3, 5, dtype=torch.bool)), wanted)


def test_self_attention_by_hand(tensors) -> None:
    """Places enter queries and keys, not values."""
    _, c, place = tensors.values()
    module = drawn(SelfAttend(W, BOTTLENECK, HEADS))
    n = norm(c, module.norm)
    inner = (n + place) @ module.down.weight.T + module.down.bias
    mixed = attention(module.attention, inner, n + place, n)
    torch.testing.assert_close(module(c, place), c + mixed @ module.up.weight.T + module.up.bias)


def test_a_new_injector_changes_nothing(tensors) -> None:
    x, c, place = tensors.values()
    for doubled in (False, True):
        module = Injector(W, BOTTLENECK, HEADS, doubled=doubled).double()
        assert torch.equal(module(x, c, place), x)


def test_hidden_keys_are_as_if_they_were_not_there(tensors) -> None:
    x, c, place = tensors.values()
    hidden = torch.tensor([[False, False, True, True]] * 3)
    injector = drawn(Injector(W, BOTTLENECK, HEADS))
    torch.testing.assert_close(injector(x, c, place, hidden), injector(x, c[:, :2], place[:2]))
    extractor, seen = drawn(Extractor(W, BOTTLENECK, HEADS)), torch.ones(3, 5, dtype=torch.bool)
    seen[:, 3:] = False
    torch.testing.assert_close(extractor(c, place, x, seen), extractor(c, place, x[:, :3], seen[:, :3]))


def test_a_case_without_tiles_gets_the_perceptron_alone(tensors) -> None:
    x, c, place = tensors.values()
    module, seen = drawn(Extractor(W, BOTTLENECK, HEADS)), torch.ones(3, 5, dtype=torch.bool)
    seen[1] = False
    out = module(c, place, torch.where(seen[..., None], x, math.nan), seen)
    torch.testing.assert_close(out[1], c[1] + module.perceptron(c[1]))
    assert torch.isfinite(out).all()


def test_drop_path_keeps_the_mean_and_drops_whole_cases() -> None:
    module = drawn(Extractor(W, BOTTLENECK, HEADS, drop_path=0.25, slides=False)).train()
    c, place = torch.zeros(4000, 1, W, dtype=torch.float64), torch.zeros(1, W, dtype=torch.float64)
    full = module.perceptron(c[:1])[0, 0]
    shares = module(c, place)[:, 0] / full
    dropped = (shares == 0).all(1)
    assert (dropped | ((shares - 4 / 3).abs() < 1e-12).all(1)).all()
    assert abs(dropped.double().mean() - 0.25) < 0.03
