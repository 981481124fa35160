"""Matrices with genes in rows: the same numbers as their transpose, samples as patients, nothing guessed silently."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from equipoise.datasets.errors import DataError
from equipoise.datasets.omics.matrix import read_matrix
from equipoise.datasets.params import OmicsSource

PATIENTS = [f"TCGA-AA-{3000 + i}" for i in range(6)]
GENES = ["TP53", "KRAS", "TP53", "EGFR"]  # one name twice, as cBioPortal has them
VALUES = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32).round(4)


def genes_in_rows(names: list[str], gene: str = "Hugo_Symbol") -> pd.DataFrame:
    frame = pd.DataFrame(VALUES.T, columns=names)
    frame.insert(0, gene, GENES)
    return frame


@pytest.mark.parametrize(
    ("gene", "suffix", "orient"),
    [("Hugo_Symbol", "", None), ("sample", "-01", None), ("", "", None), ("any", "-01A-11R", "genes")],
)
def test_the_transpose_is_the_same_matrix(tmp_path: Path, gene: str, suffix: str, orient: str | None) -> None:
    genes_in_rows([p + suffix for p in PATIENTS], gene).to_csv(tmp_path / "m.tsv", sep="\t", index=False)
    source = OmicsSource.model_validate({"path": "m.tsv", "orient": orient})
    read = read_matrix(source, tmp_path, patients=[*PATIENTS, "TCGA-ZZ-0001"])
    assert read.index.tolist() == PATIENTS
    assert list(read.columns) == GENES
    np.testing.assert_allclose(read.to_numpy(), VALUES, rtol=1e-6)
    assert read.attrs["notes"] == [f"genes are rows ({gene!r}), patients are columns"]


def test_columns_that_describe_genes_and_strangers_are_left_out(tmp_path: Path) -> None:
    frame = genes_in_rows([f"{p}-01" for p in PATIENTS])
    frame.insert(1, "Entrez_Gene_Id", [7157, 3845, 7157, 1956])
    frame["TCGA-XX-9999-01"] = "text of somebody else"
    frame.to_csv(tmp_path / "m.csv", index=False)
    assert read_matrix(OmicsSource(path="m.csv"), tmp_path, patients=PATIENTS).index.tolist() == PATIENTS


def test_normal_tissue_goes_and_the_primary_tumour_stays(tmp_path: Path) -> None:
    names = [
        f"{PATIENTS[0]}-06",
        f"{PATIENTS[0]}-01",
        f"{PATIENTS[0]}-11",
        *(f"{p}-01" for p in PATIENTS[1:4]),
    ]
    genes_in_rows(names).to_csv(tmp_path / "m.csv", index=False)
    read = read_matrix(OmicsSource(path="m.csv"), tmp_path, patients=PATIENTS)
    np.testing.assert_allclose(read.loc[PATIENTS[0]], VALUES[1], rtol=1e-6)
    assert read.attrs["notes"] == [
        "genes are rows ('Hugo_Symbol'), patients are columns; 1 samples of normal tissue are left out; "
        "1 patients have several tumour samples, of which the first type is read"
    ]


def test_patients_in_rows_stay_what_they_are(tmp_path: Path) -> None:
    pd.DataFrame(VALUES, index=PATIENTS).rename_axis("").to_csv(tmp_path / "m.csv")
    read = read_matrix(OmicsSource(path="m.csv"), tmp_path, patients=PATIENTS)
    assert read.index.tolist() == PATIENTS
    assert not read.attrs.get("notes")


def test_declared_genes_in_rows_need_known_patients(tmp_path: Path) -> None:
    genes_in_rows([f"S{i}" for i in range(6)]).to_csv(tmp_path / "m.csv", index=False)
    with pytest.raises(DataError, match="no column is a patient of the clinical table: 'S0'"):
        read_matrix(OmicsSource(path="m.csv", orient="genes"), tmp_path, patients=PATIENTS)
    with pytest.raises(ValidationError, match="leave them out, or orient"):
        OmicsSource(path="m.csv", orient="genes", suffix="_rnaseq")


def test_decimal_commas_of_a_matrix(tmp_path: Path) -> None:
    frame = pd.DataFrame(VALUES, columns=list("ABCD")).assign(PATIENT=PATIENTS)
    frame.to_csv(tmp_path / "m.csv", index=False, sep=";", decimal=",")
    read = read_matrix(OmicsSource(path="m.csv"), tmp_path)
    np.testing.assert_allclose(read[list("ABCD")].to_numpy(), VALUES, rtol=1e-6)
    frame.to_csv(tmp_path / "m.csv", index=False, sep=";", decimal=",")
    (tmp_path / "n.csv").write_text("sep=;\n" + (tmp_path / "m.csv").read_text(), encoding="utf-16")
    pd.testing.assert_frame_equal(read_matrix(OmicsSource(path="n.csv"), tmp_path), read)
