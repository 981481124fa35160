"""Slides of more than a gigapixel: the encoded tiles of a few small ones, laid out again and again.

For sharding, back-pressure and viewers. Pixels are rendered and encoded once per small slide; memory holds their
encoded tiles only.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from equipoise.datasets.synthetic.pyramid import LEVELS, TileSink

#: Different small slides in a mosaic.
BASES = 3
_THUMBNAIL_PX = 1000


class TileAlbum:
    """A sink that keeps the encoded tiles of one square slide whose sides are whole tiles on every level."""

    def __init__(self) -> None:
        self.tiles: list[list[bytes]] = [[] for _ in range(LEVELS)]

    def tile(self, level: int, jpeg: bytes) -> None:
        """Take the next tile of a level."""
        self.tiles[level].append(jpeg)


def arrangement(rng: np.random.Generator, repeats: int) -> np.ndarray:
    """Which small slide lies where, ``[repeats, repeats]``."""
    return rng.integers(0, BASES, (repeats, repeats))


def lay_tiles(sink: TileSink, albums: Sequence[TileAlbum], places: np.ndarray) -> None:
    """Hand the tiles of the whole mosaic to a sink, level by level, row by row."""
    for level in range(LEVELS):
        across = round(len(albums[0].tiles[level]) ** 0.5)
        for row in places:
            for start in range(0, across * across, across):
                for base in row:
                    for jpeg in albums[base].tiles[level][start : start + across]:
                        sink.tile(level, jpeg)


def lay_pictures(pictures: Sequence[np.ndarray], places: np.ndarray) -> np.ndarray:
    """Masks of the small slides, put together."""
    return np.concatenate([np.concatenate([pictures[base] for base in row], axis=1) for row in places])


def lay_thumbnails(thumbnails: Sequence[np.ndarray], places: np.ndarray) -> np.ndarray:
    """One thumbnail of the mosaic from those of the small slides."""
    side = _THUMBNAIL_PX // len(places)
    return lay_pictures(
        [cv2.resize(t, (side, side), interpolation=cv2.INTER_AREA) for t in thumbnails], places
    )
