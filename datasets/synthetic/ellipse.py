"""Wobbly ellipses painted into the 2 um grid, and places for them."""

from dataclasses import dataclass

import numpy as np

from equipoise.datasets.synthetic.outline import COARSE_UM, FINE_UM

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
    place = np.stack(np.unravel_index(np.minimum(cell, total.size - 1), weight.shape), axis=1)
    return (place + rng.random((count, 2))) * COARSE_UM


def _span(centre: float, reach: float, side: int) -> slice:
    low = int(np.clip((centre - reach) // FINE_UM, 0, side))
    high = int(np.clip((centre + reach) // FINE_UM + 1, low, side))
    return slice(low, high)
