"""Morphology of a patient's tissue: fifteen numbers from the slide's view of the latents."""

from dataclasses import dataclass

import numpy as np

from equipoise.datasets.synthetic.cancers import CANCERS
from equipoise.datasets.synthetic.latents import Latents, observe
from equipoise.datasets.synthetic.params import Knobs


@dataclass(frozen=True, slots=True)
class Morphology:
    """Tissue parameters of one patient.

    Lengths in um, ``aggregates`` per mm2 of tissue, the other entries shares, probabilities or factors.
    """

    stroma: float
    grade: float
    til_epi: float
    til_str: float
    aggregates: float
    mucin: float
    necrosis: float
    mitosis: float
    apoptosis: float
    tumour: float
    gland_um: float
    epi_um: float
    cell: float
    hyperchrom: float
    hetero: float


def sigmoid(x: float) -> float:
    """Logistic function."""
    return float(1 / (1 + np.exp(-x)))


def draw_morphology(rng: np.random.Generator, latents: Latents, cancer: str, knobs: Knobs) -> Morphology:
    """Tissue of one patient; every parameter is a monotone function of one blurred latent."""
    of, seen = CANCERS[cancer], observe(rng, latents, knobs.rho_image)
    eps = rng.standard_normal(2)
    immune, proliferation = seen["immune"], seen["proliferation"]
    image = knobs.image_contrast * seen["image_only"]
    return Morphology(
        stroma=_clip(sigmoid(-0.65 + 0.75 * (seen["stroma"] + of.stroma)), 0.08, 0.80),
        grade=sigmoid(-0.4 + 1.3 * (seen["grade"] + of.grade)),
        til_epi=_clip(0.035 * np.exp(0.75 * immune), 0, 0.40),
        til_str=_clip(0.10 * np.exp(0.65 * immune), 0.01, 0.60),
        aggregates=_clip(1.1 * np.exp(0.7 * immune), 0, 10),
        mucin=_clip(0.05 * np.exp(0.85 * (seen["mucin"] + of.mucin)), 0, 0.60),
        necrosis=_clip(0.06 * np.exp(0.8 * seen["necrosis"]), 0, 0.45),
        mitosis=_clip(0.010 * np.exp(0.9 * proliferation), 0, 0.08),
        apoptosis=_clip(0.010 * np.exp(0.4 * proliferation), 0, 0.06),
        tumour=_clip(0.66 - 0.06 * seen["stroma"] + 0.05 * eps[0], 0.35, 0.90),
        gland_um=of.gland_um * float(np.exp(0.10 * image + 0.05 * eps[1])),
        epi_um=21 * float(np.exp(-0.28 * image)),
        cell=float(np.exp(0.10 * proliferation)),
        hyperchrom=float(np.exp(0.14 * proliferation)),
        hetero=_clip(0.35 + 0.25 * seen["heterogeneity"], 0, 1.2),
    )


def _clip(value: float, low: float, high: float) -> float:
    return float(min(max(value, low), high))
