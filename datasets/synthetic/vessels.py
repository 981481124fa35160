"""Blood vessels with endothelium and red cells, and blood outside them."""

from dataclasses import dataclass

import numpy as np

from equipoise.datasets.synthetic.ellipse import Ellipse, sample_places
from equipoise.datasets.synthetic.fields import noise, smoothstep
from equipoise.datasets.synthetic.outline import FINE_UM, RATIO, Outline

#: Vessel profiles per mm2 of stroma.
_DENSITY = 38.0


@dataclass(slots=True)
class Vessels:
    """Vessels on the 2 um grid.

    ``lumen`` and ``wall`` are 0 to 1, ``blood`` is the chance of a red cell (also outside vessels, where
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
