"""Where the tiles of a patient lie, in um, on one plane for all of the patient's slides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: Rows of tiles on the plane: slide encoders with a table of places know no more (Prov-GigaPath: 1000).
ROWS = 1000


def corners_um(
    coords: np.ndarray, tiles: Sequence[int], mpp: Sequence[float], extent: float
) -> np.ndarray | None:
    """Top-left corners in um; a single slide lies as it is.

    Several slides are moved by whole tiles: one below the other, a row of tiles between them, each from its own first
    tile on, and into further columns where :data:`ROWS` would not do. No two tiles of different slides share a place.

    Parameters
    ----------
    coords
        ``[N, 2]`` corners in level-0 px of their own slide, slides one behind the other.
    tiles
        Tiles of each slide.
    mpp
        um per level-0 px of each slide; NaN: not known.
    extent
        Side of a tile in um.

    Returns
    -------
    ``[N, 2]`` float32; None if a pixel size is not known.

    Examples
    --------
    >>> corners_um(np.array([[0, 0], [448, 448], [448, 0]]), (2, 1), (0.25, 0.25), 112.0).tolist()
    [[0.0, 0.0], [112.0, 112.0], [0.0, 336.0]]
    """
    if len(mpp) != len(tiles) or not np.isfinite([*mpp, extent]).all():
        return None
    placed = coords * np.repeat(np.asarray(mpp, np.float64), tiles)[:, None]
    if len(tiles) > 1:
        column = row = widest = 0.0
        for stop, count in zip(np.cumsum(tiles), tiles, strict=True):
            if not count:
                continue
            part = placed[stop - count : stop]
            part -= np.floor(part.min(0) / extent + 1e-6) * extent
            width, height = np.floor(part.max(0) / extent + 1e-6) + 2
            if row and row + height > ROWS:
                column, row, widest = column + widest, 0.0, 0.0
            part += np.array([column, row]) * extent
            row, widest = row + height, max(widest, width)
    return placed.astype(np.float32)
