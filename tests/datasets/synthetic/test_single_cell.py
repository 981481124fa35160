import anndata
import numpy as np

from equipoise.datasets.synthetic.catalogue import PRESETS_BY_NAME
from equipoise.datasets.synthetic.generate import write_tables
from equipoise.datasets.synthetic.genes import CELL_TYPES, MARKERS, PANEL
from equipoise.datasets.synthetic.omics import DONORS, write_single_cell
from equipoise.datasets.synthetic.tables import build_tables

PRESET = PRESETS_BY_NAME["tiny"].model_copy(update={"single_cell": 15})


def test_reference_holds_every_type_of_every_donor(tmp_path):
    write_single_cell(PRESET, 7, tmp_path / "a.h5ad")
    data = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert tuple(data.var_names) == PANEL
    counts = data.obs.groupby(["cell_type", "donor"], observed=True).size()
    assert len(counts) == len(CELL_TYPES) * DONORS * len(PRESET.cohorts)
    assert (counts == 15).all()
    assert data.obs.donor.str.startswith("SYN-").all()
    assert "SYNTHETIC" in data.uns["notice"]
    matrix = data.X.toarray()
    assert (matrix == np.round(matrix)).all()
    assert 2800 < np.median(matrix.sum(axis=1)) < 4300
    assert (matrix == 0).mean() > 0.5
    write_single_cell(PRESET, 7, tmp_path / "b.h5ad")
    assert (tmp_path / "a.h5ad").read_bytes() == (tmp_path / "b.h5ad").read_bytes()

    log = np.log1p(matrix / matrix.sum(axis=1, keepdims=True) * 1e4)
    assert len(MARKERS) > 0
    for name, genes in MARKERS.items():
        score = log[:, [PANEL.index(gene) for gene in genes]].mean(axis=1)
        own = (data.obs.cell_type == name).to_numpy()
        assert score[own].min() > np.quantile(score[~own], 0.95), name


def test_reference_explains_the_bulk(tmp_path):
    write_single_cell(PRESET, 7, tmp_path / "a.h5ad")
    data = anndata.read_h5ad(tmp_path / "a.h5ad")
    means = np.stack([data.X[(data.obs.cell_type == name).to_numpy()].mean(axis=0).A1 for name in CELL_TYPES])
    bulk = build_tables(PRESET.cohorts[0], PRESET.knobs, 7).omics["rna"].set_index("PATIENT").to_numpy()
    mixture = np.log1p(1e4 * means.mean(axis=0) / means.mean(axis=0).sum())
    observed = np.log1p(1e4 * bulk.mean(axis=0) / bulk.mean(axis=0).sum())
    assert np.corrcoef(mixture, observed)[0, 1] > 0.85


def test_reference_is_written_where_the_preset_has_one(tmp_path):
    write_tables(PRESET, 7, tmp_path)
    assert (tmp_path / "single_cell.h5ad").is_file()
    assert '"single_cell.h5ad"' in (tmp_path / "manifest.json").read_text()
    assert PRESETS_BY_NAME["demo"].single_cell > 0
