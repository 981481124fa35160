"""LongNet against dilated attention written token by token, and small random weights under the published names."""

import hashlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from equipoise.models.slide_encoders.card import LONGNET, LongNetCard
from equipoise.models.slide_encoders.entries import LongNetParams, params_of
from equipoise.models.slide_encoders.longnet import (
    RATIOS,
    SEGMENTS,
    DilatedAttention,
    LongNet,
    LongNetEncoder,
    grid_places,
)
from equipoise.models.slide_encoders.positions import sines_and_cosines
from equipoise.models.slide_encoders.protocol import SlideTiles, encode_slide, run_encoder

CARD = LONGNET["gigapath_slide"]
WIDTH, DEPTH, HEADS, MLP, DIM = 32, 2, 16, 24, 6


def mixture(q: Tensor, k: Tensor, v: Tensor, branches: list[tuple[int, int]]) -> Tensor:
    """Dilated attention of ``[H, L, D]``, one segment and one head after the other; shares without gradient."""
    heads, length, width = q.shape
    outs, totals = [], []
    for segment, ratio in branches:
        segment = min(segment, length)
        out, total = torch.zeros_like(q), torch.full((heads, length), -1e8, dtype=q.dtype)
        padded = segment + (-segment) % ratio
        for start in range(0, length, segment):
            real = min(segment, length - start)
            for head in range(heads):
                group = head // (heads // ratio)
                seen = list(range(group, padded, ratio))
                rows = [torch.stack([x[head, start + at] if at < real else torch.zeros(width, dtype=q.dtype)
                                     for at in seen]) for x in (q, k, v)]  # fmt: skip
                scores = rows[0] @ rows[1].T / math.sqrt(width)
                mixed = scores.softmax(1) @ rows[2]
                for place, at in enumerate(seen):
                    if at < real:
                        out[head, start + at] = mixed[place]
                        found = scores[place].detach().exp().sum().log()
                        total[head, start + at] = found if found != 0 else -1e8
        outs.append(out)
        totals.append(total)
    shares = torch.stack(totals).softmax(0)
    return (torch.stack(outs) * shares[..., None]).sum(0)


def attention(
    segments: tuple[int, ...], ratios: tuple[int, ...], heads: int = 4, width: int = 12
) -> DilatedAttention:
    torch.manual_seed(0)
    return DilatedAttention(width, heads, segments, ratios).double()


def by_hand(module: DilatedAttention, x: Tensor) -> Tensor:
    """One slide ``[L, W]``."""
    heads, (length, width) = module.heads, x.shape
    q, k, v = (layer(x).view(length, heads, -1).transpose(0, 1) for layer in
               (module.q_proj, module.k_proj, module.v_proj))  # fmt: skip
    mixed = mixture(q, k, v, list(module.branches)).transpose(0, 1).reshape(length, width)
    return module.out_proj(module.inner_attn_ln(mixed))


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 11, 17, 40])
def test_equals_dilated_attention_token_by_token(length: int) -> None:
    """Lengths below, at and beyond segments, multiples of ratios and not: padded keys are zeros that count."""
    module = attention((6, 9, 30), (1, 2, 4))
    x = torch.randn(2, length, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(length))
    wanted = torch.stack([by_hand(module, slide) for slide in x])
    torch.testing.assert_close(module(x), wanted, rtol=1e-10, atol=1e-10)


