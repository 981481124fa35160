import gzip
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.io import mmwrite
from scipy.sparse import csr_matrix

from equipoise.datasets.errors import DataError
from equipoise.datasets.omics.single_cell import SingleCells, hold_out, pseudo_bulk, read_single_cells

COUNTS = np.array([[0, 3, 1], [2, 0, 0], [5, 1, 9], [1, 0, 4]], np.float32)
TYPES = ["B", "T", "B", "T"]


def write(path: Path, x: np.ndarray, types: list | None = None, raw: np.ndarray | None = None, **uns) -> Path:
    obs = pd.DataFrame({"cell_type": types or TYPES}, index=[f"cell-{i}" for i in range(len(x))])
    var = pd.DataFrame(index=["A", "B", "C"])
    data = anndata.AnnData(X=x.copy(), obs=obs, var=var)
    if raw is not None:
        data.raw = anndata.AnnData(X=raw.copy(), obs=obs, var=var)
    data.uns.update(uns)
    data.write_h5ad(path)
    return path


@pytest.mark.parametrize(
    ("declared", "uns", "base"),
    [
        ({"kind": "log", "base": 2.0}, {}, 2.0),
        ({"kind": "log"}, {}, np.e),
        ({}, {"log1p": {"base": 2.0}}, 2.0),
    ],
)
def test_logarithms_are_undone(tmp_path, declared, uns, base):
    path = write(tmp_path / "log.h5ad", np.log1p(COUNTS) / np.log(base), **uns)
    cells = read_single_cells(path, "cell_type", **declared)
    np.testing.assert_allclose(cells.values.toarray(), COUNTS, rtol=1e-5)
    assert cells.types == ("B", "T")
    assert cells.labels.tolist() == [0, 1, 0, 1]
    assert any("log" in note for note in cells.notes)


def test_counts_are_read_as_they_are_and_synthetic_is_said(tmp_path):
    cells = read_single_cells(write(tmp_path / "c.h5ad", COUNTS, notice="SYNTHETIC: made up"))
    assert (cells.values.toarray() == COUNTS).all()
    assert cells.genes == ("A", "B", "C")
    assert cells.notes == ("values of X", "kind counts")
    assert cells.synthetic
    assert cells.labels.tolist() == [-1] * 4


def test_raw_stands_in_for_scaled_values_and_is_named(tmp_path):
    scaled = (COUNTS - COUNTS.mean(0)) / COUNTS.std(0)
    path = write(tmp_path / "s.h5ad", scaled, raw=np.log1p(COUNTS))
    cells = read_single_cells(path, "cell_type", kind="log")
    np.testing.assert_allclose(cells.values.toarray(), COUNTS, rtol=1e-5)
    assert cells.notes[0] == "values of .raw, because X has negative values"
    with pytest.raises(DataError, match="z-scores"):
        read_single_cells(path, layer="X", kind="log")
    with pytest.raises(DataError, match="z-scores"):
        read_single_cells(write(tmp_path / "z.h5ad", scaled))


@pytest.mark.parametrize(
    ("values", "declared", "match"),
    [
        (COUNTS / 3, {}, "does not say what they are"),
        (COUNTS / 3, {"kind": "counts"}, "declared as counts"),
        (COUNTS * 30, {"kind": "log"}, "declared as logarithms"),
        (COUNTS, {"kind": "counts", "base": 2.0}, "a base belongs to logarithms"),
        (COUNTS, {"kind": "log", "base": 1.0}, "above 1"),
        (COUNTS, {"layer": "count"}, "no layer 'count'"),
        (COUNTS, {"kind": "fpkm"}, "unknown kind"),
        (COUNTS, {"labels": "celltype"}, "no column 'celltype' among the cells; nearest: 'cell_type'"),
        (COUNTS, {"gene_column": "symbol"}, "no column 'symbol' among the genes"),
        (np.where(COUNTS == 9, np.nan, COUNTS), {"kind": "tpm"}, "NaN"),
        (COUNTS * 0, {}, "no cell has a value"),
    ],
)
def test_contradictions_are_refused(tmp_path, values, declared, match):
    with pytest.raises(DataError, match=match):
        read_single_cells(write(tmp_path / "x.h5ad", values), **declared)


def test_cells_without_type_or_transcripts_are_left_out_and_counted(tmp_path):
    values = np.vstack([COUNTS, np.zeros((1, 3)), np.ones((1, 3))]).astype(np.float32)
    cells = read_single_cells(write(tmp_path / "x.h5ad", values, [*TYPES, "T", None]), "cell_type")
    assert (cells.values.toarray() == COUNTS).all()
    assert "1 cells without a type left out" in cells.notes
    assert "1 cells without any transcript left out" in cells.notes


