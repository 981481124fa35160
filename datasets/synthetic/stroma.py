"""Stroma between the glands: collagen and its direction, muscle, lymphoid aggregates, vessels, fat."""

from dataclasses import dataclass

import numpy as np
from scipy.spatial import KDTree

from equipoise.datasets.synthetic.fields import enlarge, hex_grid, noise, smoothstep
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


def muscle_field(rng: np.random.Generator, outline: Outline) -> np.ndarray:
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


Box = tuple[slice, slice]


@dataclass(frozen=True, slots=True)
class Ellipse:
    """Centre and half axes in um, direction of the long one; ``wobble`` is a threefold relative dent."""

    y: float
    x: float
    short: float
    long: float
    angle: float
    wobble: float = 0.0

    def radius(self, side: int, margin: float = 0.0) -> tuple[Box, np.ndarray]:
        """Elliptic radius (1 on the edge) in the bounding box widened by ``margin`` um.

        Returns
        -------
        box, radius
            Slices into a ``[side, side]`` grid and float32 of that shape.
        """
        reach = self.long * (1 + self.wobble) + margin
        box = (_span(self.y, reach, side), _span(self.x, reach, side))
        dy = ((np.arange(box[0].start, box[0].stop, dtype=np.float32) + 0.5) * FINE_UM - self.y)[:, None]
        dx = ((np.arange(box[1].start, box[1].stop, dtype=np.float32) + 0.5) * FINE_UM - self.x)[None]
        cos, sin = np.float32(np.cos(self.angle)), np.float32(np.sin(self.angle))
        u, v = (dx * cos + dy * sin) / self.long, (dy * cos - dx * sin) / self.short
        radius = np.hypot(u, v)
        if self.wobble:
            radius *= 1 + self.wobble * np.cos(3 * np.arctan2(v, u) + 7 * self.angle)
        return box, radius.astype(np.float32, copy=False)


def sample_places(rng: np.random.Generator, weight: np.ndarray, count: int) -> np.ndarray:
    """``count`` positions (y, x) in um, drawn from a weight on the 8 um grid; none where it vanishes."""
    total = np.cumsum(weight.ravel(), dtype=np.float64)
    if count == 0 or total[-1] <= 0:
        return np.zeros((0, 2))
    cell = np.searchsorted(total, rng.random(count) * total[-1], side="right")
    position = np.stack(np.unravel_index(np.minimum(cell, total.size - 1), weight.shape), axis=1)
    return (position + rng.random((count, 2))) * COARSE_UM


