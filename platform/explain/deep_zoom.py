"""A picture as a Deep Zoom pyramid of JPEG tiles in a folder, within a budget of bytes.

Layout: level ``L`` has the picture at ``1 / 2**(top - L)`` of its size in tiles ``<level>/<column>_<row>.jpg`` without
overlap; level 0 is one pixel (Deep Zoom file format, Microsoft, 2008).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

#: Side of a tile in pixels, and quality of its JPEG.
TILE, QUALITY = 256, 78


@dataclass(frozen=True)
class DeepZoom:
    """What was written.

    Attributes
    ----------
    width, height
        Size of the finest level in pixels.
    files, size
        Number of tiles and their bytes.
    """

    width: int
    height: int
    files: int
    size: int


def write_deep_zoom(pixels: NDArray[np.uint8], folder: Path, budget: int) -> DeepZoom:
    """Write the pyramid of a picture.

    Parameters
    ----------
    pixels
        uint8 ``[h, w, 3]``; halved until its pyramid fits into the budget.
    folder
        Where the levels go; created.
    budget
        Most bytes of all tiles.
    """
    while True:
        levels, size = _encoded(pixels, budget)
        if size <= budget or max(pixels.shape[:2]) <= TILE:
            break
        pixels = _halved(pixels)
    top = len(levels) - 1
    for at, tiles in enumerate(levels):
        level = folder / str(top - at)
        level.mkdir(parents=True, exist_ok=True)
        for (column, row), data in tiles.items():
            (level / f"{column}_{row}.jpg").write_bytes(data)
    height, width = pixels.shape[:2]
    return DeepZoom(width, height, sum(len(tiles) for tiles in levels), size)


def _encoded(pixels: NDArray[np.uint8], budget: int) -> tuple[list[dict[tuple[int, int], bytes]], int]:
    """The levels from the finest, and their bytes; given up as soon as they exceed the budget."""
    levels, size = [], 0
    for _ in range(math.ceil(math.log2(max(pixels.shape[:2]))) + 1):
        tiles = _tiles(pixels)
        size += sum(len(data) for data in tiles.values())
        levels.append(tiles)
        if size > budget:
            break
        pixels = _halved(pixels)
    return levels, size


def _tiles(pixels: NDArray[np.uint8]) -> dict[tuple[int, int], bytes]:
    height, width = pixels.shape[:2]
    return {
        (left // TILE, top // TILE): jpeg(pixels[top : top + TILE, left : left + TILE])
        for top in range(0, height, TILE)
        for left in range(0, width, TILE)
    }


def jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """RGB pixels as JPEG."""
    import simplejpeg

    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), QUALITY, colorsubsampling="420")


def _halved(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Half as large, rounded up, averaged over the pixels of each new one."""
    import cv2

    height, width = pixels.shape[:2]
    size = (max(1, -(-width // 2)), max(1, -(-height // 2)))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
