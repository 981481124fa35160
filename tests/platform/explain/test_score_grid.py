"""The small image of a map: a pixel per tile on a grid, several where there is none."""

import numpy as np
import pytest
from tests.platform.explain.conftest import made_map

from equipoise.platform.explain.score_grid import score_grid


@pytest.mark.parametrize("side", [40.0, 67.36, 448.0 / 3])
@pytest.mark.parametrize("snap", [1, 4])
def test_every_tile_is_one_pixel_at_its_place(side: float, snap: int) -> None:
    """Corners are rounded down to pixels of the level that was read (``snap``)."""
    scores = made_map(23, 17, side)
    x, y = scores.x // snap * snap + 100, scores.y // snap * snap + 7
    grid = score_grid(made_map(23, 17, side, x=x, y=y))
    assert grid.regular
    assert np.isfinite(grid.values).sum() == len(scores)
    for at in range(len(scores)):
        column = int((x[at] + side / 2 - grid.x) // grid.cell)
        row = int((y[at] + side / 2 - grid.y) // grid.cell)
        assert grid.values[row, column] == scores.score[at]
    assert abs(grid.x - x.min()) <= snap


def test_overlapping_tiles_show_the_higher_score() -> None:
    grid = score_grid(made_map(x=[0, 16, 100], y=[0, 0, 50], score=[1.0, 2.0, -1.0], side=32.0))
    assert not grid.regular
    assert grid.cell == 8
    assert grid.values[0].tolist()[:6] == [1, 1, 2, 2, 2, 2]
    assert (grid.width, grid.height) == (pytest.approx(132, abs=4), pytest.approx(82, abs=4))
    rows, columns = np.nonzero(grid.values == -1)
    assert (columns.min() * 8, rows.min() * 8) == (pytest.approx(100, abs=4), pytest.approx(50, abs=4))


def test_pieces_of_tissue_with_grids_of_their_own() -> None:
    first = made_map(4, 3, 32.0)
    x = np.append(first.x, first.x + 32 * 9 + 13)
    y = np.append(first.y, first.y + 5)
    score = np.append(first.score, first.score + 3)
    grid = score_grid(made_map(x=x, y=y, score=score, side=32.0))
    assert not grid.regular
    at = int(score.argmax())
    rows, columns = np.nonzero(grid.values == np.float32(score.max()))
    assert grid.x + (columns.min() + columns.max() + 1) / 2 * grid.cell == pytest.approx(x[at] + 16, abs=4)
    assert grid.y + (rows.min() + rows.max() + 1) / 2 * grid.cell == pytest.approx(y[at] + 16, abs=4)


def test_two_tiles_on_a_huge_slide_stay_small() -> None:
    grid = score_grid(made_map(x=[0, 4_000_000], y=[0, 32], score=[1.0, 2.0], side=32.0))
    assert max(grid.values.shape) <= 8193
    assert np.isfinite(grid.values).sum() == 2
