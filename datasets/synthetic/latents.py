"""Latent variables of a patient: two molecular states and nine normal scores behind all data."""

from dataclasses import dataclass

import numpy as np

from equipoise.datasets.synthetic.params import Knobs, SiteStyle

#: Below two positives no stratified fold has one on both sides.
MIN_POSITIVES = 2


@dataclass(frozen=True, slots=True)
class Latents:
    """Truth about one patient.

    ``omics_only`` shapes expression (a little reaches the slide through ``stroma``); ``image_only`` shapes
    the slide and nothing else: with them, and a hazard that depends on both, neither modality can replace
    the other.
    """

    msi: bool
    hrd: bool
    immune: float
    mucin: float
    grade: float
    proliferation: float
    stroma: float
    heterogeneity: float
    necrosis: float
    omics_only: float
    image_only: float


SCORES = tuple(name for name in Latents.__dataclass_fields__ if name not in ("msi", "hrd"))


def assign_states(rng: np.random.Generator, patients: int, style: SiteStyle) -> tuple[np.ndarray, np.ndarray]:
    """Which patients have MSI and which HRD.

    Counts are fixed (``round(p n)``, at least two of either class from four patients on) instead of drawn, so
    that small cohorts can be split. HRD is five times less likely under MSI.

    Returns
    -------
    msi, hrd
        bool ``[patients]`` each.
    """
    msi = np.zeros(patients, bool)
    msi[rng.permutation(patients)[: _count(style.p_msi, patients)]] = True
    weight = np.where(msi, 0.2, 1.0)
    chosen = rng.choice(patients, _count(style.p_hrd, patients), replace=False, p=weight / weight.sum())
    hrd = np.zeros(patients, bool)
    hrd[chosen] = True
    return msi, hrd


def _count(share: float, patients: int) -> int:
    return min(max(MIN_POSITIVES, round(share * patients)), max(patients - MIN_POSITIVES, 0))


def draw_latents(
    rng: np.random.Generator, *, msi: bool, hrd: bool, style: SiteStyle, knobs: Knobs
) -> Latents:
    """Scores of one patient given its molecular states; all are about N(0, 1) over a cohort."""
    z = rng.standard_normal(len(SCORES))
    a, b, effect = msi - style.p_msi, hrd - style.p_hrd, knobs.msi_effect
    immune = 0.85 * z[0] + effect * a + 0.45 * b
    mucin = 0.85 * z[1] + 0.8 * effect * a
    grade = 0.85 * z[2] + 0.6 * effect * a + 0.7 * b
    proliferation = 0.8 * z[3] + 0.30 * grade + b
    omics_only = z[4]
    stroma = 0.85 * z[5] - 0.25 * immune + 0.2 * omics_only
    heterogeneity = 0.85 * z[6] - 0.6 * a + 0.9 * b
    necrosis = 0.85 * z[7] + 0.25 * grade + 0.7 * b
    scores = (immune, mucin, grade, proliferation, stroma, heterogeneity, necrosis, omics_only, z[8])
    return Latents(msi, hrd, *map(float, scores))


def observe(rng: np.random.Generator, latents: Latents, rho: float) -> dict[str, float]:
    """One modality's blurred view of the scores: ``rho x + sqrt(1 - rho^2) noise`` for each."""
    noise = rng.standard_normal(len(SCORES)) * np.sqrt(1 - rho**2)
    return {name: float(rho * getattr(latents, name) + e) for name, e in zip(SCORES, noise, strict=True)}
