"""Pictures of single tiles, in the folder of the slide's viewer: it lists them, and so do the report and a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from equipoise.datasets.atomic_io import atomic_path
from equipoise.datasets.slides.problems import SlideProblem
from equipoise.datasets.slides.reader import open_slide
from equipoise.platform.explain.deep_zoom import jpeg
from equipoise.platform.explain.slide_picture import read_tile
from equipoise.platform.explain.tile_scores import TileScores

#: Folder of the pictures in that of the viewer.
CROPS = "tiles"


def files_of(page: Path) -> Path:
    """The folder of pictures beside the page of a viewer."""
    return page.with_name(f"{page.stem}_files")


def crop_path(page: Path, scores: TileScores, at: int) -> Path:
    """Where the picture of a tile lies, if there is one."""
    return files_of(page) / CROPS / crop_name(int(scores.x[at]), int(scores.y[at]))


def write_crop(pixels: NDArray[np.uint8], path: Path) -> None:
    """Write the picture of a tile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(jpeg(pixels))


def crop_name(x: int, y: int) -> str:
    """File name of the picture of a tile."""
    return f"{x}_{y}.jpg"


def write_crops(
    scores: TileScores,
    rows: Sequence[int],
    slide: str | Path,
    page: Path,
    *,
    mpp: float | None,
    override: float | None,
) -> str:
    """Cut tiles out of a slide; those that are there stay.

    Parameters
    ----------
    scores
        The map of the slide.
    rows
        Positions of the tiles in it.
    slide
        File or address.
    page
        The page of the slide's viewer, which need not be there.
    mpp, override
        um per pixel that the slides table and the study give.

    Returns
    -------
    str
        Why there are no pictures, or not all of them; empty if there are.
    """
    wanted = [row for row in rows if not crop_path(page, scores, row).is_file()]
    if not wanted:
        return ""
    problem = ""
    try:
        with open_slide(slide, mpp, override) as reader:
            for row in wanted:
                corner = int(scores.x[row]), int(scores.y[row])
                try:
                    pixels = read_tile(reader, corner, scores.side)
                except SlideProblem as unreadable:
                    problem = unreadable.line
                    continue
                write_crop(pixels, crop_path(page, scores, row))
    except SlideProblem as closed:
        return closed.line
    return problem