def _span(centre: float, reach: float, side: int) -> slice:
    low = int(np.clip((centre - reach) // FINE_UM, 0, side))
    high = int(np.clip((centre + reach) // FINE_UM + 1, low, side))
    return slice(low, high)


#: Vessel profiles per mm2 of stroma.
_DENSITY = 38.0


@dataclass(slots=True)
class Vessels:
    """Vessels on the 2 um grid.

    ``lumen`` and ``wall`` are 0 to 1, ``blood`` is the probability of a red cell (also outside vessels, where
    tissue has bled), ``endothelium`` holds nuclei as rows of (y, x, angle) in um and radians.
    """

    lumen: np.ndarray
    wall: np.ndarray
    blood: np.ndarray
    endothelium: np.ndarray


def draw_vessels(rng: np.random.Generator, outline: Outline, stroma: np.ndarray) -> Vessels:
    """Capillaries, venules and thick-walled arterioles in open stroma."""
    side = outline.side
    lumen, wall, blood = (np.zeros((side, side), np.float32) for _ in range(3))
    open_stroma = smoothstep(stroma, 0.6, 0.95)
    stroma_mm2 = float(open_stroma.mean()) * (side * FINE_UM / 1000) ** 2
    places = sample_places(
        rng, open_stroma[RATIO // 2 :: RATIO, RATIO // 2 :: RATIO], int(rng.poisson(_DENSITY * stroma_mm2))
    )
    nuclei = [np.zeros((0, 3), np.float32)]
    for y, x in places:
        short = float(np.clip(np.exp(rng.normal(2.0, 0.6)), 3.5, 32))
        long = short * rng.uniform(1.0, 2.4)
        thick = short * rng.uniform(0.25, 0.55) if short > 8 and rng.random() < 0.4 else 1.8
        filling = rng.uniform(0.35, 1.0) if rng.random() < 0.6 else 0.0
        form = Ellipse(y, x, short, long, rng.uniform(0, np.pi), wobble=rng.uniform(0.02, 0.16))
        box, radius = form.radius(side, margin=thick + 4)
        um = (radius - 1) * short  # distance from the edge, near enough
        inside = smoothstep(um, 1.0, -1.0)
        np.maximum(lumen[box], inside, out=lumen[box])
        np.maximum(wall[box], smoothstep(um, thick + 1.2, thick - 1.2), out=wall[box])
        np.maximum(blood[box], np.float32(filling) * inside, out=blood[box])
        nuclei.append(_endothelium(rng, form))
    np.minimum(lumen, stroma, out=lumen)  # glands push vessels aside
    np.minimum(wall, stroma - lumen, out=wall)
    blood *= lumen
    bled = smoothstep(noise(rng, side // RATIO, 15.0), 2.0, 2.6)
    blood += 0.45 * np.repeat(np.repeat(bled, RATIO, 0), RATIO, 1) * stroma * (1 - lumen)
    endothelium = np.concatenate(nuclei)
    cell = np.clip((endothelium[:, :2] / FINE_UM).astype(np.int32), 0, side - 1)
    return Vessels(lumen, wall, blood, endothelium[stroma[cell[:, 0], cell[:, 1]] > 0.5])


def _endothelium(rng: np.random.Generator, form: Ellipse) -> np.ndarray:
    """Flat nuclei on the wall, about one per 16 um of it."""
    around = np.pi * (form.short + form.long)
    count = max(1, int(rng.poisson(around / 16)))
    t = rng.uniform(0, 2 * np.pi, count)
    dent = 1 + form.wobble * np.cos(3 * t + 7 * form.angle)
    u, v = (form.long * np.cos(t)) / dent, (form.short * np.sin(t)) / dent
    u, v = u + 0.8 * np.cos(t), v + 0.8 * np.sin(t)
    cos, sin = np.cos(form.angle), np.sin(form.angle)
    tangent = np.arctan2(form.short * np.cos(t), -form.long * np.sin(t)) + form.angle
    return np.stack([form.y + u * sin + v * cos, form.x + u * cos - v * sin, tangent], axis=1).astype(
        np.float32
    )


_CELL_UM = 50.0


def fat_field(rng: np.random.Generator, outline: Outline, probability: float) -> np.ndarray:
    """Where fat is, 0 to 1 on the 2 um grid; empty in ``1 - probability`` of slides."""
    side = outline.side // RATIO
    field = noise(rng, side, 320 / COARSE_UM) + 0.25 * noise(rng, side, 80 / COARSE_UM)
    if rng.random() >= probability:
        return np.zeros_like(outline.tissue)
    away = smoothstep(outline.bed, -4.0, -9.0)
    return smoothstep(enlarge(field, RATIO), 0.1, 0.25) * away * outline.tissue


def fat_vacuoles(rng: np.random.Generator, outline: Outline, fat: np.ndarray) -> np.ndarray:
    """The empty inside of fat cells, 0 to 1 on the 2 um grid; the rest of the fatty tissue is membrane."""
    step = 2  # Voronoi distances on a 4 um grid: they are piecewise linear, so enlarging keeps thin walls
    small = fat[::step, ::step]
    rows, columns = np.nonzero(small > 0.02)
    vacuoles = np.zeros_like(fat)
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
    fine = enlarge(rim, step)[: fat.shape[0], : fat.shape[1]]
    return smoothstep(fine, 0.4, 2.3) * smoothstep(fat, 0.35, 0.6)
