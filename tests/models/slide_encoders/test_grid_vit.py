"""The grid transformer against attention written pair by pair, in float64."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from equipoise.models.slide_encoders import alibi
from equipoise.models.slide_encoders.alibi import alibi_attention, alibi_slopes
from equipoise.models.slide_encoders.card import GRIDS, GridShape
from equipoise.models.slide_encoders.entries import GridVitParams
from equipoise.models.slide_encoders.grid_vit import AttentionPooling, GridTransformer, GridVit, draw
from equipoise.models.slide_encoders.protocol import SlideTiles, encode_slide, run_encoder

SIDE = 112.0


def tiles_of(cells: list[tuple[int, int]], dim: int = 6, side: float = SIDE) -> SlideTiles:
    """One slide; a tile's features depend on its number alone."""
    features = torch.randn(1, len(cells), dim, generator=torch.Generator().manual_seed(1))
    corners = torch.tensor(cells, dtype=torch.float32)[None] * side
    return SlideTiles(features, torch.ones(1, len(cells), dtype=torch.bool), corners, torch.tensor([side]))


CELLS = [(0, 0), (3, 4), (1, 0), (7, 2), (2, 9)]


@pytest.mark.parametrize(
    ("heads", "exponents"),
    [
        (1, [8]),
        (8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (12, [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5]),
    ],
)
def test_slopes_are_those_of_the_paper(heads: int, exponents: list[float]) -> None:
    torch.testing.assert_close(alibi_slopes(heads), torch.tensor([2.0**-e for e in exponents]))


@pytest.mark.parametrize("held", [2**25, 40])
@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_scores_fall_with_the_distance_of_tiles(prefix: int, held: int, monkeypatch) -> None:
    """Every pair by itself; the second slide has three tiles. Few scores held at once: in parts."""
    monkeypatch.setattr(alibi, "_SCORES", held)
    rng = np.random.default_rng(0)
    length, heads, width = prefix + 5, 2, 3
    q, k, v = rng.normal(size=(3, 2, heads, length, width))
    places = rng.integers(0, 9, (2, 5, 2)).astype(float)
    mask = np.ones((2, length), bool)
    mask[1, prefix + 3 :] = False
    slopes = np.array([0.5, 0.125])
    wanted = np.zeros((2, heads, length, width))
    for b in range(2):
        for h in range(heads):
            for i in range(length):
                weights = np.zeros(length)
                for j in range(length):
                    far = 0.0
                    if i >= prefix and j >= prefix:
                        far = math.dist(places[b, i - prefix], places[b, j - prefix])
                    score = q[b, h, i] @ k[b, h, j] / math.sqrt(width) - slopes[h] * far
                    weights[j] = math.exp(score) if mask[b, j] else 0.0
                wanted[b, h, i] = weights / weights.sum() @ v[b, h]
    given = [torch.from_numpy(x) for x in (q, k, v, places, mask, slopes)]
    np.testing.assert_allclose(alibi_attention(*given, prefix), wanted, rtol=1e-10, atol=1e-12)


def test_pooling_is_the_attention_of_torch() -> None:
    """Of torch's own MultiheadAttention with the same weights, masked the same way."""
    pool, theirs = AttentionPooling(8, 2), nn.MultiheadAttention(8, 2, batch_first=True)
    draw(pool, 3)
    with torch.no_grad():
        layers = (pool.q_proj, pool.k_proj, pool.v_proj)
        for layer in (*layers, pool.out_proj):
            layer.bias.copy_(torch.randn(8))
        theirs.in_proj_weight.copy_(torch.cat([layer.weight for layer in layers]))
        theirs.in_proj_bias.copy_(torch.cat([layer.bias for layer in layers]))
        theirs.out_proj.load_state_dict(pool.out_proj.state_dict())
        x, mask = torch.randn(2, 5, 8), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 1]]).bool()
        wanted, _ = theirs(pool.query.expand(2, -1, -1), x, x, key_padding_mask=~mask)
        torch.testing.assert_close(pool(x, mask), wanted[:, 0])


