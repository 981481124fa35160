"""Tileable textures, made once per process: they carry no information about any patient.

``grain`` is laid over full-resolution pixels; ``fibres`` and ``strands`` live on the 2 um grid of the
layout, where a slide-specific warp and a field of directions keep them from repeating visibly.
"""

from functools import cache

import cv2
import numpy as np
from scipy import fft

from equipoise.datasets.synthetic.seeds import Purpose, stream

SIDE = 1024
FIBRE_SIDE = 512
FIBRE_DIRECTIONS = 8
#: Textures are clipped here and stored as int8: 127 = 2.5 standard deviations.
CLIP_SD = 2.5


@cache
def grain(mpp: float, layer: int) -> np.ndarray:
    """Fine granularity of about 5.5 um, int8 ``[1024, 1024]``; ``layer`` 0 for eosin, 1 for haematoxylin."""
    radius = np.hypot(*_frequencies(SIDE, mpp))
    return _filtered(_white(SIDE, layer), np.exp(-((radius - 0.18) ** 2) / (2 * 0.12**2)))


@cache
def fibres(pixel_um: float) -> np.ndarray:
    """Collagen running in each of eight directions: int8 ``[8, 512, 512]``.

    All directions filter the same noise, so that blending two neighbouring ones bends a bundle instead of
    crossing two.
    """
    fy, fx = _frequencies(FIBRE_SIDE, pixel_um)
    source = _white(FIBRE_SIDE, 2)
    layers = []
    for k in range(FIBRE_DIRECTIONS):
        angle = np.pi * k / FIBRE_DIRECTIONS
        along = fx * np.cos(angle) + fy * np.sin(angle)
        across = -fx * np.sin(angle) + fy * np.cos(angle)
        band = np.exp(-((np.abs(across) - 0.09) ** 2) / (2 * 0.055**2) - along**2 / (2 * 0.016**2))
        layers.append(_filtered(source, band))
    return np.stack(layers)


@cache
def strands(pixel_um: float) -> np.ndarray:
    """Threads of mucus, int8 ``[512, 512]``."""
    fy, fx = _frequencies(FIBRE_SIDE, pixel_um)
    band = np.exp(-((np.hypot(0.35 * fx, fy) - 0.035) ** 2) / (2 * 0.02**2))
    return _filtered(_white(FIBRE_SIDE, 3), band)


def tiled(
    texture: np.ndarray, side: int, shift: tuple[int, int], warp: np.ndarray | None = None
) -> np.ndarray:
    """Float32 ``[side, side]`` in standard deviations, cut from a tileable texture.

    Parameters
    ----------
    shift
        Start (y, x) in the texture.
    warp
        Displacement ``[2, side, side]`` (y, x) in pixels, bilinear.
    """
    period = texture.shape[0]
    ys = (np.arange(side) + shift[0]) % period
    xs = (np.arange(side) + shift[1]) % period
    field = texture[ys[:, None], xs].astype(np.float32) * np.float32(CLIP_SD / 127)
    return field if warp is None else displaced(field, warp)


def displaced(field: np.ndarray, warp: np.ndarray) -> np.ndarray:
    """``field`` read at positions moved by ``warp`` ``[2, h, w]`` (y, x) pixels."""
    height, width = field.shape
    map_x = np.arange(width, dtype=np.float32)[None] + warp[1]
    map_y = np.arange(height, dtype=np.float32)[:, None] + warp[0]
    return cv2.remap(field, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def _white(side: int, layer: int) -> np.ndarray:
    return stream(0, 0, 0, Purpose.TEXTURE, layer).standard_normal((side, side), dtype=np.float32)


def _frequencies(side: int, pixel_um: float) -> tuple[np.ndarray, np.ndarray]:
    fy = fft.fftfreq(side, pixel_um).astype(np.float32)[:, None]
    fx = fft.rfftfreq(side, pixel_um).astype(np.float32)[None]
    return fy, fx


def _filtered(white: np.ndarray, band: np.ndarray) -> np.ndarray:
    spectrum = np.asarray(fft.rfft2(white)) * band
    spectrum[0, 0] = 0
    field = np.asarray(fft.irfft2(spectrum, s=white.shape))
    scaled = np.clip(field / field.std(), -CLIP_SD, CLIP_SD) * (127 / CLIP_SD)
    return np.rint(scaled).astype(np.int8)
