"""The picture below a map: the slide, read once, or blank paper where there is no slide to read."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from equipoise.datasets.slides.problems import SlideProblem
from equipoise.datasets.slides.reader import SlideReader, open_slide
from equipoise.platform.explain.tile_scores import TileScores

log = logging.getLogger("equipoise")

#: Side of a crop of a tile in pixels, at most.
CROP_PX = 224

#: Blank paper has this many pixels on its longer side.
_PAPER = 1600


@dataclass(frozen=True, eq=False)
class SlidePicture:
    """A picture that covers a slide, or the part of it that has tiles.

    Attributes
    ----------
    pixels
        uint8 ``[h, w, 3]``.
    x, y, width, height
        What the picture covers, in level-0 pixels.
    mpp
        um per level-0 pixel; NaN where it is not known.
    area
        The part that was scanned, as the four above; all of it where the format states none.
    missing
        Why there is no slide below the map; empty where there is.
    crops
        Tile by its corner → uint8 ``[s, s, 3]``, s at most ``CROP_PX``.
    """

    pixels: NDArray[np.uint8]
    x: float
    y: float
    width: float
    height: float
    mpp: float
    area: tuple[float, float, float, float]
    missing: str = ""
    crops: dict[tuple[int, int], NDArray[np.uint8]] = field(default_factory=dict)

    @property
    def origin(self) -> tuple[int, int]:
        """Corner of the scanned area, from which QuPath counts; the corner of the slide on blank paper."""
        return (0, 0) if self.missing else (round(self.area[0]), round(self.area[1]))

    @property
    def scale(self) -> tuple[float, float]:
        """Picture pixels per level-0 pixel, across and down."""
        return self.pixels.shape[1] / self.width, self.pixels.shape[0] / self.height

    def resized(self, most: int) -> SlidePicture:
        """The same at no more than ``most`` pixels on the longer side."""
        import cv2

        height, width = self.pixels.shape[:2]
        if max(height, width) <= most:
            return self
        factor = most / max(height, width)
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        return replace(
            self, pixels=np.asarray(cv2.resize(self.pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
        )

    def scanned(self) -> SlidePicture:
        """The part that was scanned, to whole pixels of the picture."""
        left, top, width, height = self.area
        sx, sy = self.scale
        rows, columns = self.pixels.shape[:2]
        first = [max(math.floor((left - self.x) * sx), 0), max(math.floor((top - self.y) * sy), 0)]
        last = [
            min(math.ceil((left + width - self.x) * sx - 1e-9), columns),
            min(math.ceil((top + height - self.y) * sy - 1e-9), rows),
        ]
        return replace(
            self,
            pixels=self.pixels[first[1] : last[1], first[0] : last[0]],
            x=self.x + first[0] / sx,
            y=self.y + first[1] / sy,
            width=(last[0] - first[0]) / sx,
            height=(last[1] - first[1]) / sy,
        )


def slide_picture(
    slide: str | Path | None,
    maps: Sequence[TileScores],
    pixels: int,
    mpp: tuple[float | None, float | None] = (None, None),
    crops: int = 0,
) -> SlidePicture:
    """Read a slide for its maps, or return blank paper.

    Parameters
    ----------
    slide
        File, folder or address of the slide; None where there is none.
    maps
        Maps of this slide: blank paper covers their tiles, and the tiles at both ends of them are cropped.
    pixels
        Pixels that the picture may have at most.
    mpp
        Pixel sizes from the slides table and from the study, as :func:`open_slide` takes them.
    crops
        Tiles to crop at the high end of each map, and as many at the low end.
    """
    if slide is None:
        return blank_paper(maps, "the slide was not given")
    try:
        with open_slide(slide, *mpp) as reader:
            return _read(reader, maps, pixels, crops)
    except SlideProblem as problem:
        log.warning("%s: the maps are drawn on blank paper: %s", problem.where or slide, problem.what)
        return blank_paper(maps, problem.what)


def blank_paper(maps: Sequence[TileScores], missing: str) -> SlidePicture:
    """White paper over the tiles of the maps with half a tile around them."""
    corners = [(m.x.min(), m.y.min(), m.x.max() + m.side, m.y.max() + m.side, m.side) for m in maps]
    margin = max(corner[4] for corner in corners) / 2
    left, top = min(float(c[0]) for c in corners) - margin, min(float(c[1]) for c in corners) - margin
    width = max(float(c[2]) for c in corners) + margin - left
    height = max(float(c[3]) for c in corners) + margin - top
    factor = min(_PAPER / max(width, height), 1.0)
    shape = (max(1, round(height * factor)), max(1, round(width * factor)), 3)
    area = (left, top, width, height)
    return SlidePicture(np.full(shape, 255, np.uint8), *area, math.nan, area, missing)


def _read(reader: SlideReader, maps: Sequence[TileScores], pixels: int, crops: int) -> SlidePicture:
    width, height = reader.dimensions
    _require_inside(maps, width, height, str(reader.path))
    shrink = max(1.0, math.sqrt(width * height / pixels))
    # A level of the slide that is a little coarser is read as it is, not made from one that is many times as large.
    shrink = min((d for d in reader.level_downsamples if shrink <= d <= 2 * shrink), default=shrink)
    thumbnail, _ = reader.thumbnail(reader.mpp * shrink)
    chosen = {(int(m.x[at]), int(m.y[at])): m.side for m in maps for end in ends(m, crops) for at in end}
    squares = {corner: read_tile(reader, corner, side) for corner, side in chosen.items()}
    whole = (0.0, 0.0, float(width), float(height))
    area = whole if reader.bounds is None else reader.bounds
    return SlidePicture(thumbnail, *whole, reader.mpp, area, "", squares)


def ends(scores: TileScores, many: int) -> tuple[list[int], list[int]]:
    """Indices of the ``many`` highest tiles from the highest, and of as many lowest from the lowest; none twice.

    Of fewer than ``2 * many`` tiles, half are at either end.
    """
    order = scores.order().tolist()
    top = min(many, (len(order) + 1) // 2)
    return order[:top], order[::-1][: min(many, len(order) - top)]


def read_tile(reader: SlideReader, corner: tuple[int, int], side: float) -> NDArray[np.uint8]:
    """A tile by its corner and side in level-0 pixels, at most ``CROP_PX`` wide; a slide is never upsampled."""
    px = min(CROP_PX, max(1, math.floor(side)))
    return reader.read(*corner, side, side, (px, px))


def _require_inside(maps: Sequence[TileScores], width: int, height: int, where: str) -> None:
    """Tiles that leave the slide belong to another file, or to another level."""
    for scores in maps:
        right, bottom = float(scores.x.max()) + scores.side, float(scores.y.max()) + scores.side
        slack = scores.side / 2
        if (
            scores.x.min() < -slack
            or scores.y.min() < -slack
            or right > width + slack
            or bottom > height + slack
        ):
            raise SlideProblem(
                "unreadable",
                f"tiles reach to {right:.0f} x {bottom:.0f}, the slide has {width} x {height} level-0 pixels: the "
                "tiles are not of this file",
                where=where,
            )
