"""Adipose tissue at the far side of the tumour: large empty cells with thin walls."""

import numpy as np
from scipy.spatial import KDTree

from equipoise.datasets.synthetic.fields import enlarge, hex_grid, noise, smoothstep
from equipoise.datasets.synthetic.outline import COARSE_UM, FINE_UM, RATIO, Outline

_CELL_UM = 50.0


def fat_region(rng: np.random.Generator, outline: Outline, chance: float) -> np.ndarray:
    """Where fat is, 0 to 1 on the 2 um grid; empty in ``1 - chance`` of slides."""
    side = outline.side // RATIO
    field = noise(rng, side, 320 / COARSE_UM) + 0.25 * noise(rng, side, 80 / COARSE_UM)
    if rng.random() >= chance:
        return np.zeros_like(outline.tissue)
    away = smoothstep(outline.bed, -4.0, -9.0)
    return smoothstep(enlarge(field, RATIO), 0.1, 0.25) * away * outline.tissue


def fat_vacuoles(rng: np.random.Generator, outline: Outline, region: np.ndarray) -> np.ndarray:
    """The empty inside of fat cells, 0 to 1 on the 2 um grid; what the region has beside it is membrane."""
    step = 2  # Voronoi distances on a 4 um grid: they are piecewise linear, so enlarging keeps thin walls
    small = region[::step, ::step]
    rows, columns = np.nonzero(small > 0.02)
    vacuoles = np.zeros_like(region)
    if rows.size < 16:
        return vacuoles
    seeds = hex_grid(rng, outline.side * FINE_UM, _CELL_UM, 0.30, margin=_CELL_UM)
    where = np.stack([rows, columns], axis=1).astype(np.float32) * np.float32(step * FINE_UM)
    for k in range(2):  # curved walls
        warp = enlarge(noise(rng, outline.side // RATIO, 36 / COARSE_UM), RATIO // step)
        where[:, k] += np.float32(5.0) * warp[rows, columns]
    distance = KDTree(seeds).query(where, k=2)[0]
    rim = np.zeros(small.shape, np.float32)
    rim[rows, columns] = (distance[:, 1] - distance[:, 0]) / 2
    fine = enlarge(rim, step)[: region.shape[0], : region.shape[1]]
    return smoothstep(fine, 0.4, 2.3) * smoothstep(region, 0.35, 0.6)
