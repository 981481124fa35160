"""Pen ink and tissue out of focus, which a saturation threshold takes for tissue worth encoding.

Both detectors prefer to keep tissue. Ink is what no mixture of haematoxylin and eosin can absorb; focus is judged
within a slide only, because between scanners and formats the same sharpness gives very different numbers (a
fixed limit called every tile of one format out of focus: mahmoodlab/TRIDENT, pull request 219).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

_DENSITY = -np.log10((np.arange(256) + 1) / 256).astype(np.float32)


@dataclass(frozen=True)
class ArtefactParams:
    """Parameters of what is rejected; part of :class:`~equipoise.datasets.slides.tissue.TissueParams`."""

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
    blurred = _large(soft, params.blur_min_area_um2 / mpp**2)
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
    ink |= (least > 1.25 * strength) & (least > evenness * density.max(axis=2))
    return ink


def _large(mask: NDArray[np.bool_], smallest: float) -> NDArray[np.bool_]:
    """The connected pieces of at least ``smallest`` pixels."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= smallest
    keep[0] = False
    return np.asarray(keep[np.asarray(labels, np.intp)], bool)
