"""Bulk RNA counts: cell types' profiles, mixed by a tissue's composition, with programmes turned up and down.

The profiles are the same for all patients of a seed, so that a single-cell reference made from them matches
the bulk by construction.
"""

from dataclasses import dataclass

import numpy as np

from equipoise.datasets.synthetic.genes import (
    CELL_TYPES,
    HOUSEKEEPING_STEMS,
    LEUKOCYTES,
    MARKERS,
    PANEL,
    PROGRAMMES,
)
from equipoise.datasets.synthetic.latents import Latents
from equipoise.datasets.synthetic.morphology import sigmoid

#: Programmes that act in every cell type; the others act in tumour cells (goblet cells included) alone.
_EVERYWHERE = ("IFNG", "EMT")
#: Relative abundance of the leukocytes (CD8 first, which MSI and immune activity raise), Dirichlet
#: concentration 6.
_LEUKOCYTE_WEIGHTS = np.array([1.2, 1.2, 0.8, 0.7, 0.4, 1.6, 0.6, 0.15])
_MEDIAN_DEPTH = 2e6


@dataclass(frozen=True, slots=True)
class Profiles:
    """Expression of the cell types.

    ``log_mean`` is ``[types, genes]`` in natural logarithms, ``loading`` is ``[programmes, genes]``,
    ``dispersion`` ``[genes]`` (variance of counts = mean + dispersion x mean squared).
    """

    log_mean: np.ndarray
    loading: np.ndarray
    dispersion: np.ndarray


@dataclass(frozen=True, slots=True)
class Tissue:
    """Composition ``[types]`` (sums to 1) and activity ``[programmes]`` of a patient's tumour."""

    fractions: np.ndarray
    activity: np.ndarray


def draw_profiles(rng: np.random.Generator) -> Profiles:
    """Profiles of the twelve cell types over the panel."""
    genes, types = len(PANEL), len(CELL_TYPES)
    index = {gene: k for k, gene in enumerate(PANEL)}
    base = rng.normal(0, 2.1, genes)
    housekeeping = np.array([gene.startswith(HOUSEKEEPING_STEMS) for gene in PANEL])
    base = np.where(housekeeping, rng.normal(5, 0.5, genes), base)
    log_mean = base + rng.normal(0, 0.35, (types, genes))
    for k, markers in enumerate(MARKERS.values()):
        columns = [index[gene] for gene in markers]
        log_mean[:, columns] = rng.normal(-1, 0.4, (types, len(columns)))
        log_mean[k, columns] = rng.normal(4, 0.7, len(columns))
    loading = np.zeros((len(PROGRAMMES), genes))
    for k, members in enumerate(PROGRAMMES.values()):
        loading[k, [index[gene] for gene in members]] = np.abs(rng.normal(0.75, 0.2, len(members)))
    return Profiles(log_mean, loading, rng.gamma(3, 0.05, genes) + 0.03)


def draw_tissue(rng: np.random.Generator, latents: Latents, seen: dict[str, float]) -> Tissue:
    """Composition and programme activity of one patient, from the omics' view of its latents."""
    msi, hrd, immune = latents.msi, latents.hrd, seen["immune"]
    silenced = msi and rng.random() < 0.80
    activity = {
        "PROLIF": seen["proliferation"],
        "MSI_DOWN": -3.2 * silenced,
        "MSI_UP": 0.9 * msi,
        "HRD": 0.9 * hrd + 0.25 * seen["proliferation"],
        "IFNG": 0.7 * immune,
        "EMT": seen["omics_only"],
        "HYPOXIA": 0.5 * seen["necrosis"] + 0.4 * seen["omics_only"],
        "WNT": -0.6 * msi,
        "DIFF": -0.8 * seen["grade"],
    }
    fibrous = sigmoid(-0.9 + 0.7 * seen["stroma"])
    stroma = 0.7 * fibrous
    leukocytes = sigmoid(-1.6 + 0.75 * immune) / (1 + 0.4 * fibrous)
    tumour = max(0.08, 1 - leukocytes - stroma)
    goblet = float(np.clip(0.06 * np.exp(0.8 * seen["mucin"]), 0, 0.5))
    weights = _LEUKOCYTE_WEIGHTS.copy()
    weights[0] *= np.exp(0.4 * immune + 0.4 * msi)
    parts = np.concatenate(
        [
            [tumour * (1 - goblet), tumour * goblet, 0.85 * stroma, 0.15 * stroma],
            leukocytes * rng.dirichlet(6 * weights),
        ]
    )
    assert len(parts) == 4 + len(LEUKOCYTES) == len(CELL_TYPES)
    return Tissue(parts / parts.sum(), np.array([activity[name] for name in PROGRAMMES]))


def type_means(profiles: Profiles, tissue: Tissue) -> np.ndarray:
    """Expected expression of every cell type in this tissue, ``[types, genes]``, linear scale."""
    everywhere = np.array([name in _EVERYWHERE for name in PROGRAMMES])
    tumour = np.array([name in ("tumour", "goblet") for name in CELL_TYPES])
    acts = everywhere[None] | tumour[:, None]  # [types, programmes]
    return np.exp(profiles.log_mean + (acts * tissue.activity) @ profiles.loading)


def draw_batch(rng: np.random.Generator) -> np.ndarray:
    """Log shift of every gene in one cohort's laboratory, ``[genes]``."""
    return rng.normal(0, 0.25, len(PANEL))


def draw_counts(
    rng: np.random.Generator, profiles: Profiles, tissue: Tissue, batch: np.ndarray
) -> np.ndarray:
    """Bulk counts of one sample, int32 ``[genes]``: gamma-Poisson around the mixture."""
    mixture = tissue.fractions @ type_means(profiles, tissue)
    mixture = mixture * np.exp(batch + rng.normal(0, 0.12, len(PANEL)))
    depth = _MEDIAN_DEPTH * np.exp(rng.normal(0, 0.35))
    shape = 1 / profiles.dispersion
    noisy = mixture / mixture.sum() * depth * rng.gamma(shape, profiles.dispersion)
    return rng.poisson(noisy).astype(np.int32)
