"""Outline of the tissue and of the tumour bed in it."""

from dataclasses import dataclass

import numpy as np

from equipoise.datasets.synthetic.fields import enlarge, noise, smoothstep
from equipoise.datasets.synthetic.morphology import Morphology

#: Grid of the layout, and of the fields whose structures are larger.
FINE_UM, COARSE_UM = 2.0, 8.0
RATIO = int(COARSE_UM / FINE_UM)


@dataclass(slots=True)
class Outline:
    """Tissue and tumour bed.

    ``tissue`` (0 to 1) and ``bed`` (positive inside, about 20 per standard deviation of its field) live on
    the 2 um grid ``[n, n]``, ``het`` (regional deviation of grade and infiltrate) on the 8 um grid.
    """

    tissue: np.ndarray
    bed: np.ndarray
    het: np.ndarray

    @property
    def side(self) -> int:
        """Side of the 2 um grid."""
        return self.tissue.shape[0]

    def area_mm2(self) -> float:
        """Tissue area."""
        return float(self.tissue.mean()) * (self.side * FINE_UM / 1000) ** 2


def draw_outline(rng: np.random.Generator, extent_um: float, morphology: Morphology) -> Outline:
    """One or two pieces of tissue with an irregular edge, and the tumour bed as a level set inside them."""
    side = int(np.ceil(extent_um / COARSE_UM))
    envelope = _envelope(rng, side)
    envelope += 0.10 * noise(rng, side, side / 6) + 0.05 * noise(rng, side, side / 18)
    envelope += _border(side)
    fine = enlarge(envelope, RATIO)
    # A frayed edge of the same width in um on slides of any size.
    fine += noise(rng, side * RATIO, 24 / FINE_UM) * np.float32(3.0 / extent_um)
    fine += noise(rng, side * RATIO, 7 / FINE_UM) * np.float32(1.6 / extent_um)
    tissue = smoothstep(fine, 1.004, 0.994)
    z = noise(rng, side, 360 / COARSE_UM) + 0.5 * noise(rng, side, 144 / COARSE_UM)
    inside = z[envelope < 1]
    cut = np.quantile(inside, 1 - morphology.tumour) if inside.size else 0
    bed = enlarge(20 * (z - np.float32(cut)), RATIO)
    het = noise(rng, side, 400 / COARSE_UM) * np.float32(morphology.hetero)
    return Outline(tissue, bed, het)


def _border(side: int) -> np.ndarray:
    """What keeps tissue off the edge of the glass; grows smoothly, so that no outline runs straight."""
    axis = (np.arange(side, dtype=np.float32) + 0.5) / side
    ramp = np.clip(1 - np.minimum(axis, 1 - axis) / np.float32(0.08), 0, 1) ** 2
    return np.float32(0.6) * np.hypot(ramp[:, None], ramp[None])


def _envelope(rng: np.random.Generator, side: int) -> np.ndarray:
    """Smallest elliptic radius over the pieces; tissue is where it is below 1."""
    axis = (np.arange(side, dtype=np.float32) + 0.5) / side
    pieces = [(0.5, 0.41)] if rng.random() < 0.5 else [(0.31, 0.235), (0.70, 0.235)]
    envelope = np.full((side, side), np.inf, np.float32)
    for centre, radius in pieces:
        cx, cy = centre + rng.uniform(-0.02, 0.02), 0.5 + rng.uniform(-0.03, 0.03)
        rx = radius * rng.uniform(0.94, 1.06)
        ry = 0.41 * rng.uniform(0.90, 1.06)
        part = np.hypot((axis[None] - cx) / rx, (axis[:, None] - cy) / ry)
        np.minimum(envelope, part.astype(np.float32), out=envelope)
    return envelope
