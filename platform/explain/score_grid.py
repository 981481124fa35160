"""A map as a small image: one pixel per tile where the tiles form a grid, a few per tile where they do not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from equipoise.platform.explain.tile_scores import TileScores

#: How far a corner may lie off the grid, as a share of a tile: corners are rounded to pixels of the level that is read.
_OFF = 0.06

#: Pixels per tile side where tiles overlap or follow several grids.
_FINE = 4

#: Longest side of a grid in pixels; sparse tiles on a huge slide get coarser pixels beyond it.
_MOST = 8192


@dataclass(frozen=True, eq=False)
class ScoreGrid:
    """Scores as an image.

    Attributes
    ----------
    values
        float32 ``[rows, columns]``; NaN where there is no tile.
    x, y
        Top-left corner of the image in level-0 pixels.
    cell
        Side of one of its pixels in level-0 pixels.
    regular
        Whether one pixel is one tile.
    """

    values: NDArray[np.float32]
    x: float
    y: float
    cell: float
    regular: bool

    @property
    def width(self) -> float:
        """Width in level-0 pixels."""
        return self.values.shape[1] * self.cell

    @property
    def height(self) -> float:
        """Height in level-0 pixels."""
        return self.values.shape[0] * self.cell


def score_grid(scores: TileScores) -> ScoreGrid:
    """The image of a map.

    Where tiles overlap, or corners do not lie on one grid (a segmentation that starts a grid of its own in each
    piece of tissue), a tile covers several pixels and the higher score is on top.
    """
    x, y, side = scores.x.astype(np.float64), scores.y.astype(np.float64), scores.side
    column, row = (
        np.rint((x - x.min()) / side).astype(np.int64),
        np.rint((y - y.min()) / side).astype(np.int64),
    )
    # Corners were rounded down: the grid runs through the middle of what rounding left.
    left, top = _phase(x - column * side), _phase(y - row * side)
    off = max(np.abs(x - left - column * side).max(), np.abs(y - top - row * side).max())
    width, height = int(column.max()) + 1, int(row.max()) + 1
    distinct = len(np.unique(row * width + column)) == len(scores)
    if off <= _OFF * side and distinct and max(width, height) <= _MOST:
        values = np.full((height, width), np.nan, np.float32)
        values[row, column] = scores.score
        return ScoreGrid(values, left, top, side, True)
    return _painted(scores)


def _phase(rest: NDArray[np.float64]) -> float:
    """Where a grid begins, from what is left of the corners: exact where the side is whole."""
    return float((rest.min() + rest.max()) / 2)


def _painted(scores: TileScores) -> ScoreGrid:
    x, y = scores.x - scores.x.min(), scores.y - scores.y.min()
    extent = float(max(x.max(), y.max())) + scores.side
    cell = max(scores.side / _FINE, extent / _MOST)
    span = max(1, round(scores.side / cell))
    column, row = np.rint(x / cell).astype(np.int64), np.rint(y / cell).astype(np.int64)
    values = np.full((int(row.max()) + span, int(column.max()) + span), np.nan, np.float32)
    for at in scores.order()[::-1]:
        values[row[at] : row[at] + span, column[at] : column[at] + span] = scores.score[at]
    return ScoreGrid(values, float(scores.x.min()), float(scores.y.min()), cell, False)
