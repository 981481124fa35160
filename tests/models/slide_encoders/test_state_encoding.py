"""Hidden states that are stored are those of the encoder; prototypes are means over groups that k-means would make."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from equipoise.models.slide_encoders.entries import RandomTransformerParams
from equipoise.models.slide_encoders.hidden_states import HiddenStates
from equipoise.models.slide_encoders.protocol import SlideTiles
from equipoise.models.slide_encoders.random_transformer import RandomTransformer
from equipoise.models.slide_encoders.state_encoding import encode_states, group_tiles

ENCODER = RandomTransformer(RandomTransformerParams(width=16, depth=6, heads=2))


def tiles_of(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 5)).astype(np.float16), rng.integers(0, 9, (n, 2)).astype(np.float32) * 112


def states_by_hand(bag: np.ndarray, corners: np.ndarray) -> list[torch.Tensor]:
    """Tokens behind the stem and each stage."""
    whole = torch.ones(1, len(bag), dtype=torch.bool)
    parts = torch.from_numpy(bag)[None], whole, torch.from_numpy(corners)[None], torch.full((1,), 112.0)
    state = ENCODER.stem(SlideTiles(*parts))
    found = [state.tokens[0]]
    for at in range(6):
        state = ENCODER.run_stage(at, state)
        found.append(state.tokens[0])
    return found


@torch.no_grad()
@pytest.mark.parametrize(
    ("kept", "stages"),
    [
        (HiddenStates("x"), (2, 4, 6)),
        (HiddenStates("x", blocks=2, skipped=1), (4, 6)),
        (HiddenStates("x", blocks=2, skipped=3, injected=True), (3,)),
    ],
)
def test_states_are_those_behind_the_groups(kept: HiddenStates, stages: tuple[int, ...]) -> None:
    bag, corners = tiles_of(7)
    states, counts = encode_states(ENCODER, kept, bag, corners, 112.0)
    by_hand = states_by_hand(bag, corners)
    wanted = torch.cat([by_hand[at] for at in stages], dim=1)
    assert states.dtype == np.float16
    np.testing.assert_allclose(states, wanted.numpy(), rtol=1e-3, atol=1e-3)
    assert counts.tolist() == [1] * 8


@torch.no_grad()
def test_prototypes_are_means_of_the_states_of_a_group() -> None:
    bag, corners = tiles_of(60)
    states, counts = encode_states(ENCODER, HiddenStates("x", prototypes=4), bag, corners, 112.0)
    groups = group_tiles(torch.from_numpy(bag), 4).numpy()
    last = states_by_hand(bag, corners)[6].numpy()
    assert states.shape == (5, 48)
    assert counts.tolist() == [1, *np.bincount(groups)]
    for k in range(4):
        np.testing.assert_allclose(states[1 + k, 32:], last[1:][groups == k].mean(0), rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(states[0, 32:], last[0], rtol=1e-3, atol=1e-3)
    few, ones = encode_states(ENCODER, HiddenStates("x", prototypes=60), bag, corners, 112.0)
    every, _ = encode_states(ENCODER, HiddenStates("x"), bag, corners, 112.0)
    assert np.array_equal(few, every)
    assert set(ones.tolist()) == {1}


def test_groups_are_as_tight_as_those_of_scikit_learn() -> None:
    """Within-group squares at most 5 % above the best of ten runs; planted groups are found again."""
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(6, 12)) * 4
    planted = rng.integers(0, 6, 400)
    x = torch.from_numpy(centres[planted] + rng.normal(size=(400, 12)))
    found = group_tiles(x, 6).numpy()
    pairs = {(int(a), int(b)) for a, b in zip(planted, found, strict=True)}
    assert len(pairs) == 6
    for data, count in ((x, 6), (torch.from_numpy(rng.normal(size=(300, 4))), 8)):
        groups = group_tiles(data, count)
        scaled = ((data - data.mean(0)) / data.std(0)).float()
        squares = sum(
            float((scaled[groups == k] - scaled[groups == k].mean(0)).square().sum()) for k in range(count)
        )
        best = KMeans(count, n_init=10, random_state=0).fit(scaled.numpy()).inertia_
        assert squares <= 1.05 * best
        assert torch.equal(groups, group_tiles(data, count))
        assert sorted(set(groups.tolist())) == list(range(count))


def test_equal_tiles_make_fewer_groups() -> None:
    bag = torch.zeros(9, 3)
    bag[4:] = 1.0
    groups = group_tiles(bag, 4)
    assert len(set(groups.tolist())) <= 4
    assert set(groups[:4].tolist()).isdisjoint(groups[4:].tolist())


def test_numbers_beyond_float16_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    stem = RandomTransformer.stem

    def large(self: RandomTransformer, tiles: SlideTiles):
        state = stem(self, tiles)
        state.tokens.mul_(1e6)
        return state

    monkeypatch.setattr(RandomTransformer, "stem", large)
    with pytest.raises(ValueError, match="beyond float16"):
        encode_states(ENCODER, HiddenStates("x"), *tiles_of(3), 112.0)