def test_10x_folder_with_a_table_of_types_and_a_repeated_symbol(tmp_path):
    folder = tmp_path / "10x"
    folder.mkdir()
    mmwrite(tmp_path / "m.mtx", csr_matrix(COUNTS.T.astype(int)))
    barcodes = "".join(f"cell-{i}\n" for i in range(4))
    features = "ENSG1\tA\tGene Expression\nENSG2\tB\tGene Expression\nENSG3\tA\tGene Expression\n"
    for name, text in (
        ("matrix.mtx", (tmp_path / "m.mtx").read_text()),
        ("barcodes.tsv", barcodes),
        ("features.tsv", features),
    ):
        (folder / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
    table = tmp_path / "types.csv"
    table.write_text("barcode,type\ncell-3,T\ncell-0,B\ncell-1,T\n")
    cells = read_single_cells(folder, "type", labels_table=table)
    assert cells.genes == ("A", "B")
    assert (cells.values.toarray() == [[1, 3], [2, 0], [5, 0]]).all()
    assert cells.labels.tolist() == [0, 1, 1]
    assert "1 repeated gene names summed" in cells.notes
    with pytest.raises(DataError, match="give a table of cell types"):
        read_single_cells(folder, "type")
    table.write_text("barcode,type\nother,T\n")
    with pytest.raises(DataError, match="no barcode of the table"):
        read_single_cells(folder, "type", labels_table=table)


def test_what_is_no_reference_is_refused(tmp_path):
    (tmp_path / "x.h5ad").write_text("not HDF5")
    for path in (tmp_path / "x.h5ad", tmp_path):
        with pytest.raises(DataError, match="cannot be read as a single-cell reference"):
            read_single_cells(path)
    with pytest.raises(DataError, match="no such file"):
        read_single_cells(tmp_path / "y.h5ad")


def of_types(labels: list[int], types: int) -> SingleCells:
    """Every cell of type k expresses gene k alone, so that a mixture's values are its fractions."""
    values = csr_matrix(np.eye(types, dtype=np.float32)[labels])
    names = tuple("abcdef"[:types])
    return SingleCells(values, names, names, np.array(labels))


def test_pseudo_bulk_values_are_the_mean_of_the_drawn_cells():
    values, fractions = pseudo_bulk(of_types([2, 0, 0, 1, 2, 2, 0], 3), 400, seed=1)
    np.testing.assert_allclose(values, fractions, atol=1e-6)
    np.testing.assert_allclose(fractions.sum(1), 1, atol=1e-6)
    # Flat over the simplex: mean 1/3, and variance of a Dirichlet(1, 1, 1) plus that of 100 draws.
    np.testing.assert_allclose(fractions.mean(0), 1 / 3, atol=0.04)
    expected = 1 / 18 + (1 / 3 * 2 / 3 - 1 / 18) / 100
    np.testing.assert_allclose(fractions.var(0), expected, rtol=0.2)


def test_pseudo_bulk_is_seeded_and_draws_no_absent_type():
    cells = of_types([0, 0, 2], 4)
    first, again, other = (pseudo_bulk(cells, 5, seed=seed)[1] for seed in (3, 3, 4))
    assert (first == again).all()
    assert (first != other).any()
    assert (first[:, [1, 3]] == 0).all()
    few = pseudo_bulk(cells, 500, seed=0, concentration=0.05)[1]
    assert (few.max(1) > 0.95).mean() > 0.7
    with pytest.raises(DataError, match="cells with a type"):
        pseudo_bulk(cells.subset(np.zeros(3, bool)), 2, seed=0)


def test_cells_are_held_out_within_types():
    cells = of_types([0] * 50 + [1] * 10 + [2] * 2 + [3], 4)
    numbered = SingleCells(
        csr_matrix(np.arange(1, 64, dtype=np.float32)[:, None]), ("A",), cells.types, cells.labels
    )
    train, held_out = hold_out(numbered, 0.3, seed=0, least=2)
    assert np.bincount(held_out.labels, minlength=4).tolist() == [15, 3, 1, 0]
    both = np.concatenate([train.values.toarray().ravel(), held_out.values.toarray().ravel()])
    assert sorted(both) == list(range(1, 64))
    assert (hold_out(numbered, 0.3, seed=0)[1].values != hold_out(numbered, 0.3, seed=1)[1].values).nnz > 0
    with pytest.raises(DataError, match="fewer than two cell types"):
        hold_out(of_types([0] * 5 + [1], 2), 0.3, seed=0)


def test_equal_totals_and_digest():
    cells = SingleCells(csr_matrix(COUNTS), ("A", "B", "C"), ("B", "T"), np.array([0, 1, 0, 1]))
    scaled = cells.with_equal_totals()
    np.testing.assert_allclose(scaled.values.sum(1).A1, COUNTS.sum() / 4, rtol=1e-6)
    np.testing.assert_allclose(scaled.values.toarray()[2], COUNTS[2] / 15 * COUNTS.sum() / 4, rtol=1e-6)
    assert cells.digest != scaled.digest
    assert cells.digest == cells.subset(np.arange(4)).digest
    assert cells.digest != cells.subset(np.array([1, 0, 2, 3])).digest


def test_packaged_reference_of_scanpy():
    from importlib.resources import files

    path = Path(str(files("scanpy") / "datasets" / "10x_pbmc68k_reduced.h5ad"))
    cells = read_single_cells(path, "bulk_labels", kind="log")
    assert cells.values.shape == (700, 765)
    assert len(cells.types) == 10
    assert np.bincount(cells.labels).max() == 240
    assert cells.notes[0].startswith("values of .raw")
    # A third of the values is above zero; a cell has some 2,000 of its 10,000 in these genes.
    assert cells.values.nnz / np.prod(cells.values.shape) == pytest.approx(0.326, abs=0.001)
    assert np.median(cells.values.sum(1).A1) == pytest.approx(2007.2, abs=1)
