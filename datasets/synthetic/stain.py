"""From optical density to colour: a slide's stain vectors, strength, white point and gamma in one table."""

from dataclasses import dataclass

import numpy as np

from equipoise.datasets.synthetic.params import SiteStyle
from equipoise.datasets.synthetic.stamps import OD_FULL

#: Gains that bring density maps to the look of a stained section.
_GAIN_H, _GAIN_E = 1.5, 1.15
#: Stain shift of a source site within its cohort: small, but enough for site-preserved folds to matter.
_SOURCE_SD = 0.35


@dataclass(frozen=True, slots=True)
class Stain:
    """Unit stain vectors with their gains (RGB density per unit of H or E), white point (0-255) and gamma."""

    haematoxylin: np.ndarray
    eosin: np.ndarray
    white: np.ndarray
    gamma: float

    def table(self) -> np.ndarray:
        """Packed RGBX of every pair of densities, uint32 ``[65536]``; index ``eosin | haematoxylin << 8``."""
        level = np.arange(256, dtype=np.float64) * (OD_FULL / 255)
        density = level[:, None, None] * self.haematoxylin + level[None, :, None] * self.eosin
        rgb = self.white * np.exp(-density) ** self.gamma
        table = np.full((256, 256, 4), 255, np.uint8)
        table[..., :3] = np.clip(np.rint(rgb), 0, 255)
        return table.view("<u4").reshape(-1)


def draw_stain(rng: np.random.Generator, source: np.random.Generator, style: SiteStyle) -> Stain:
    """Stain of one slide: the site's, shifted by its tissue source site, jittered by the day.

    Parameters
    ----------
    source
        Stream of the source site, the same for all of its slides.
    """
    shift = _wobble(source, style.jitter * _SOURCE_SD)
    jitter = _wobble(rng, style.jitter)
    vectors = []
    for k, vector in enumerate((style.haematoxylin, style.eosin)):
        moved = np.maximum(np.asarray(vector) + shift[0][k] + jitter[0][k], 0.01)
        vectors.append(moved / np.linalg.norm(moved))
    gain_h = _GAIN_H * style.haematoxylin_gain * np.exp(shift[1][0] + jitter[1][0])
    gain_e = _GAIN_E * style.eosin_gain * np.exp(shift[1][1] + jitter[1][1])
    return Stain(vectors[0] * gain_h, vectors[1] * gain_e, np.asarray(style.white, float), style.gamma)


def _wobble(rng: np.random.Generator, sd: float) -> tuple[np.ndarray, np.ndarray]:
    """Shifts of both vectors ``[2, 3]`` and of both log gains ``[2]``."""
    return rng.normal(0, 0.25 * sd, (2, 3)), rng.normal(0, 1.2 * sd, 2)
