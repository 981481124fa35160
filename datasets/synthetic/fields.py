"""Smooth random fields and jittered grids: the raw material of the tissue layout. All arrays are float32."""

import cv2
import numpy as np

#: Standard deviation of white noise after OpenCV's bicubic enlargement (kernel a = -0.75), averaged over all
#: phases.
_CUBIC_SD = 0.8585


def smoothstep(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Cubic ramp from 0 at ``low`` to 1 at ``high`` (falling where ``high < low``)."""
    t = np.clip((x - low) / np.float32(high - low), 0, 1).astype(np.float32, copy=False)
    return t * t * (3 - 2 * t)


def noise(rng: np.random.Generator, side: int, cell: float) -> np.ndarray:
    """Smooth N(0, 1) field ``[side, side]`` with structures of about ``cell`` grid steps.

    Scaled by the kernel's own standard deviation, not by the sample's: a slide smaller than a cell is then a
    nearly constant draw, as it should be, and not blown up to unit variance.
    """
    knots = int(np.ceil(side / cell)) + 5
    size = round(knots * cell)
    coarse = rng.standard_normal((knots, knots), dtype=np.float32)
    fine = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    start = round(2 * cell)
    return fine[start : start + side, start : start + side] / np.float32(_CUBIC_SD)


def enlarge(field: np.ndarray, factor: int) -> np.ndarray:
    """Bicubic enlargement by a whole factor."""
    height, width = field.shape
    return cv2.resize(field, (width * factor, height * factor), interpolation=cv2.INTER_CUBIC)


def enlarge_nearest(field: np.ndarray, factor: int) -> np.ndarray:
    """Enlargement that keeps labels."""
    return np.repeat(np.repeat(field, factor, axis=0), factor, axis=1)


def hex_grid(
    rng: np.random.Generator, extent: float, spacing: float, jitter: float, margin: float = 0
) -> np.ndarray:
    """Jittered hexagonal positions over ``[-margin, extent + margin]`` squared.

    ``jitter`` is the uniform half-range as a share of the spacing.

    Returns
    -------
    float32 ``[n, 2]`` as (y, x), in the unit of ``extent``.
    """
    ys = np.arange(-margin, extent + margin, spacing * 0.87, dtype=np.float32)
    xs = np.arange(-margin, extent + margin, spacing, dtype=np.float32)
    grid = np.stack(np.meshgrid(ys, xs, indexing="ij"), axis=-1)
    grid[1::2, :, 1] += spacing / 2
    grid += (2 * rng.random(grid.shape, dtype=np.float32) - 1) * np.float32(jitter * spacing)
    return grid.reshape(-1, 2)
