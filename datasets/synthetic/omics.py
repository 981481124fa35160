"""Omics of a patient: bulk RNA counts, mutations, copy number; and the single-cell reference of a preset.

RNA counts are profiles of cell types, mixed by the composition of a tissue, with programmes turned up and down.
The profiles are the same for all patients of a seed, so that a single-cell reference made from them matches
the bulk by construction.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from equipoise.datasets.atomic_io import atomic_path
from equipoise.datasets.synthetic.cancers import CANCERS
from equipoise.datasets.synthetic.genes import (
    CELL_TYPES,
    HOUSEKEEPING_STEMS,
    LEUKOCYTES,
    MARKERS,
    PANEL,
    PROGRAMMES,
)
from equipoise.datasets.synthetic.latents import Latents, observe
from equipoise.datasets.synthetic.morphology import sigmoid
from equipoise.datasets.synthetic.params import Knobs, Preset
from equipoise.datasets.synthetic.patients import draw_patients
from equipoise.datasets.synthetic.seeds import WHOLE_COHORT, Purpose, stream

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


def draw_organ_profiles(seed: int, cancer: str, knobs: Knobs) -> Profiles:
    """Profiles of the cell types in one cancer.

    They are the same for all cancers unless ``knobs.organ`` is above 0: then every gene is shifted at random, and the
    programmes of :class:`~equipoise.datasets.synthetic.cancers.Cancer` are turned up or down in proportion.
    """
    profiles = draw_profiles(stream(seed, 0, WHOLE_COHORT, Purpose.PROFILES))
    if not knobs.organ:
        return profiles
    rng = stream(seed, 0, WHOLE_COHORT, Purpose.ORGAN, list(CANCERS).index(cancer))
    shift = rng.normal(0, 1, len(PANEL))
    typical = np.array([CANCERS[cancer].programmes.get(name, 0.0) for name in PROGRAMMES])
    shifts = shift + (_acts() * typical) @ profiles.loading
    return replace(profiles, log_mean=profiles.log_mean + knobs.organ * shifts)


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
    return np.exp(profiles.log_mean + (_acts() * tissue.activity) @ profiles.loading)


def _acts() -> np.ndarray:
    """Whether a programme acts in a cell type, ``[types, programmes]``."""
    everywhere = np.array([name in _EVERYWHERE for name in PROGRAMMES])
    tumour = np.array([name in ("tumour", "goblet") for name in CELL_TYPES])
    return everywhere[None] | tumour[:, None]


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


#: Mutation frequency in stable tumours, under MSI and under HRD.
MUTATIONS: dict[str, tuple[float, float, float]] = {
    "APC": (0.78, 0.45, 0.60),
    "TP53": (0.62, 0.25, 0.85),
    "KRAS": (0.43, 0.28, 0.30),
    "BRAF": (0.05, 0.55, 0.05),
    "RNF43": (0.03, 0.55, 0.03),
    "ACVR2A": (0.02, 0.60, 0.02),
    "TGFBR2": (0.03, 0.55, 0.03),
    "BRCA2": (0.02, 0.10, 0.25),
    "BRCA1": (0.02, 0.06, 0.22),
    "PALB2": (0.01, 0.05, 0.08),
    "ATM": (0.05, 0.18, 0.10),
    "PIK3CA": (0.17, 0.35, 0.14),
    "SMAD4": (0.13, 0.10, 0.12),
    "FBXW7": (0.13, 0.22, 0.12),
    "PTEN": (0.05, 0.28, 0.10),
    "ARID1A": (0.06, 0.40, 0.08),
    "MSH3": (0.02, 0.42, 0.02),
    "MSH6": (0.02, 0.38, 0.03),
    "B2M": (0.01, 0.28, 0.02),
    "CTNNB1": (0.05, 0.14, 0.05),
}

#: Mutations per megabase: stable, MSI, POLE-like (2 % of stable tumours).
_RATE, _RATE_MSI, _RATE_POLE = 5, 32, 120
_EXOME_MB = 38

_ACROCENTRIC = (13, 14, 15, 21, 22)
#: Autosomal arms; five chromosomes have no short arm to speak of.
ARMS = tuple(f"{c}{arm}" for c in range(1, 23) for arm in "pq" if arm == "q" or c not in _ACROCENTRIC)
_GAINED = ("7p", "7q", "8q", "13q", "20p", "20q")
_LOST = ("1p", "5q", "8p", "17p", "18p", "18q")

MUTATION_COLUMNS = (*MUTATIONS, "TMB")


def draw_mutations(rng: np.random.Generator, latents: Latents) -> np.ndarray:
    """Mutation status of every gene (0 or 1) and the burden per megabase, float32 ``[genes + 1]``."""
    column = 1 if latents.msi else 2 if latents.hrd else 0
    probability = np.array([row[column] for row in MUTATIONS.values()])
    mutated = rng.random(len(probability)) < probability
    pole = rng.random() < 0.02
    rate = _RATE_MSI if latents.msi else _RATE_POLE if pole else _RATE
    rate *= np.exp(rng.normal(0, 0.6))
    burden = rng.poisson(_EXOME_MB * rate) / _EXOME_MB
    return np.append(mutated, burden).astype(np.float32)


def draw_arms(rng: np.random.Generator, latents: Latents, seen: dict[str, float]) -> np.ndarray:
    """Mean log2 ratio of every chromosome arm, float32 ``[arms]``."""
    rate = 0.22 + 0.07 * seen["heterogeneity"] + 0.08 * latents.hrd - 0.10 * latents.msi + rng.normal(0, 0.05)
    rate = float(np.clip(rate, 0.02, 0.7))
    lean = np.array([(arm in _GAINED) - (arm in _LOST) for arm in ARMS])
    event = rng.random(len(ARMS)) < np.minimum(rate * np.where(lean, 1.5, 1.0), 1)
    gain = rng.random(len(ARMS)) < 1 / (1 + np.exp(-1.6 * lean))
    values = event * np.where(gain, 0.45, -0.45) + rng.normal(0, 0.06, len(ARMS))
    return values.astype(np.float32)


#: Patients of each cohort with single-cell counts.
DONORS = 2
_CELL_MEDIAN_DEPTH, _CELL_DEPTH_SD = 3500, 0.35
_DISPERSION, _CELL_SD = 0.35, 0.25


def write_single_cell(preset: Preset, seed: int, path: Path) -> None:
    """Write the reference as ``.h5ad``: counts (CSR), ``obs`` with cell type, donor and cohort.

    Donors are the first patients of each cohort, with their own programme activity; every type has
    ``preset.single_cell`` cells of each donor.
    """
    import anndata
    import pandas as pd
    from scipy.sparse import csr_matrix

    counts, rows = [], []
    for cohort in preset.cohorts:
        profiles = draw_organ_profiles(seed, cohort.style.cancer, preset.knobs)
        for patient in draw_patients(cohort, preset.knobs, seed)[:DONORS]:
            number = cohort.style.number
            # The first draws of this stream are those behind the patient's bulk sample.
            rng = stream(seed, number, patient.number, Purpose.OMICS)
            tissue = draw_tissue(rng, patient.latents, observe(rng, patient.latents, preset.knobs.rho_omics))
            means = type_means(profiles, tissue)
            rng = stream(seed, number, patient.number, Purpose.SINGLE_CELL)
            for kind, mean in zip(CELL_TYPES, means, strict=True):
                counts.append(_draw_cells(rng, mean, preset.single_cell))
                rows += [(kind, patient.barcode, cohort.name)] * preset.single_cell
    table = pd.DataFrame(rows, columns=pd.Index(["cell_type", "donor", "cohort"]))
    table.index = pd.Index([f"cell-{k:06d}" for k in range(len(table))])
    data = anndata.AnnData(
        X=csr_matrix(np.concatenate(counts)),
        obs=table.astype("category"),
        var=pd.DataFrame(index=pd.Index(PANEL)),
    )
    data.uns["notice"] = "SYNTHETIC: no patient; cells match the bulk counts by construction"
    with atomic_path(path) as partial:
        data.write_h5ad(partial, compression="gzip")


def _draw_cells(rng: np.random.Generator, mean: np.ndarray, cells: int) -> np.ndarray:
    """Counts of some cells of one type, float32 ``[cells, genes]`` (whole numbers)."""
    size = (cells, len(mean))
    expected = mean * np.exp(rng.normal(0, _CELL_SD, size))
    expected /= expected.sum(axis=1, keepdims=True)
    depth = _CELL_MEDIAN_DEPTH * np.exp(rng.normal(0, _CELL_DEPTH_SD, (cells, 1)))
    noisy = expected * depth * rng.gamma(1 / _DISPERSION, _DISPERSION, size)
    return rng.poisson(noisy).astype(np.float32)
