"""Single-cell reference of the twelve cell types, from the very profiles that the bulk counts are mixed of."""

from pathlib import Path

import numpy as np

from equipoise.datasets.synthetic.expression import draw_profiles, draw_tissue, type_means
from equipoise.datasets.synthetic.genes import CELL_TYPES, PANEL
from equipoise.datasets.synthetic.latents import observe
from equipoise.datasets.synthetic.params import Preset
from equipoise.datasets.synthetic.patients import draw_patients
from equipoise.datasets.synthetic.seeds import WHOLE_COHORT, Purpose, stream
from equipoise.datasets.whole_files import atomic_path

#: Patients of each cohort whose tumours were taken apart.
DONORS = 2
_MEDIAN_DEPTH, _DEPTH_SD = 3500, 0.35
_DISPERSION, _CELL_SD = 0.35, 0.25


def write_single_cell(preset: Preset, seed: int, path: Path) -> None:
    """Write the reference as ``.h5ad``: counts (CSR), ``obs`` with cell type, donor and cohort.

    Donors are the first patients of each cohort, with their own programme activity; every type has
    ``preset.single_cell`` cells of each donor.
    """
    import anndata
    import pandas as pd
    from scipy.sparse import csr_matrix

    profiles = draw_profiles(stream(seed, 0, WHOLE_COHORT, Purpose.PROFILES))
    counts, rows = [], []
    for cohort in preset.cohorts:
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
    depth = _MEDIAN_DEPTH * np.exp(rng.normal(0, _DEPTH_SD, (cells, 1)))
    noisy = expected * depth * rng.gamma(1 / _DISPERSION, _DISPERSION, size)
    return rng.poisson(noisy).astype(np.float32)
