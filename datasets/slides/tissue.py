"""Tissue masks: saturation above a bounded Otsu threshold, without ink and areas out of focus.

Glass is grey, stained tissue is not. Plain Otsu always splits an image in two, a blank slide too; bounded to
[5, 25] (of 255) it finds nothing on glass and still follows pale or dark stains. Sizes are in micrometres, so
that the mask does not depend on the resolution it happens to be computed at.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from equipoise.datasets.slides.artefacts import ArtefactParams, find_blur, find_ink
from equipoise.datasets.slides.reader import SlideReader


@dataclass(frozen=True)
class TissueParams(ArtefactParams):
    """Parameters of the tissue mask; part of the store's specification."""

    #: Resolution of the mask in um/px.
    mpp: float = 8.0
    #: Bounds of the Otsu threshold on HSV saturation (0-255).
    threshold_min: int = 5
    threshold_max: int = 25
    #: Brightest channel below this is scanner black, not tissue.
    black: int = 25
    #: Median filter, closing and smallest piece or hole, in um and um^2.
    median_um: float = 28.0
    close_um: float = 40.0
    min_area_um2: float = 10_000.0


@dataclass(frozen=True, eq=False)
class Tissue:
    """A tissue mask over a whole slide.

    Attributes
    ----------
    mask
        bool ``[h, w]``, covering the slide exactly.
    dimensions
        Width and height of the slide at level 0.
    threshold
        Saturation above which a pixel counted.
    thumbnail
        The image that the mask was computed from, uint8 ``[h, w, 3]``.
    mpp
        um per mask pixel.
    ink, blur
        bool ``[h, w]``, what was taken for pen marks and for tissue out of focus; no part of ``mask``. ``None``:
        not looked for.
    """

    mask: NDArray[np.bool_]
    dimensions: tuple[int, int]
    threshold: int
    thumbnail: NDArray[np.uint8]
    mpp: float
    ink: NDArray[np.bool_] | None = None
    blur: NDArray[np.bool_] | None = None

    @property
    def share(self) -> float:
        """Fraction of the slide that is tissue."""
        return float(self.mask.mean())

    def share_of(self, x: NDArray[np.int32], y: NDArray[np.int32], side: float) -> NDArray[np.float32]:
        """Fraction of tissue in squares of ``side`` level-0 pixels at top-left corners ``x``, ``y`` (each
        ``[N]``).

        Exact for fractional borders: the summed-area table is linear between mask pixels.
        """
        height, width = self.mask.shape
        table = np.zeros((height + 1, width + 1))
        np.cumsum(np.cumsum(self.mask, axis=0, dtype=np.float64), axis=1, out=table[1:, 1:])
        sx, sy = width / self.dimensions[0], height / self.dimensions[1]
        left, right = x * sx, np.minimum((x + side) * sx, width)
        top, bottom = y * sy, np.minimum((y + side) * sy, height)
        area = (
            _bilinear(table, right, bottom)
            - _bilinear(table, left, bottom)
            - _bilinear(table, right, top)
            + _bilinear(table, left, top)
        )
        return (area / (side * side * sx * sy)).astype(np.float32)


def find_tissue(reader: SlideReader, params: TissueParams) -> Tissue:
    """Compute the tissue mask of a slide.

    Raises
    ------
    SlideProblem
        ``unreadable`` if the thumbnail cannot be read.
    """
    thumbnail, mpp = reader.thumbnail(params.mpp)
    ink = find_ink(thumbnail, mpp, params)
    mask, threshold = tissue_mask(thumbnail, mpp, params, ink)
    blur = find_blur(thumbnail, mask, mpp, params)
    return Tissue(mask & ~blur, reader.dimensions, threshold, thumbnail, mpp, ink, blur)


def tissue_mask(
    image: NDArray[np.uint8], mpp: float, params: TissueParams, ink: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.bool_], int]:
    """Tissue in an RGB image ``[h, w, 3]`` of ``mpp`` um/px, in focus or not.

    Parameters
    ----------
    image, mpp, params
        The image.
    ink
        bool ``[h, w]``, what is no tissue whatever its colour; default: nothing.

    Returns
    -------
    mask, threshold
        bool ``[h, w]`` and the saturation threshold that was used.
    """
    saturation = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)[..., 1]
    saturation[image.max(axis=2) < params.black] = 0
    if ink is not None:
        saturation[ink] = 0
    smooth = cv2.medianBlur(saturation, _odd(params.median_um / mpp))
    otsu, _ = cv2.threshold(smooth, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    threshold = int(np.clip(round(otsu), params.threshold_min, params.threshold_max))
    mask = (smooth > threshold).astype(np.uint8)
    side = _odd(params.close_um / mpp)
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    closed = np.asarray(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, disk), np.uint8)
    smallest = params.min_area_um2 / mpp**2
    pieces = _without_small(closed, smallest)
    holes = _without_small(1 - pieces, smallest)  # what remains of the background: small holes are filled
    filled = holes == 0
    return (filled if ink is None else filled & ~ink), threshold


def _without_small(mask: NDArray[np.uint8], smallest: float) -> NDArray[np.uint8]:
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= smallest
    keep[0] = False
    return keep[np.asarray(labels, np.intp)].astype(np.uint8)


def _odd(pixels: float) -> int:
    """The odd kernel size next to ``pixels``, at least 3."""
    return max(3, 2 * round((pixels - 1) / 2) + 1)


def _bilinear(
    table: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[np.float64]:
    column = np.clip(x.astype(np.int64), 0, table.shape[1] - 2)
    row = np.clip(y.astype(np.int64), 0, table.shape[0] - 2)
    fx, fy = x - column, y - row
    top = table[row, column] * (1 - fx) + table[row, column + 1] * fx
    bottom = table[row + 1, column] * (1 - fx) + table[row + 1, column + 1] * fx
    return top * (1 - fy) + bottom * fy