@torch.inference_mode()
def test_one_block_by_hand() -> None:
    """Stem, block and readout, spelt out with torch's functions for the pieces."""
    encoder, tiles = GridVit(GridVitParams(width=16, depth=1, heads=2)), tiles_of(CELLS)
    vector = run_encoder(encoder, tiles)
    net = encoder.network
    block = net.blocks[0]
    x = torch.cat([net.cls_token, nn.functional.gelu(net.input_proj[0](tiles.features))], 1)[0]
    h = nn.functional.layer_norm(x, (16,), eps=1e-6)
    q, k, v = (layer(h).view(6, 2, 8) for layer in (block.q_proj, block.k_proj, block.v_proj))
    far = torch.zeros(6, 6)
    for i, a in enumerate(CELLS):
        for j, b in enumerate(CELLS):
            far[i + 1, j + 1] = math.dist(a, b)
    scores = (
        torch.einsum("ihd,jhd->hij", q, k) / math.sqrt(8)
        - torch.tensor([2.0**-4, 2.0**-8])[:, None, None] * far
    )
    x = x + block.out_proj(torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).flatten(1))
    h = nn.functional.layer_norm(x, (16,), eps=1e-6)
    x = x + block.fc2(nn.functional.gelu(block.fc1(h)))
    last = nn.functional.layer_norm(x, (16,), eps=1e-6)[None]
    torch.testing.assert_close(
        vector, net.pool(last, torch.ones(1, 6, dtype=torch.bool)), rtol=1e-4, atol=1e-5
    )


@torch.inference_mode()
@pytest.mark.parametrize("pooling", ["attention", "class_token"])
def test_only_where_tiles_lie_to_each_other_counts(pooling: str) -> None:
    encoder = GridVit(GridVitParams(width=16, depth=2, heads=2, registers=2, pooling=pooling))
    tiles = tiles_of(CELLS)
    vector = run_encoder(encoder, tiles)
    order = torch.tensor([3, 0, 4, 1, 2])
    for same in (
        replace(tiles, corners=tiles.corners + 5 * SIDE),
        replace(tiles, corners=tiles.corners.flip(-1)),
        replace(tiles, corners=-tiles.corners),
        replace(tiles, corners=tiles.corners * 2, extent=tiles.extent * 2),  # um of a coarser resolution
        replace(tiles, features=tiles.features[:, order], corners=tiles.corners[:, order]),
    ):
        torch.testing.assert_close(run_encoder(encoder, same), vector, rtol=1e-4, atol=1e-5)
    for other in (replace(tiles, corners=tiles.corners[:, order]), replace(tiles, extent=tiles.extent * 2)):
        assert (run_encoder(encoder, other) - vector).abs().max() > 1e-3


def test_size_of_the_published_kind() -> None:
    """6 blocks of 768 with 12 heads, by arithmetic."""
    with torch.device("meta"):
        network = GridTransformer(GridVitParams(width=768, depth=6, heads=12).shape(768))
    block = 4 * (768**2 + 768) + 2 * 768 * 3072 + 3072 + 768 + 4 * 768
    pool = 4 * (768**2 + 768) + 768
    wanted = 6 * block + (768**2 + 768) + 768 + 2 * 768 + pool
    assert sum(p.numel() for p in network.parameters()) == wanted


def test_size_of_moozy() -> None:
    """42.8 M are published for its slide encoder; a mask token, which only training uses, is not counted here."""
    with torch.device("meta"):
        network = GridTransformer(GRIDS["moozy"].shape)
    count = sum(p.numel() for p in network.parameters())
    assert count + 768 == 42_829_056
    assert round(count / 1e6, 1) == 42.8


def test_identity_follows_the_seed_and_the_sizes_alone() -> None:
    def mark(**changes) -> str:
        return GridVit(GridVitParams(**{"width": 16, "heads": 2} | changes)).fingerprint

    assert mark() == mark(device="auto")
    assert len({mark(), mark(seed=1), mark(depth=3), mark(pooling="class_token"), mark(registers=1)}) == 5
    bag, corners = np.ones((2, 5), np.float16), np.array([[0, 0], [SIDE, 0]], np.float32)
    first, again, other = (
        encode_slide(GridVit(GridVitParams(width=16, seed=seed)), bag, corners, SIDE) for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert not np.allclose(first, other, atol=1e-2)


def test_what_is_refused() -> None:
    encoder = GridVit(GridVitParams(width=16, depth=1, heads=2))
    assert encoder.dim(6) == 16
    with pytest.raises(ValueError, match="'grid_vit' takes 6 features per tile, not 5"):
        encoder.dim(5)
    with pytest.raises(ValueError, match="3 heads cannot share a width of 16"):
        GridVitParams(width=16, heads=3)
    assert GridVitParams(width=16, heads=2).shape(6) == GridShape(6, 16, 4, 2, 64)
