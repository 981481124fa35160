"""The transformer with random weights: its sums by hand, its identity, and what it sees of places."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from equipoise.models.slide_encoders.entries import RandomTransformerParams
from equipoise.models.slide_encoders.protocol import SlideTiles, encode_slide
from equipoise.models.slide_encoders.random_transformer import RandomTransformer, positions

SMALL = RandomTransformerParams(width=16, depth=2, heads=2)


def slide(n: int = 9, dim: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, dim)).astype(np.float16), (rng.integers(0, 30, (n, 2)) * 112).astype(
        np.float32
    )


def by_hand(encoder: RandomTransformer, bag: np.ndarray, corners: np.ndarray, extent: float) -> Tensor:
    """One token and one head after the other, in float64."""
    width, heads = encoder.params.width, encoder.params.heads

    def norm(x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()

    tokens = norm(torch.from_numpy(bag).double()) @ encoder._embedding(bag.shape[1]).double()
    places = (corners - corners.min(0)) / extent
    for token, (column, row) in zip(tokens, places, strict=True):
        waves = [10000 ** (-4 * k / width) for k in range(width // 4)]
        angles = [[place * wave for wave in waves] for place in (row, column)]
        token += torch.tensor(
            [f(a) for axis in angles for f in (math.sin, math.cos) for a in axis], dtype=torch.float64
        )
    x = torch.cat([encoder.cls_token[0].double(), tokens])
    for block in encoder.blocks:
        p = {name: value.double() for name, value in block.named_parameters()}
        q, k, v = (norm(x) @ p["qkv"]).chunk(3, dim=1)
        mixed = []
        for head in range(heads):
            part = slice(head * width // heads, (head + 1) * width // heads)
            scores = (q[:, part] @ k[:, part].T / math.sqrt(width / heads)).exp()
            mixed.append(scores / scores.sum(1, keepdim=True) @ v[:, part])
        x = x + torch.cat(mixed, 1) @ p["proj"]
        hidden = norm(x) @ p["fc1"]
        x = x + (hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2) @ p["fc2"]
    x = norm(x)
    return torch.cat([x[0], x[1:].mean(0)])


def test_equals_the_same_sums_by_hand() -> None:
    encoder = RandomTransformer(SMALL)
    bag, corners = slide()
    vector = encode_slide(encoder, bag, corners, 112.0)
    assert vector.shape == (encoder.dim(6),) == (32,)
    np.testing.assert_allclose(vector, by_hand(encoder, bag, corners, 112.0).numpy(), rtol=2e-3, atol=2e-3)


def test_the_seed_and_the_sizes_decide() -> None:
    bag, corners = slide()
    first, again = (encode_slide(RandomTransformer(SMALL), bag, corners, 112.0) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    other = RandomTransformer(SMALL.model_copy(update={"seed": 1}))
    assert not np.array_equal(first, encode_slide(other, bag, corners, 112.0))
    changes = ({}, {"seed": 1}, {"depth": 3}, {"width": 32}, {"heads": 4})
    prints = {RandomTransformer(SMALL.model_copy(update=change)).fingerprint for change in changes}
    assert len(prints) == len(changes)


def test_places_count_in_units_of_tiles() -> None:
    encoder = RandomTransformer(SMALL)
    bag, corners = slide()
    vector = encode_slide(encoder, bag, corners, 112.0)
    np.testing.assert_allclose(encode_slide(encoder, bag, corners * 2, 224.0), vector, atol=2e-3)
    np.testing.assert_allclose(encode_slide(encoder, bag, corners + 1120, 112.0), vector, atol=2e-3)
    assert np.abs(encode_slide(encoder, bag, corners, 224.0) - vector).max() > 0.05
    order = np.random.default_rng(3).permutation(len(bag))
    shuffled = encode_slide(encoder, bag[order], corners[order], 112.0)
    np.testing.assert_allclose(shuffled, vector, atol=3e-3)  # a bag has no order
    assert np.abs(encode_slide(encoder, bag[order], corners, 112.0) - vector).max() > 0.05  # but places


def test_rows_come_before_columns() -> None:
    corners = torch.tensor([[[0.0, 0.0], [112.0, 0.0], [0.0, 112.0]]])
    tiles = SlideTiles(
        torch.zeros(1, 3, 1), torch.ones(1, 3, dtype=torch.bool), corners, torch.tensor([112.0])
    )
    first, right, down = positions(tiles, 16)[0]
    assert torch.equal(right[:8], first[:8])
    assert torch.equal(down[8:], first[8:])
    assert down[0] == pytest.approx(math.sin(1))
    assert right[8] == pytest.approx(math.sin(1))


def test_sizes_that_cannot_be() -> None:
    for wrong in ({"width": 20}, {"heads": 3}, {"depth": 0}):
        with pytest.raises(ValidationError):
            RandomTransformerParams.model_validate(wrong)
