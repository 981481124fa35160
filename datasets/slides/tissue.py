"""Tissue masks: saturation above a bounded Otsu threshold, without ink and areas out of focus.

Glass is grey, stained tissue is not. Plain Otsu always splits an image in two, a blank slide too; bounded to
[5, 25] (of 255) it finds nothing on glass and still follows pale or dark stains. Sizes are in micrometres, so
that the mask does not depend on the resolution it happens to be computed at.

A saturation threshold takes pen ink and tissue out of focus for tissue worth encoding. Both detectors prefer to keep
tissue. Ink is what no mixture of haematoxylin and eosin can absorb; focus is judged within a slide only, because
between scanners and formats the same sharpness gives very different numbers (a fixed limit called every tile of one
format out of focus: mahmoodlab/TRIDENT, pull request 219).

On a dark background and in grey levels (:mod:`equipoise.datasets.slides.stain`) brightness takes the place of
saturation, which is noise there.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from equipoise.datasets.slides.reader import SlideReader
from equipoise.datasets.slides.stain import appearance, highest

_DENSITY = -np.log10((np.arange(256) + 1) / 256).astype(np.float32)


@dataclass(frozen=True)
class ArtefactParams:
    """Parameters of what is rejected; part of :class:`TissueParams`."""

    #: Smallest piece of ink in um^2, least share of it that is beyond doubt, and how far its soft border
    #: reaches in um.
    pen_min_area_um2: float = 10_000.0
    pen_certain: float = 0.15
    pen_border_um: float = 24.0
    #: Laplacian energy, of the slide's median, below which tissue is out of focus; the same for that energy
    #: as a share of the local contrast, so that pale tissue is not taken for blurred.
    blur_energy: float = 0.1
    blur_fineness: float = 0.25
    #: Width over which focus is judged, and smallest piece out of focus.
    blur_window_um: float = 120.0
    blur_min_area_um2: float = 90_000.0
    #: With more of the tissue than this out of focus the measure is not believed and nothing is rejected.
    blur_most: float = 0.5


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
    seen = appearance(thumbnail)
    if seen.dark_background or seen.grey:  # whether it is accepted is decided elsewhere
        ink = None
        mask, threshold = _mask_of(_brightness(thumbnail, seen.dark_background, params), mpp, params)
    else:
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
    saturation = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2HSV)[..., 1], np.uint8)
    saturation[highest(image) < params.black] = 0
    if ink is not None:
        saturation[ink] = 0
    filled, threshold = _mask_of(saturation, mpp, params)
    return (filled if ink is None else filled & ~ink), threshold


def _brightness(image: NDArray[np.uint8], dark_background: bool, params: TissueParams) -> NDArray[np.uint8]:
    """What stands for saturation where colour says nothing: the light of fluorescence, the shade of grey levels."""
    brightest = highest(image)
    if dark_background:
        return np.where(brightest < params.black, 0, brightest).astype(np.uint8)
    glass = int(np.percentile(brightest, 95))
    return np.where(brightest < params.black, 0, np.clip(glass - brightest.astype(int), 0, 255)).astype(
        np.uint8
    )


def _mask_of(signal: NDArray[np.uint8], mpp: float, params: TissueParams) -> tuple[NDArray[np.bool_], int]:
    """Pieces of a picture ``[h, w]`` above its bounded Otsu threshold, and the threshold."""
    smooth = cv2.medianBlur(signal, _odd(params.median_um / mpp))
    otsu, _ = cv2.threshold(smooth, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    threshold = int(np.clip(round(otsu), params.threshold_min, params.threshold_max))
    mask = (smooth > threshold).astype(np.uint8)
    side = _odd(params.close_um / mpp)
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    closed = np.asarray(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, disk), np.uint8)
    smallest = params.min_area_um2 / mpp**2
    pieces = _large(closed, smallest)
    return ~_large((~pieces).astype(np.uint8), smallest), threshold  # small holes in it are filled


def find_ink(image: NDArray[np.uint8], mpp: float, params: ArtefactParams) -> NDArray[np.bool_]:
    """Blue, green and black pen on an RGB image.

    In optical density haematoxylin and eosin both absorb most in green. Ink is a piece of pixels that absorb
    more in red (blue ink), in red and blue (green ink), or strongly and equally in all three (black ink), if it is
    large enough and enough of it does so clearly: ink over tissue and at its own border does less.

    Parameters
    ----------
    image
        uint8 ``[h, w, 3]``.
    mpp
        um per pixel.
    params
        Sizes.

    Returns
    -------
    bool ``[h, w]``.
    """
    density = np.asarray(cv2.LUT(image, _DENSITY), np.float32)
    clear = _ink_like(density, strength=0.4, share=1.4, evenness=0.72)
    pieces = clear | _ink_like(density, strength=0.25, share=1.15, evenness=0.6)
    count, labels = cv2.connectedComponents(pieces.astype(np.uint8), connectivity=8)
    area = np.bincount(labels.ravel(), minlength=count)
    certain = np.bincount(labels[clear], minlength=count)
    ink = (area >= params.pen_min_area_um2 / mpp**2) & (certain >= params.pen_certain * area)
    ink[0] = False
    grown = ink[np.asarray(labels, np.intp)].astype(np.uint8)
    reach = 2 * max(1, round(params.pen_border_um / mpp)) + 1
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))
    return np.asarray(cv2.dilate(grown, disk)) > 0


def find_blur(
    image: NDArray[np.uint8], tissue: NDArray[np.bool_], mpp: float, params: ArtefactParams
) -> NDArray[np.bool_]:
    """Tissue that is far less sharp than the rest of the same slide.

    Sharpness is the energy of the Laplacian, averaged over tissue in a window. It says something about defocus of
    the size of a pixel or more: at the resolution of a mask that is what nothing can be read from, not a
    slightly soft scan.

    Parameters
    ----------
    image
        uint8 ``[h, w, 3]``.
    tissue
        bool ``[h, w]``; the border of tissue is left out of account, being sharp by itself.
    mpp
        um per pixel.
    params
        Limits.

    Returns
    -------
    bool ``[h, w]``, a part of ``tissue``; empty if it were more than ``blur_most`` of it.
    """
    none = np.zeros_like(tissue)
    inside = cv2.erode(tissue.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=0).astype(np.float32)
    if not inside.any():
        return none
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    window = 2 * max(2, round(params.blur_window_um / mpp / 2)) + 1

    def around(values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Mean over the tissue in the window, ``[h, w]``."""
        weight = cv2.boxFilter(inside, -1, (window, window), normalize=False, borderType=cv2.BORDER_CONSTANT)
        total = cv2.boxFilter(
            values * inside, -1, (window, window), normalize=False, borderType=cv2.BORDER_CONSTANT
        )
        return np.asarray(total / np.maximum(weight, 1e-6), np.float32)

    energy = around(np.asarray(cv2.Laplacian(grey, cv2.CV_32F), np.float32) ** 2)
    mean = around(grey)
    fineness = energy / np.maximum(around(grey * grey) - mean * mean, 1.0)
    there = inside > 0
    soft = there & (energy < params.blur_energy * np.median(energy[there]))
    soft &= fineness < params.blur_fineness * np.median(fineness[there])
    blurred = _large(soft.astype(np.uint8), params.blur_min_area_um2 / mpp**2)
    return none if blurred.sum() > params.blur_most * there.sum() else blurred


def _ink_like(
    density: NDArray[np.float32], strength: float, share: float, evenness: float
) -> NDArray[np.bool_]:
    """Pixels that absorb as ink does; ``density`` is ``[h, w, 3]``, ``share`` and ``evenness`` are ratios."""
    red, green, blue = density[..., 0], density[..., 1], density[..., 2]
    both = np.minimum(red, blue)
    least = np.minimum(both, green)
    ink = (red > strength) & (red > share * green)
    ink |= (both > 0.75 * strength) & (both > share * green)
    ink |= (least > 1.25 * strength) & (least > evenness * highest(density))
    return ink


def _large(mask: NDArray[np.uint8], smallest: float) -> NDArray[np.bool_]:
    """The connected pieces of at least ``smallest`` pixels."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= smallest
    keep[0] = False
    return np.asarray(keep[np.asarray(labels, np.intp)], bool)


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
