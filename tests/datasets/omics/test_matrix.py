"""Matrices of patients x genes: formats, keys, suffixes, text among numbers, several rows of a patient."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from equipoise.datasets.errors import DataError
from equipoise.datasets.omics.matrix import read_matrix
from equipoise.datasets.params import Columns, OmicsSource

VALUES = st.floats(-1e4, 1e4, width=32) | st.just(np.float32("nan"))


@settings(max_examples=25, deadline=None)
@given(values=arrays(np.float32, st.tuples(st.integers(1, 30), st.integers(1, 5)), elements=VALUES))
def test_text_workbook_and_parquet_agree(
    tmp_path_factory: pytest.TempPathFactory, values: np.ndarray
) -> None:
    folder = tmp_path_factory.mktemp("rna")
    frame = pd.DataFrame(
        values, index=[f"0{i}" for i in range(len(values))], columns=[f"G{i}" for i in range(values.shape[1])]
    )
    frame.to_csv(folder / "m.csv")  # the key has no name here
    frame.rename_axis("PATIENT").to_parquet(folder / "m.parquet")
    frame.rename_axis("case_id").astype(float).to_excel(folder / "m.xlsx")
    expected = frame[frame.notna().any(axis=1)]
    for name in ("m.csv", "m.parquet", "m.xlsx"):
        if expected.empty:
            with pytest.raises(DataError, match="no patient has a value"):
                read_matrix(OmicsSource(path=name), folder)
            continue
        read = read_matrix(OmicsSource(path=name), folder)
        assert read.index.tolist() == expected.index.tolist(), name
        assert (read.dtypes == np.float32).all()
        np.testing.assert_allclose(read.to_numpy(), expected.to_numpy(), rtol=1e-6, err_msg=name)


def write(folder: Path, text: str) -> OmicsSource:
    (folder / "m.csv").write_text(text)
    return OmicsSource(path="m.csv")


def test_suffix_selects_and_is_cut_off(tmp_path: Path) -> None:
    write(
        tmp_path,
        "case_id,slide_id,age,TP53_rnaseq,TP53_cnv,KRAS_rnaseq\np1,s1,50,1.5,-1,2\np1,s2,50,1.5,-1,2\n",
    )
    rna = read_matrix(OmicsSource(path="m.csv", suffix="_rnaseq"), tmp_path)
    assert rna.to_dict("index") == {"p1": {"TP53": 1.5, "KRAS": 2.0}}
    with pytest.raises(DataError, match="no column ends with '_rna'"):
        read_matrix(OmicsSource(path="m.csv", suffix="_rna"), tmp_path)


def test_filter_and_missing_values(tmp_path: Path) -> None:
    write(tmp_path, "PATIENT;kind;G1;G2\np1;Normal;9;9\np1;Primary;1;NA\np2;Primary;;3\n")
    rna = read_matrix(OmicsSource.model_validate({"path": "m.csv", "where": {"kind": "Primary"}}), tmp_path)
    np.testing.assert_array_equal(rna.to_numpy(), [[1, np.nan], [np.nan, 3]])
    assert list(rna.columns) == ["G1", "G2"]


def test_rows_that_differ_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 patients have several rows that differ: p1"):
        read_matrix(write(tmp_path, "PATIENT,G1\np1,1\np1,2\np2,1\np2,1\n"), tmp_path)
    equal = read_matrix(write(tmp_path, "PATIENT,G1\np1,1\np2,1\np2,1\n"), tmp_path)
    assert equal.index.tolist() == ["p1", "p2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "PATIENT,age,G1,stage\np1,5,1,II\np2,6,2,III\n",
            r"1 column\(s\) hold text among the genes: 'stage' \(row 2: 'II'\)",
        ),
        ("ID,G1\np1,1\n", "no column is recognised as the patient key"),
        ("PATIENT\np1\n", "no columns besides the patient key"),
        ("PATIENT,G1\np1,inf\n", "infinite values"),
        ("PATIENT,G1,G2\np1,1,2\np2,1\n", "row 3 has 2 cells under 3"),
        ("PATIENT,G1,G2\np1,1,2\np2,1,4,5\n", "row 3 has 4 cells under 3"),
        ("", "the table is empty"),
    ],
)
def test_matrices_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_matrix(write(tmp_path, text), tmp_path)


def test_a_named_key(tmp_path: Path) -> None:
    source = write(
        tmp_path, "Barcode,G1\nP1,1\n01,2\nNA,3\nNA,4\n"
    )  # NA is nobody, and not one patient twice
    assert read_matrix(source, tmp_path, Columns(patient="Barcode")).index.tolist() == ["P1", "01"]


@pytest.mark.parametrize("name", ["m.csv", "m.csv.gz", "m.csv.zip", "m.parquet", "m.xlsx"])
def test_files_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PATIENT,G\xfc\np1,1\n")
    with pytest.raises(DataError, match="m\\."):
        read_matrix(OmicsSource(path=name), tmp_path)


def test_renamed_columns(tmp_path: Path) -> None:
    write(tmp_path, "PATIENT,ENSG1\np1,1\n")
    source = OmicsSource(path="m.csv", rename={"ENSG1": "TP53"})
    assert read_matrix(source, tmp_path).to_dict("index") == {"p1": {"TP53": 1.0}}
    pd.DataFrame({"PATIENT": ["p1"], "ENSG1": [2.0]}).to_parquet(tmp_path / "m.parquet")
    parquet = source.model_copy(update={"path": "m.parquet"})
    assert read_matrix(parquet, tmp_path).to_dict("index") == {"p1": {"TP53": 2.0}}
    with pytest.raises(DataError, match="no column 'ENSG2' to rename; nearest: 'ENSG1'"):
        read_matrix(source.model_copy(update={"rename": {"ENSG2": "x"}}), tmp_path)
