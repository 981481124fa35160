"""The map of a slide: compartments and stain on a 2 um grid, the same at any resolution of the scan."""

from dataclasses import dataclass

import numpy as np

from equipoise.datasets.synthetic.cancers import Cancer
from equipoise.datasets.synthetic.fields import enlarge, noise, smoothstep
from equipoise.datasets.synthetic.glands import Glands, plant_glands
from equipoise.datasets.synthetic.morphology import Morphology
from equipoise.datasets.synthetic.outline import FINE_UM, RATIO, Outline, draw_outline
from equipoise.datasets.synthetic.stamps import OD_FULL
from equipoise.datasets.synthetic.stroma import (
    Vessels,
    aggregate_field,
    draw_vessels,
    fat_field,
    fat_vacuoles,
    fibre_direction,
    fibre_field,
    muscle_field,
)
from equipoise.datasets.synthetic.textures import FIBRE_SIDE, strands, tiled

#: Classes of the truth mask, at 8 um per pixel.
MASK_CLASSES = (
    "background",
    "epithelium",
    "stroma",
    "lumen",
    "mucin",
    "necrosis",
    "lymphoid aggregate",
    "vessel",
    "fat",
)


@dataclass(slots=True)
class Layout:
    """Everything that cells and pixels are made from; float32 ``[n, n]`` at 2 um unless said otherwise."""

    outline: Outline
    glands: Glands
    vessels: Vessels
    stroma: np.ndarray
    aggregate: np.ndarray
    muscle: np.ndarray
    fat: np.ndarray
    vacuoles: np.ndarray
    direction: tuple[np.ndarray, np.ndarray]  # cos 2a, sin 2a on the 8 um grid

    def mask(self) -> np.ndarray:
        """Truth mask: uint8 at 8 um per pixel, values index :data:`MASK_CLASSES`."""
        g, v = self.glands, self.vessels
        lymphoid = self.aggregate * self.stroma
        parts = (
            1 - self.outline.tissue,
            g.epithelium,
            self.stroma - lymphoid,
            g.lumen,
            g.mucin,
            g.necrosis,
            lymphoid,
            v.lumen + v.wall,
            self.fat,
        )
        return np.stack([_coarse(part) for part in parts]).argmax(axis=0).astype(np.uint8)


def draw_layout(rng: np.random.Generator, extent_um: float, morphology: Morphology, cancer: Cancer) -> Layout:
    """Lay out one slide of ``extent_um`` squared."""
    outline = draw_outline(rng, extent_um, morphology)
    glands = plant_glands(rng, outline, morphology)
    stroma = outline.tissue - glands.epithelium - glands.lumen - glands.mucin - glands.necrosis
    np.clip(stroma, 0, 1, out=stroma)
    fat = fat_field(rng, outline, cancer.fat)
    fat *= stroma
    vacuoles = fat_vacuoles(rng, outline, fat)
    stroma -= fat
    aggregate = aggregate_field(rng, outline, stroma, morphology)
    vessels = draw_vessels(rng, outline, stroma * (1 - aggregate))
    stroma -= vessels.lumen
    stroma -= vessels.wall
    muscle = muscle_field(rng, outline)
    direction = fibre_direction(rng, glands.slope, muscle)
    return Layout(outline, glands, vessels, stroma, aggregate, muscle, fat, vacuoles, direction)


def stain_layers(
    rng: np.random.Generator, layout: Layout, morphology: Morphology
) -> tuple[np.ndarray, np.ndarray]:
    """Optical density of eosin and haematoxylin without cells, uint8 ``[n, n]`` with 255 = 2.2."""
    side = layout.outline.side
    g, v, stroma = layout.glands, layout.vessels, layout.stroma
    fibre = fibre_field(rng, *layout.direction)

    eosin = 0.50 + 0.05 * noise(rng, side, 24 / FINE_UM)
    eosin += enlarge(0.06 * noise(rng, side // RATIO, 16), RATIO)  # loose and dense stroma
    eosin += fibre * (0.115 - 0.06 * layout.muscle)
    eosin += 0.10 * layout.muscle
    # Shrinkage opens clefts between bundles: more where the collagen is thin anyway.
    cleft = noise(rng, side, 18 / FINE_UM) + 0.4 * noise(rng, side, 8 / FINE_UM) - 0.55 * fibre
    eosin *= stroma * (1 - 0.9 * smoothstep(cleft, 2.25, 2.65))
    haematoxylin = 0.055 * stroma
    haematoxylin += 0.10 * stroma * layout.aggregate

    goblet = _goblets(rng, layout, morphology)
    eosin += g.epithelium * (0.36 - 0.24 * goblet) + 0.22 * g.apical * (1 - goblet)
    haematoxylin += g.epithelium * (0.17 - 0.02 * goblet)

    clumps = smoothstep(noise(rng, side, 20 / FINE_UM), -0.2, 0.9)
    strand = _strand_field(rng, side)
    eosin += g.lumen * (0.015 + g.secretion * clumps)
    eosin += 0.045 * g.mucin + g.necrosis * (0.62 + 0.08 * noise(rng, side, 10 / FINE_UM))
    haematoxylin += 0.115 * g.mucin + 0.17 * g.necrosis
    haematoxylin += (g.mucin + 0.35 * g.lumen) * 0.055 * strand

    eosin += v.wall * (0.52 + 0.06 * fibre) + v.lumen * 0.05
    eosin += (layout.fat - layout.vacuoles) * 0.45 + layout.vacuoles * 0.006
    haematoxylin += v.wall * 0.06 + 0.03 * (layout.fat - layout.vacuoles)
    tissue = layout.outline.tissue
    eosin *= 1 + 0.25 * ((tissue > 0.05) & (tissue < 0.9))
    return _encode(eosin), _encode(haematoxylin)


def _goblets(rng: np.random.Generator, layout: Layout, morphology: Morphology) -> np.ndarray:
    """Mucus vacuoles of goblet cells in the upper half of well differentiated epithelium, 0 to 1."""
    g = layout.glands
    upper = smoothstep(g.depth, 9.0, 13.0) * smoothstep(g.grade, 0.50, 0.25) * (1 - g.bridges)
    amount = float(np.clip(0.9 - 3.0 * morphology.mucin, 0.1, 0.9))
    drops = noise(rng, layout.outline.side, 8 / FINE_UM) + enlarge(
        noise(rng, layout.outline.side // RATIO, 12), RATIO
    )
    return upper * smoothstep(drops, amount, amount + 0.5)


def _strand_field(rng: np.random.Generator, side: int) -> np.ndarray:
    shift = rng.integers(0, FIBRE_SIDE, 2)
    warp = np.stack([noise(rng, side, 60 / FINE_UM), noise(rng, side, 60 / FINE_UM)]) * np.float32(
        14 / FINE_UM
    )
    return tiled(strands(FINE_UM), side, (int(shift[0]), int(shift[1])), warp)


def _coarse(field: np.ndarray) -> np.ndarray:
    side = field.shape[0] // RATIO
    return field.reshape(side, RATIO, side, RATIO).mean(axis=(1, 3))


def _encode(density: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(density * np.float32(255 / OD_FULL)), 0, 255).astype(np.uint8)
