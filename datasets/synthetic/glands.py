"""Tumour glands: a warped Voronoi diagram of glands, solid nests, mucin pools, necrosis and gaps."""

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.spatial import KDTree

from equipoise.datasets.synthetic.fields import enlarge, enlarge_nearest, hex_grid, noise, smoothstep
from equipoise.datasets.synthetic.morphology import Morphology
from equipoise.datasets.synthetic.outline import COARSE_UM, FINE_UM, RATIO, Outline

GLAND, SOLID, MUCIN, NECROSIS, ABSENT = range(5)


@dataclass(slots=True)
class Glands:
    """Gland compartments on the 2 um grid, each 0 to 1, and what cells need to know about their gland.

    ``depth`` is the distance to the basement membrane in um (negative outside), ``grade`` the gland's
    dedifferentiation (0 to 1), ``bridges`` the part of the epithelium that spans a lumen, ``apical`` its
    free surface, ``slope`` the gradient (y, x) of the depth on the 8 um grid: the normal of the basement
    membrane.
    """

    epithelium: np.ndarray
    lumen: np.ndarray
    mucin: np.ndarray
    necrosis: np.ndarray
    bridges: np.ndarray
    apical: np.ndarray
    secretion: np.ndarray
    depth: np.ndarray
    grade: np.ndarray
    slope: tuple[np.ndarray, np.ndarray]


@dataclass(slots=True)
class _Seeds:
    """Per gland; lengths in um, ``gap`` is the distance from the territory's edge to the gland."""

    position: np.ndarray
    kind: np.ndarray
    grade: np.ndarray
    height: np.ndarray
    gap: np.ndarray
    cribriform: np.ndarray
    secretion: np.ndarray


def plant_glands(rng: np.random.Generator, outline: Outline, morphology: Morphology) -> Glands:
    """Glands of a slide, inside its tumour bed."""
    seeds = _draw_seeds(rng, outline, morphology)
    owner, rim = _territories(rng, outline.het.shape[0], seeds.position)
    fine_owner = enlarge_nearest(owner, RATIO)
    side = outline.side
    depth = enlarge(rim, RATIO) - seeds.gap[fine_owner]
    present = (seeds.kind != ABSENT)[fine_owner]
    gland = smoothstep(depth, -1.5, 1.5) * smoothstep(outline.bed, -0.6, 0.6) * outline.tissue
    gland *= present

    # A lumen follows its wall only roughly: tufts and hollows keep it from being a smooth polygon.
    inward = depth - seeds.height[fine_owner]
    inward += 4.5 * noise(rng, side, 34 / FINE_UM)
    inward += 2.2 * noise(rng, side, 11 / FINE_UM)
    core = smoothstep(inward, -1.5, 1.5) * gland
    bridge = smoothstep(noise(rng, side, 26 / FINE_UM), 0.25, -0.25) * seeds.cribriform[fine_owner]
    bridges = core * bridge
    core -= bridges
    apical = gland * np.exp(-((inward / 2.2) ** 2)) * (1 - bridge)
    kind = seeds.kind[fine_owner]
    return Glands(
        epithelium=gland - core,
        lumen=core * (kind == GLAND),
        mucin=core * (kind == MUCIN),
        necrosis=core * (kind == NECROSIS),
        bridges=bridges,
        apical=apical,
        secretion=seeds.secretion[fine_owner],
        depth=depth,
        grade=seeds.grade[fine_owner],
        slope=_slope(rim),
    )


def _slope(rim: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    gy, gx = np.gradient(cv2.GaussianBlur(rim, (0, 0), 1.2))
    return gy, gx


def _draw_seeds(rng: np.random.Generator, outline: Outline, m: Morphology) -> _Seeds:
    extent = outline.side * FINE_UM
    position = hex_grid(rng, extent, m.gland_um, 0.34, margin=m.gland_um)
    n = len(position)
    cell = np.clip((position / COARSE_UM).astype(np.int32), 0, outline.het.shape[0] - 1)
    het = outline.het[cell[:, 0], cell[:, 1]]
    grade = np.clip(m.grade + 0.30 * het + rng.normal(0, 0.10, n), 0, 1).astype(np.float32)
    draw = rng.random((4, n), dtype=np.float32)
    kind = np.full(n, GLAND)
    kind[draw[0] < smoothstep(grade, 0.30, 0.95)] = SOLID
    kind[draw[1] < m.mucin * (1 + 0.5 * het)] = MUCIN
    kind[draw[2] < m.necrosis] = NECROSIS
    kind[draw[3] < np.clip(0.9 * (m.stroma - 0.18), 0, 0.7)] = ABSENT
    solid = kind == SOLID
    height = np.clip(rng.normal(m.epi_um, 3, n) + 6 * grade, 11, 55)
    height = np.where(solid, 400, height)
    height = np.where(kind == MUCIN, np.clip(rng.normal(6, 4, n), 0, 14), height)
    height = np.where(kind == NECROSIS, np.clip(rng.normal(22, 3, n), 14, 30), height)
    gap = np.clip(3 + 26 * m.stroma + rng.normal(0, 2, n), 3, 30) * np.where(solid, 0.6, 1)
    # Cribriform growth belongs to the middle of the grading scale.
    cribriform = (rng.random(n) < 0.65 * np.exp(-(((grade - 0.5) / 0.2) ** 2))) & (kind == GLAND)
    secretion = np.where(rng.random(n) < 0.35, rng.uniform(0.05, 0.35, n), 0)
    return _Seeds(
        position,
        kind,
        grade,
        height.astype(np.float32),
        gap.astype(np.float32),
        cribriform.astype(np.float32),
        secretion.astype(np.float32),
    )


def _territories(rng: np.random.Generator, side: int, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nearest seed and half the difference to the second nearest, on the 8 um grid, seen through a warp."""
    axis = (np.arange(side, dtype=np.float32) + 0.5) * np.float32(COARSE_UM)
    query = np.empty((side, side, 2), np.float32)
    query[..., 0], query[..., 1] = axis[:, None], axis[None]
    for k in range(2):
        query[..., k] += 24 * noise(rng, side, 240 / COARSE_UM)
        query[..., k] += 12 * noise(rng, side, 72 / COARSE_UM)
        query[..., k] += 4 * noise(rng, side, 32 / COARSE_UM)
    distance, index = map(np.asarray, KDTree(position).query(query.reshape(-1, 2), k=2))
    rim = ((distance[:, 1] - distance[:, 0]) / 2).astype(np.float32)
    return index[:, 0].astype(np.int32).reshape(side, side), rim.reshape(side, side)