def test_equals_it_at_the_published_segments() -> None:
    """A segment of 1024 tokens that the slide does not fill, in single precision."""
    module = attention(SEGMENTS, RATIOS, heads=16, width=16)
    x = torch.randn(1061, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    few = slice(1000, 1061)  # both segments, without the time that all tokens would take
    q, k, v = (layer(x).view(1061, 16, -1).transpose(0, 1) for layer in
               (module.q_proj, module.k_proj, module.v_proj))  # fmt: skip
    heads = [0, 7, 15]
    outs, totals = [], []
    for segment, ratio in module.branches:
        segment = min(segment, 1061)
        out = torch.zeros(3, 61, 1, dtype=torch.float64)
        total = torch.full((3, 61), -1e8, dtype=torch.float64)
        for row, head in enumerate(heads):
            group = head // (16 // ratio)
            for place in range(1000, 1061):
                start = place // segment * segment
                if (place - start) % ratio != group:
                    continue
                keys = [start + at for at in range(group, segment + (-segment) % ratio, ratio)]
                real = [at for at in keys if at < min(start + segment, 1061)]
                scores = torch.zeros(
                    len(keys), dtype=torch.float64
                )  # padded keys: a score of 0, a value of 0
                scores[: len(real)] = k[head, real] @ q[head, place]
                values = torch.zeros(len(keys), 1, dtype=torch.float64)
                values[: len(real)] = v[head, real]
                out[row, place - 1000] = scores.softmax(0) @ values
                total[row, place - 1000] = scores.logsumexp(0)
        outs.append(out)
        totals.append(total)
    wanted = (torch.stack(outs) * torch.stack(totals).softmax(0)[..., None]).sum(0)
    mixed = []
    module.inner_attn_ln.register_forward_pre_hook(lambda _, given: mixed.append(given[0]))
    single = module.float()(x[None].float())
    assert single.shape == (1, 1061, 16)
    got = mixed[0][0, few, heads].T[..., None].double()
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_no_gradient_flows_through_the_shares() -> None:
    module = attention((4, 6), (1, 2))
    x = torch.randn(1, 7, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    gradients = []
    for run in (module, lambda slides: by_hand(module, slides[0])[None]):
        leaf = x.clone().requires_grad_()
        (run(leaf) ** 2).sum().backward()
        gradients.append(leaf.grad)
    assert gradients[0] is not None
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-9)


def test_published_sizes() -> None:
    with torch.device("meta"):
        network = LongNet(CARD)
    assert sum(parameter.numel() for parameter in network.parameters()) == 86_330_880
    assert tuple(int(2**power) for power in np.linspace(10, 20, 5)) == SEGMENTS
    with pytest.raises(ValueError, match="12 heads cannot be shared"):
        DilatedAttention(48, 12)


def small() -> LongNetCard:
    pairing = replace(CARD.pairing, dim=DIM)
    return replace(CARD, pairing=pairing, width=WIDTH, depth=DEPTH, heads=HEADS, mlp=MLP)


def published() -> dict[str, Tensor]:
    """Random tensors under all names of slide_encoder.pth, written down from public descriptions."""
    sizes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, WIDTH), "patch_embed.proj.weight": (WIDTH, DIM),
                                         "patch_embed.proj.bias": (WIDTH,)}  # fmt: skip
    norms = {"norm": WIDTH, "encoder.layer_norm": WIDTH}
    for at in range(DEPTH):
        layer = f"encoder.layers.{at}"
        norms |= {f"{layer}.self_attn_layer_norm": WIDTH, f"{layer}.self_attn.inner_attn_ln": WIDTH,
                  f"{layer}.final_layer_norm": WIDTH, f"{layer}.ffn.ffn_layernorm": MLP}  # fmt: skip
        linear = {f"self_attn.{part}_proj": (WIDTH, WIDTH) for part in ("q", "k", "v", "out")}
        linear |= {"ffn.fc1": (MLP, WIDTH), "ffn.fc2": (WIDTH, MLP)}
        for name, size in linear.items():
            sizes |= {f"{layer}.{name}.weight": size, f"{layer}.{name}.bias": size[:1]}
    for name, width in norms.items():
        sizes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    generator = torch.Generator().manual_seed(4)
    return {name: torch.randn(size, generator=generator) * 0.3 for name, size in sizes.items()}


@pytest.fixture
def make(tmp_path: Path) -> Any:
    """Encoders with the weights above and the given settings."""
    file = tmp_path / CARD.file
    torch.save({"model": published(), "epoch": 3}, file)
    card = replace(small(), sha256=hashlib.sha256(file.read_bytes()).hexdigest())

    def encoder(**settings: Any) -> LongNetEncoder:
        settings = {"weights": str(tmp_path), "device": "cpu", "layers": DEPTH} | settings
        return LongNetEncoder(params_of(card, LongNetParams).model_validate(settings))

    return encoder


