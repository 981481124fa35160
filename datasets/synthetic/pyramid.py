"""Image pyramid built in one pass from strips of the base level, in flat memory."""

from typing import Protocol

import cv2
import numpy as np
import simplejpeg

TILE = 256
#: Downsampling between neighbouring levels; the base's sides are multiples of STEP ** (LEVELS - 1).
STEP, LEVELS = 4, 3
THUMBNAIL_PX = 768


class TileSink(Protocol):
    """A container that takes encoded tiles of several levels, each level row by row."""

    def tile(self, level: int, jpeg: bytes) -> None:
        """Take the next tile of a level."""
        ...


def encode_jpeg(rgbx: np.ndarray, quality: int) -> bytes:
    """JPEG (4:2:0) of uint8 ``[h, w, 4]``, the fourth channel ignored."""
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(rgbx), quality=quality, colorspace="RGBX", colorsubsampling="420", fastdct=False
    )


def level_sizes(width: int, height: int) -> list[tuple[int, int]]:
    """Width and height of every level."""
    return [(width // STEP**k, height // STEP**k) for k in range(LEVELS)]


class Pyramid:
    """Cuts strips into tiles, encodes them, and passes reduced strips to the next level.

    Parameters
    ----------
    sink
        Receives the tiles.
    width, height
        Base level, multiples of ``STEP ** (LEVELS - 1)``.
    quality
        JPEG quality.
    """

    def __init__(self, sink: TileSink, width: int, height: int, quality: int) -> None:
        if width % STEP ** (LEVELS - 1) or height % STEP ** (LEVELS - 1):
            raise ValueError(f"sides of {width} x {height} px are no multiples of {STEP ** (LEVELS - 1)}")
        self._sink = sink
        self._quality = quality
        self._pending: list[list[np.ndarray]] = [[] for _ in range(LEVELS)]
        self._shrink = 2 ** max(0, int(np.ceil(np.log2(max(width, height) / THUMBNAIL_PX))))
        self._thumbnail: list[np.ndarray] = []
        self._flat: dict[int, bytes] = {}

    def push(self, strip: np.ndarray) -> None:
        """Add the next rows, uint8 ``[h, width, 4]``; h a multiple of 256 except at the end."""
        self._thumbnail.append(_reduced(strip, self._shrink))
        self._push(0, strip)

    def finish(self) -> np.ndarray:
        """Write what is left and return a thumbnail, uint8 ``[h, w, 4]``, at most 768 px."""
        for level in range(LEVELS):
            if self._pending[level]:
                self._row(level, np.concatenate(self._pending[level]))
                self._pending[level] = []
        return np.concatenate(self._thumbnail)

    def _push(self, level: int, rows: np.ndarray) -> None:
        pending = self._pending[level]
        pending.append(rows)
        if sum(len(part) for part in pending) < TILE:
            return
        joined = np.concatenate(pending) if len(pending) > 1 else pending[0]
        whole = len(joined) // TILE * TILE
        self._pending[level] = [joined[whole:]] if whole < len(joined) else []
        for start in range(0, whole, TILE):
            self._row(level, joined[start : start + TILE])

    def _row(self, level: int, rows: np.ndarray) -> None:
        """Encode one row of tiles (edge tiles are completed by replication) and hand it down."""
        height, width = rows.shape[:2]
        padded = np.pad(rows, ((0, -height % TILE), (0, -width % TILE), (0, 0)), mode="edge")
        for x in range(0, padded.shape[1], TILE):
            self._sink.tile(level, self._encode(padded[:, x : x + TILE]))
        if level + 1 < LEVELS:
            self._push(level + 1, _reduced(rows, STEP))

    def _encode(self, tile: np.ndarray) -> bytes:
        packed = np.ascontiguousarray(tile).view(np.uint32)
        colour = int(packed[0, 0, 0])
        if packed[-1, -1, 0] != colour or (packed != colour).any():
            return encode_jpeg(tile, self._quality)
        if colour not in self._flat:  # glass: encoded once
            self._flat[colour] = encode_jpeg(tile, self._quality)
        return self._flat[colour]


def _reduced(rows: np.ndarray, factor: int) -> np.ndarray:
    if factor == 1:
        return rows
    size = (rows.shape[1] // factor, rows.shape[0] // factor)
    return cv2.resize(rows, size, interpolation=cv2.INTER_AREA)
