"""Checks the fast path on a slide: a few of its tiles are compared with OpenSlide before any is used."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from equipoise.datasets.slides.jpeg_tiff import JpegLevel, JpegTiff
from equipoise.datasets.slides.problems import SlideProblem

#: Tiles that must be equal, and tiles that are tried until that many are compared.
TILES, _TRIES = 3, 12

#: Reads a region through OpenSlide: corner at level 0, size in pixels of the level -> uint8 [h, w, 3].
Reference = Callable[[int, int, tuple[int, int]], NDArray[np.uint8]]


def self_check(tiff: JpegTiff, level: JpegLevel, downsample: float, reference: Reference) -> str:
    """Compare three tiles, chosen by a generator that is seeded with the level's own shape.

    Tiles are drawn from the larger half: those hold tissue, and a wrong offset or colour shows.

    Parameters
    ----------
    tiff, level
        The level to check.
    downsample
        Level-0 pixels per pixel of the level, a whole number.
    reference
        OpenSlide.

    Returns
    -------
    Why this level has to be read through OpenSlide; empty if it need not. Tiles that neither can read are
    ignored, and so are those that only strict decoding refuses, as long as others are equal.
    """
    rng = np.random.default_rng([level.width, level.height, len(level.counts)])
    present = np.flatnonzero(level.counts)
    large = present[level.counts[present] >= np.median(level.counts[present])] if len(present) else present
    equal, refused = 0, ""
    for index in rng.permutation(large)[:_TRIES].tolist():
        x, y = index % level.columns * level.tile[0], index // level.columns * level.tile[1]
        size = (min(level.tile[0], level.width - x), min(level.tile[1], level.height - y))
        ours, problems = tiff.windows(level, np.array([x]), np.array([y]), size)
        try:
            theirs = reference(round(x * downsample), round(y * downsample), size)
        except SlideProblem:
            continue
        if problems:
            refused = problems[0]
            continue
        if not np.array_equal(ours[0], theirs):
            worst = int(np.abs(ours[0].astype(int) - theirs).max())
            return f"pixels differ from OpenSlide's by up to {worst} in the tile at x={x} y={y}"
        equal += 1
        if equal == TILES:
            break
    if equal:
        return ""
    return f"only OpenSlide reads its tiles ({refused})" if refused else "no tile could be compared"
