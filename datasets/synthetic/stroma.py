"""What lies between the glands: collagen and its direction, muscle, lymphoid aggregates."""

import numpy as np

from equipoise.datasets.synthetic.ellipse import Ellipse, sample_places
from equipoise.datasets.synthetic.fields import enlarge, noise, smoothstep
from equipoise.datasets.synthetic.morphology import Morphology
from equipoise.datasets.synthetic.outline import COARSE_UM, FINE_UM, RATIO, Outline
from equipoise.datasets.synthetic.textures import FIBRE_DIRECTIONS, FIBRE_SIDE, displaced, fibres, tiled


def fibre_direction(
    rng: np.random.Generator, slope: tuple[np.ndarray, np.ndarray], muscle: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Direction field as (cos 2a, sin 2a) on the 8 um grid.

    Collagen runs around glands, muscle along one direction of the slide, and both drift.
    """
    gy, gx = slope
    side = gy.shape[0]
    cos2, sin2 = gy * gy - gx * gx, -2 * gx * gy  # perpendicular to the gradient
    size = np.hypot(cos2, sin2) + np.float32(1e-6)
    cos2, sin2 = cos2 / size, sin2 / size
    cos2 += 0.9 * noise(rng, side, 150 / COARSE_UM)
    sin2 += 0.9 * noise(rng, side, 150 / COARSE_UM)
    axis = rng.uniform(0, 2 * np.pi) + 0.9 * noise(rng, side, 420 / COARSE_UM)
    pull = 5 * muscle[RATIO // 2 :: RATIO, RATIO // 2 :: RATIO]
    cos2 += pull * np.cos(axis)
    sin2 += pull * np.sin(axis)
    size = np.hypot(cos2, sin2) + np.float32(1e-6)
    return (cos2 / size).astype(np.float32), (sin2 / size).astype(np.float32)


def fibre_field(rng: np.random.Generator, cos2: np.ndarray, sin2: np.ndarray) -> np.ndarray:
    """Collagen texture on the 2 um grid, about N(0, 1), along the direction field."""
    side = cos2.shape[0] * RATIO
    layers = fibres(FINE_UM)
    shift = rng.integers(0, FIBRE_SIDE, 2)
    total = np.zeros((side, side), np.float32)
    power = np.zeros((side, side), np.float32)
    wide_cos, wide_sin = enlarge(cos2, RATIO), enlarge(sin2, RATIO)
    for k in range(FIBRE_DIRECTIONS):
        angle = 2 * np.pi * k / FIBRE_DIRECTIONS
        weight = wide_cos * np.float32(np.cos(angle)) + wide_sin * np.float32(np.sin(angle))
        weight = np.clip((weight - 0.6) / 0.4, 0, None)
        # A new cut of the tile in every direction of the field: neighbouring bundles never show the same
        # piece.
        total += weight * tiled(layers[k], side, (int(shift[0]) + 37 * k, int(shift[1]) + 61 * k))
        power += weight * weight
    total /= np.sqrt(power) + np.float32(1e-3)
    warp = np.stack([noise(rng, side, 44 / FINE_UM), noise(rng, side, 44 / FINE_UM)]) * np.float32(
        5 / FINE_UM
    )
    return displaced(total, warp)


def muscle_region(rng: np.random.Generator, outline: Outline) -> np.ndarray:
    """Bundles of smooth muscle away from the tumour, 0 to 1."""
    side = outline.side // RATIO
    field = enlarge(noise(rng, side, 300 / COARSE_UM) + rng.normal(-0.5, 0.6), RATIO)
    return smoothstep(field, 0.0, 0.5) * smoothstep(outline.bed, -2.5, -5.0)


def aggregate_field(
    rng: np.random.Generator, outline: Outline, stroma: np.ndarray, morphology: Morphology
) -> np.ndarray:
    """Lymphoid aggregates along the invasive front (Crohn-like reaction), 0 to 1."""
    weight = (np.exp(-((outline.bed / 3) ** 2)) * stroma)[RATIO // 2 :: RATIO, RATIO // 2 :: RATIO]
    count = int(rng.poisson(morphology.aggregates * outline.area_mm2()))
    field = np.zeros((outline.side, outline.side), np.float32)
    for y, x in sample_places(rng, weight, count):
        radius = rng.uniform(45, 110)
        form = Ellipse(y, x, radius * rng.uniform(0.75, 1.0), radius, rng.uniform(0, np.pi))
        box, reach = form.radius(outline.side)
        np.maximum(field[box], 1 - reach, out=field[box])
    field += 0.16 * noise(rng, outline.side, 22 / FINE_UM) * (field > 0)
    return smoothstep(field, 0.0, 0.45)
