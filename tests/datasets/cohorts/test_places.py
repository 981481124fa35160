"""Slides of a patient on one plane: whole tiles apart, nothing lost, nothing on top of something else."""

import numpy as np
import pytest

from equipoise.datasets.cohorts.places import ROWS, corners_um

EXTENT = 112.0


def grid(columns: int, rows: int, side_px: int, offset: int = 0) -> np.ndarray:
    """Corners in px of a full grid of tiles."""
    xy = np.stack(np.meshgrid(np.arange(columns), np.arange(rows), indexing="ij"), -1).reshape(-1, 2)
    return (xy * side_px + offset).astype(np.int32)


def cells(corners: np.ndarray) -> np.ndarray:
    return np.floor(corners / EXTENT + 1e-4).astype(int)


def test_one_slide_lies_as_it_is() -> None:
    coords = grid(3, 4, 448, 900)
    np.testing.assert_allclose(corners_um(coords, (12,), (0.25,), EXTENT), coords * 0.25)


def test_seventeen_slides_share_no_place() -> None:
    """The published code forgets to add up heights: third and later slides overlap."""
    rng = np.random.default_rng(0)
    parts, mpp = [], []
    for _ in range(17):
        scale = float(rng.choice([0.25, 0.5]))
        parts.append(grid(*rng.integers(3, 9, 2), round(EXTENT / scale), int(rng.integers(0, 5000))))
        mpp.append(scale)
    placed = corners_um(np.concatenate(parts), [len(p) for p in parts], mpp, EXTENT)
    assert placed is not None
    found = cells(placed)
    assert len(np.unique(found, axis=0)) == len(found) == sum(map(len, parts))
    assert found.min() >= 0
    stop = 0
    for part, scale in zip(parts, mpp, strict=True):  # inside a slide nothing moves
        start, stop = stop, stop + len(part)
        np.testing.assert_allclose(
            np.diff(placed[start:stop], axis=0), np.diff(part * scale, axis=0), atol=0.05
        )


def test_what_is_too_tall_goes_into_further_columns() -> None:
    tall = grid(2, 390, 448)
    placed = corners_um(np.concatenate([tall] * 5), [len(tall)] * 5, [0.25] * 5, EXTENT)
    assert placed is not None
    found = cells(placed)
    assert len(np.unique(found, axis=0)) == 5 * len(tall)
    assert found[:, 1].max() < ROWS
    assert found[:, 0].max() < 20


def test_a_slide_without_tiles_takes_no_room() -> None:
    coords = grid(2, 2, 448)
    with_gap = corners_um(np.concatenate([coords, coords]), (4, 0, 4), (0.25, 0.25, 0.25), EXTENT)
    without = corners_um(np.concatenate([coords, coords]), (4, 4), (0.25, 0.25), EXTENT)
    np.testing.assert_array_equal(with_gap, without)


@pytest.mark.parametrize(("mpp", "extent"), [((), EXTENT), ((np.nan,), EXTENT), ((0.5,), np.nan)])
def test_what_is_not_known_is_not_guessed(mpp, extent) -> None:
    assert corners_um(grid(2, 2, 448), (4,), mpp, extent) is None