def slide(n: int = 9) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    places = rng.permutation(400)[:n]
    return (
        rng.normal(size=(n, DIM)).astype(np.float16),
        np.stack([places % 20, places // 20], 1).astype(np.float32) * 128,
    )


def whole_by_hand(bag: np.ndarray, corners: np.ndarray, settings: dict[str, Any]) -> Tensor:
    """The encoder from the published names, in float64."""
    p = {name: tensor.double() for name, tensor in published().items()}

    def norm(x: Tensor, name: str, epsilon: float = 1e-5) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + epsilon).sqrt()
        return scaled * p[f"{name}.weight"] + p[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    columns, rows = (corners / 128).astype(int).T
    order = np.lexsort((rows, columns))
    table = []
    for row, column in zip(rows[order], columns[order], strict=True):
        waves = [10000 ** (-k / (WIDTH / 4)) for k in range(WIDTH // 4)]
        table.append(
            [f(place * wave) for place in (row, column) for f in (math.sin, math.cos) for wave in waves]
        )
    tokens = linear(torch.from_numpy(bag[order]).double(), "patch_embed.proj")
    x = torch.cat([p["cls_token"][0], tokens + torch.tensor(table, dtype=torch.float64)])
    for at in range(settings.get("layers", DEPTH)):
        layer = f"encoder.layers.{at}"
        y = norm(x, f"{layer}.self_attn_layer_norm")
        q, k, v = (linear(y, f"{layer}.self_attn.{part}_proj").view(len(x), HEADS, -1).transpose(0, 1)
                   for part in ("q", "k", "v"))  # fmt: skip
        mixed = (
            mixture(q, k, v, list(zip(SEGMENTS, RATIOS, strict=True))).transpose(0, 1).reshape(len(x), WIDTH)
        )
        x = x + linear(norm(mixed, f"{layer}.self_attn.inner_attn_ln"), f"{layer}.self_attn.out_proj")
        hidden = linear(norm(x, f"{layer}.final_layer_norm"), f"{layer}.ffn.fc1")
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        x = x + linear(norm(hidden, f"{layer}.ffn.ffn_layernorm"), f"{layer}.ffn.fc2")
    if settings.get("final_norm"):
        x = norm(x, "encoder.layer_norm")
    pooled = x[0] if settings.get("readout") == "class_token" else x[1:].mean(0)
    return norm(pooled, "norm", 1e-6)


@pytest.mark.parametrize(
    "settings",
    [{}, {"readout": "class_token", "final_norm": True}, {"readout": "class_token"}, {"layers": 1}],
    ids=str,
)
def test_from_the_published_names_to_the_vector(make: Any, settings: dict[str, Any]) -> None:
    bag, corners = slide()
    encoder = make(**settings)
    vector = encode_slide(encoder, bag, corners, 128.0)
    assert vector.shape == (encoder.dim(DIM),)
    np.testing.assert_allclose(vector, whole_by_hand(bag, corners, settings).numpy(), rtol=2e-3, atol=1e-3)


def test_every_readout_is_another_encoder(make: Any) -> None:
    settings: tuple[dict[str, Any], ...] = (
        {},
        {"readout": "class_token"},
        {"final_norm": True},
        {"layers": 1},
    )
    assert len({make(**change).fingerprint for change in settings}) == len(settings)
    assert make().fingerprint == make().fingerprint


def test_order_of_tiles_and_padding_do_not_matter(make: Any) -> None:
    encoder = make()
    bag, corners = slide()
    vector = encode_slide(encoder, bag, corners, 128.0)
    order = np.random.default_rng(1).permutation(len(bag))
    np.testing.assert_allclose(encode_slide(encoder, bag[order], corners[order], 128.0), vector, atol=1e-3)
    features = torch.full((2, 12, DIM), torch.nan)
    where = torch.zeros(2, 12, 2)
    mask = torch.zeros(2, 12, dtype=torch.bool)
    features[0, :9], where[0, :9], mask[0, :9] = (
        torch.from_numpy(bag).float(),
        torch.from_numpy(corners),
        True,
    )
    features[1, 5:8], where[1, 5:8], mask[1, 5:8] = features[0, :3], where[0, :3], True
    both = run_encoder(encoder, SlideTiles(features, mask, where, torch.full((2,), 128.0)))
    np.testing.assert_allclose(both[0], vector, atol=2e-3)
    alone = encode_slide(encoder, bag[:3], corners[:3], 128.0)
    np.testing.assert_allclose(both[1], alone, atol=2e-3)


def test_places_are_rows_and_columns_of_tiles() -> None:
    corners = torch.tensor([[[0.0, 0.0], [255.9, 128.0], [127.9, 999 * 128.0]]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    tiles = SlideTiles(torch.zeros(1, 3, 1), mask, corners, torch.tensor([128.0]))
    # A corner in whole pixels may lie a little before its column.
    assert grid_places(tiles)[0].tolist() == [[0, 0], [1, 2], [999, 1]]
    for beyond in (corners + 128, corners - 128):
        with pytest.raises(ValueError, match="knows 0 to 999"):
            grid_places(replace(tiles, corners=beyond))
    far = sines_and_cosines(torch.tensor([[[999.0, 3.0]]]), 8)[0, 0]
    waves = (1.0, 0.01)
    wanted = [f(place * wave) for place in (999, 3) for f in (math.sin, math.cos) for wave in waves]
    np.testing.assert_allclose(far, wanted, rtol=1e-5)


def test_layers_are_stages(make: Any) -> None:
    encoder = make(layers=1)
    bag, corners = slide()
    mask, extent = torch.ones(1, 9, dtype=torch.bool), torch.tensor([128.0])
    state = encoder.stem(
        SlideTiles(torch.from_numpy(bag)[None], mask, torch.from_numpy(corners)[None], extent)
    )
    after = encoder.run_stage(0, state)
    assert after.tokens.shape == state.tokens.shape == (1, 10, WIDTH)
    assert not torch.allclose(after.tokens, state.tokens)
    with pytest.raises(IndexError, match="runs 1 layers, not 2"):
        encoder.run_stage(1, state)


def test_other_files_are_refused(make: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="takes 6 features per tile, not 5"):
        make().dim(5)
    torch.save({"model": published() | {"pos_embed": torch.zeros(1)}}, tmp_path / CARD.file)
    with pytest.raises(ValueError, match="'gigapath_slide' and was not opened"):
        make()
    value = hashlib.sha256((tmp_path / CARD.file).read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=r"1 not expected \(pos_embed\)"):
        make(sha256=value)
    torch.save(published(), tmp_path / CARD.file)
    value = hashlib.sha256((tmp_path / CARD.file).read_bytes()).hexdigest()
    with pytest.raises(ValueError, match="has no model"):
        make(sha256=value)
