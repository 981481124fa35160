"""Pictures of single tiles: the only part of an explanation that opens a slide."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import simplejpeg

from equipoise.datasets.atomic_io import atomic_path
from equipoise.datasets.slides.problems import SlideProblem
from equipoise.datasets.slides.reader import open_slide
from equipoise.platform.explain.tile_scores import TileScores

log = logging.getLogger("equipoise")

#: Side of a picture in pixels, at most; a slide is never upsampled.
MOST_PX = 224
QUALITY = 88


def crop_name(x: int, y: int) -> str:
    """File name of the picture of a tile."""
    return f"{x}_{y}.jpg"


def write_crops(
    scores: TileScores,
    rows: Sequence[int],
    slide: str | Path,
    folder: Path,
    *,
    mpp: float | None,
    override: float | None,
) -> str:
    """Cut tiles out of a slide into ``folder``; those that are there stay.

    Parameters
    ----------
    scores
        The map of the slide.
    rows
        Positions of the tiles in it.
    slide
        File or address.
    mpp, override
        um per pixel that the slides table and the study give.

    Returns
    -------
    str
        Why there are no pictures, or not all of them; empty if there are.
    """
    wanted = [
        row for row in rows if not (folder / crop_name(int(scores.x[row]), int(scores.y[row]))).is_file()
    ]
    if not wanted:
        return ""
    px = max(min(MOST_PX, int(scores.side)), 1)
    problem = ""
    try:
        with open_slide(slide, mpp, override) as reader:
            for row in wanted:
                x, y = int(scores.x[row]), int(scores.y[row])
                try:
                    pixels = reader.read(x, y, scores.side, scores.side, (px, px))
                except SlideProblem as unreadable:
                    problem = unreadable.line
                    continue
                folder.mkdir(parents=True, exist_ok=True)
                with atomic_path(folder / crop_name(x, y)) as temporary:
                    temporary.write_bytes(simplejpeg.encode_jpeg(pixels, quality=QUALITY, colorspace="RGB"))
    except SlideProblem as closed:
        return closed.line
    return problem
