"""Tile plans: a regular grid at the exact resolution, restricted to tiles with tissue."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from equipoise.datasets.slides.mpp import Sampling
from equipoise.datasets.slides.problems import SlideProblem
from equipoise.datasets.slides.tissue import Tissue


@dataclass(frozen=True, eq=False)
class TilePlan:
    """The tiles of one slide, row by row from the top.

    Attributes
    ----------
    x, y
        int32 ``[N]``, top-left corners in level-0 pixels.
    side
        Side of a tile in level-0 pixels; fractional where the scale is.
    px
        Side of a tile in output pixels.
    mpp
        um per output pixel that the tiles really have (the target, or the level's own within 2 %).
    share
        float32 ``[N]``, fraction of each tile that is tissue; only the planner knows it.
    """

    x: NDArray[np.int32]
    y: NDArray[np.int32]
    side: float
    px: int
    mpp: float
    share: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.x)

    def blocks(self, size: int) -> list[slice]:
        """Consecutive runs of at most ``size`` tiles."""
        return [slice(at, min(at + size, len(self))) for at in range(0, len(self), size)]

    def squares(self, size: int) -> list[NDArray[np.int64]]:
        """Indices of the tiles in each square of ``size`` by ``size`` grid cells, squares row by row."""
        if not len(self):
            return []
        column = np.rint(self.x / self.side).astype(np.int64) // size
        row = np.rint(self.y / self.side).astype(np.int64) // size
        order = np.lexsort((column, row))  # stable: within a square the plan's order stays
        ends = np.flatnonzero(np.diff(row[order]) | np.diff(column[order])) + 1
        return np.split(order, ends)


def grid_corners(
    dimensions: tuple[int, int], sampling: Sampling, level_size: tuple[int, int], tile_px: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Columns and rows of a grid of whole tiles, in level-0 pixels.

    Corners are rounded down, and to whole pixels of the level that is read: two neighbours may overlap by a
    fraction of a pixel, none reaches over the border of the slide, and no corner drifts (each is rounded by
    itself).

    Parameters
    ----------
    dimensions
        Slide at level 0 (width, height).
    sampling
        From :func:`~equipoise.datasets.slides.mpp.choose_sampling`.
    level_size
        Size of the level as it is read: its rounding may make it end before level 0 does.
    tile_px
        Tile side in output pixels.

    Returns
    -------
    int32 ``[columns]`` and ``[rows]``.
    """
    step = sampling.downsample / sampling.scale  # level-0 pixels per pixel of the level
    side = tile_px * sampling.downsample
    corners = []
    for full, level in zip(dimensions, level_size, strict=True):
        length = min(full, level * step)
        count = max(0, math.floor(length / side + 1e-9))
        on_level = np.floor(np.arange(count) * tile_px * sampling.scale + 1e-9)
        corners.append(np.floor(on_level * step + 1e-9).astype(np.int32))
    return corners[0], corners[1]


def plan_tiles(
    tissue: Tissue,
    sampling: Sampling,
    level_dimensions: Sequence[tuple[int, int]],
    tile_px: int,
    min_tissue: float,
    min_tiles: int = 1,
) -> TilePlan:
    """Choose the tiles of a slide.

    Parameters
    ----------
    tissue
        Mask over the whole slide.
    sampling
        Level and scale for the target resolution.
    level_dimensions
        Size of every level.
    tile_px
        Tile side in output pixels.
    min_tissue
        Smallest fraction of tissue in a kept tile.
    min_tiles
        Fewest tiles worth keeping a slide for.

    Raises
    ------
    SlideProblem
        ``no_tissue`` if the mask is empty or no tile holds enough of it; ``too_few_tiles`` if the slide has
        no room for a tile or fewer than ``min_tiles`` are kept.
    """
    width, height = tissue.dimensions
    side = tile_px * sampling.downsample
    if not tissue.mask.any():
        besides = " but ink" if tissue.ink is not None and tissue.ink.any() else ""
        raise SlideProblem("no_tissue", f"no tissue found: nothing{besides} is more saturated than glass")
    across, down = level_dimensions[sampling.level]
    level_size = (across // sampling.reduce, down // sampling.reduce)
    columns, rows = grid_corners(tissue.dimensions, sampling, level_size, tile_px)
    if not len(columns) or not len(rows):
        raise SlideProblem(
            "too_few_tiles", f"the slide has {width} x {height} px, one tile needs {side:.0f} x {side:.0f}"
        )
    x = np.tile(columns, len(rows))
    y = np.repeat(rows, len(columns))
    share = tissue.share_of(x, y, side)
    keep = share >= min_tissue
    if not keep.any():
        raise SlideProblem(
            "no_tissue",
            f"the slide is {tissue.share:.2%} tissue, but no tile holds {min_tissue:.0%} of it "
            f"(the fullest has {share.max():.0%})",
        )
    if keep.sum() < min_tiles:
        raise SlideProblem(
            "too_few_tiles", f"{int(keep.sum())} tiles with tissue, the study asks for {min_tiles}"
        )
    return TilePlan(x[keep], y[keep], side, tile_px, sampling.mpp, share[keep])
