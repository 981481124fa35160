"""What every slide encoder promises: one vector per slide, whatever else is in the batch."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from equipoise.models.slide_encoders.card import GATED_ATTENTION, Pairing
from equipoise.models.slide_encoders.entries import (
    ENTRIES,
    GatedAttentionParams,
    GridVitParams,
    MeanStdParams,
    RandomTransformerParams,
    SlideEncoderParams,
    params_of,
)
from equipoise.models.slide_encoders.gated_attention import GatedAttentionEncoder, GatedAttentionNetwork
from equipoise.models.slide_encoders.grid_vit import GridVit
from equipoise.models.slide_encoders.mean_std import MeanStd
from equipoise.models.slide_encoders.protocol import (
    SlideEncoder,
    SlideTiles,
    SlideTokens,
    WithoutStages,
    encode_slide,
    run_encoder,
)
from equipoise.models.slide_encoders.random_transformer import RandomTransformer

LENGTHS, DIM = (7, 1, 4), 12


def padded(fill: float, dim: int = DIM) -> SlideTiles:
    """Three slides of different lengths; ``fill`` stands where there is no tile."""
    rng = np.random.default_rng(0)
    longest = max(LENGTHS)
    features = np.full((3, longest, dim), fill, np.float32)
    corners = np.full((3, longest, 2), fill, np.float32)
    mask = np.zeros((3, longest), bool)
    for at, n in enumerate(LENGTHS):
        features[at, :n] = rng.normal(size=(n, dim))
        corners[at, :n] = rng.integers(0, 40, (n, 2)) * 128.0
        mask[at, :n] = True
    tensors = (torch.from_numpy(array) for array in (features, mask, corners))
    return SlideTiles(*tensors, torch.full((3,), 128.0))


def feather(folder: Path) -> SlideEncoder:
    """With random weights, out of a file."""
    card = replace(GATED_ATTENTION["feather_uni"], pairing=Pairing("uni", dim=DIM), renames=())
    torch.manual_seed(0)
    file = folder / card.file
    save_file(GatedAttentionNetwork(card).state_dict(), file)
    card = replace(card, sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    return GatedAttentionEncoder(params_of(card, GatedAttentionParams)(weights=str(file)))


MAKE: dict[str, Any] = {
    "mean_std": lambda folder: MeanStd(MeanStdParams()),
    "random_transformer": lambda folder: RandomTransformer(RandomTransformerParams(width=32, depth=2)),
    "grid_vit": lambda folder: GridVit(GridVitParams(width=32, depth=2, registers=1)),
    "feather": feather,
}


@pytest.mark.parametrize("name", list(MAKE))
def test_neither_neighbours_nor_padding_matter(name: str, tmp_path: Path) -> None:
    encoder: SlideEncoder = MAKE[name](tmp_path)
    with torch.inference_mode():
        zeros, junk = run_encoder(encoder, padded(0.0)), run_encoder(encoder, padded(float("nan")))
        torch.testing.assert_close(zeros, junk)
        assert zeros.shape == (3, encoder.dim(DIM))
        tiles = padded(0.0)
        for at, n in enumerate(LENGTHS):
            alone = SlideTiles(
                tiles.features[at : at + 1, :n],
                tiles.mask[at : at + 1, :n],
                tiles.corners[at : at + 1, :n],
                tiles.extent[at : at + 1],
            )
            torch.testing.assert_close(run_encoder(encoder, alone)[0], zeros[at], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", list(MAKE))
def test_stages_are_counted_and_keep_their_tokens(name: str, tmp_path: Path) -> None:
    encoder: SlideEncoder = MAKE[name](tmp_path)
    with torch.inference_mode():
        state = encoder.stem(padded(0.0))
        assert state.token_mask.shape == state.tokens.shape[:2] == (3, max(LENGTHS) + state.prefix)
        for at in range(encoder.stages):
            after = encoder.run_stage(at, state)
            assert after.tokens.shape == state.tokens.shape
            assert not torch.equal(after.tokens, state.tokens)
            state = after
        assert torch.equal(encoder.readout(state), run_encoder(encoder, padded(0.0)))
        with pytest.raises(IndexError):
            encoder.run_stage(encoder.stages, state)


class Widest(WithoutStages):
    """The largest feature of a slide, times the side of its tiles."""

    fingerprint = "widest 1"

    def dim(self, tile_dim: int) -> int:
        return 1

    def readout(self, state: SlideTokens) -> Tensor:
        return state.tokens.amax((1, 2))[:, None] * state.tiles.extent[:, None]


def test_a_slide_encoder_knows_the_side_of_a_tile() -> None:
    bag = np.array([[1, 2], [5, 3]], np.float16)
    vector = encode_slide(Widest(), bag, np.zeros((2, 2), np.float32), 100.0)
    assert (vector.dtype, vector.tolist()) == (np.float16, [500.0])
    bag.flags.writeable = False  # as a store's bags are
    assert encode_slide(Widest(), bag, np.zeros((2, 2), np.float32), 10.0).tolist() == [50.0]


def test_what_is_refused() -> None:
    for bag, corners in (
        (np.zeros((0, 4)), np.zeros((0, 2))),
        (np.zeros(4), np.zeros((4, 2))),
        (np.zeros((3, 4)), np.zeros((2, 2))),
    ):
        with pytest.raises(ValueError, match="a bag is"):
            encode_slide(Widest(), bag.astype(np.float16), corners.astype(np.float32), 1.0)
    good = (np.ones((2, 4), np.float16), np.zeros((2, 2), np.float32))
    with pytest.raises(ValueError, match="side in um, not"):
        encode_slide(Widest(), *good, 0.0)
    with pytest.raises(ValueError, match="beyond float16"):
        encode_slide(Widest(), *good, 1e9)
    tiles = padded(0.0)
    with pytest.raises(ValueError, match="without tiles"):
        SlideTiles(tiles.features, tiles.mask & False, tiles.corners, tiles.extent)
    with pytest.raises(ValueError, match=r"\[B, N, D\]"):
        SlideTiles(tiles.features, tiles.mask[:, :3], tiles.corners, tiles.extent)


def test_entries_say_what_they_take() -> None:
    assert len(ENTRIES) > 0
    for name, (line, params, target) in ENTRIES.items():
        assert line
        assert issubclass(params, SlideEncoderParams)
        assert target.startswith("equipoise.models.slide_encoders."), name
    assert SlideEncoderParams.pairings == ()  # one encoder's pairings are not another's
