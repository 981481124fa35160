"""Tables located, filtered, recognised; every error names where, why, the fix and near names."""

from pathlib import Path

import pandas as pd
import pytest

from equipoise.datasets.errors import DataError
from equipoise.datasets.params import Columns, TableSource
from equipoise.datasets.tables.reading import (
    applicable,
    detect_dialect,
    file_column,
    patient_column,
    read_table,
)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    rows = "p1,COAD,MSI-H\np2,READ,MSS\np3,STAD,MSS\np4,COAD,NA\n"
    (tmp_path / "clini.csv").write_text(f"PATIENT,Project Code,MSI Status\n{rows}")
    return tmp_path


def test_where_keeps_rows_and_their_numbers(base: Path) -> None:
    table = read_table(TableSource(path="clini.csv", where={"Project Code": ["COAD", "READ"]}), base)
    assert table["PATIENT"].tolist() == ["p1", "p2", "p4"]
    assert table.index.tolist() == [2, 3, 5]
    assert table["MSI Status"].tolist() == ["MSI-H", "MSS", "NA"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"path": "clin.csv"}, r"no such file; nearest: 'clini\.csv'"),
        ({"path": "nowhere/clini.csv"}, "the folder .*nowhere does not exist"),
        ({"path": "."}, "is a folder, not a table"),
        ({"path": "s3://bucket/clini.csv"}, "read from files, not from addresses"),
        (
            {"path": "clini.csv", "where": {"ProjectCode": "COAD"}},
            "no column 'ProjectCode'; nearest: 'Project Code'",
        ),
        (
            {"path": "clini.csv", "where": {"Project Code": ["COAD", "COADX"]}},
            "no row has 'COADX'.*nearest: 'COAD'",
        ),
        ({"path": "clini.csv", "rename": {"MSI": "x"}}, "no column 'MSI'; nearest: 'MSI Status'"),
        ({"path": "clini.csv", "rename": {"MSI Status": "PATIENT"}}, "several columns the name 'PATIENT'"),
    ],
)
def test_failures_say_what_is_near(base: Path, source: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_table(TableSource.model_validate(source), base)


def test_where_values_that_never_meet(base: Path) -> None:
    where = {"Project Code": ["STAD"], "MSI Status": ["MSI-H"]}
    with pytest.raises(DataError, match="no row"):
        read_table(TableSource.model_validate({"path": "clini.csv", "where": where}), base)


def test_no_rows(base: Path) -> None:
    (base / "empty.csv").write_text("PATIENT,x\n")
    with pytest.raises(DataError, match="column names but no rows"):
        read_table(TableSource(path="empty.csv"), base)


@pytest.mark.parametrize(
    ("columns", "name", "expected"),
    [
        (["PATIENT", "FILENAME", "MPP"], "equipoise/STAMP", ("PATIENT", "FILENAME", "MPP")),
        (["patient", "filename"], "equipoise/STAMP", ("patient", "filename", None)),
        (["", "case_id", "slide_id", "censorship"], "CLAM/PORPOISE/SurvPath", ("case_id", "slide_id", None)),
    ],
)
def test_dialects(columns: list[str], name: str, expected: tuple) -> None:
    dialect = detect_dialect(pd.DataFrame(columns=columns))
    assert dialect is not None
    assert dialect.name == name
    assert (dialect.columns.patient, dialect.columns.file, dialect.columns.mpp) == expected


def test_unknown_dialects_ask_and_suggest() -> None:
    table = pd.DataFrame(columns=["TCGA Participant Barcode", "MSI"])
    assert detect_dialect(table) is None
    source = TableSource(path="liu.csv")
    with pytest.raises(
        DataError, match=r"liu\.csv: no column is recognised.*likely: 'TCGA Participant Barcode'"
    ):
        patient_column(table, Columns(), source)
    with pytest.raises(
        DataError, match="no column 'TCGA Barcode' for the patient key; nearest: 'TCGA Participant"
    ):
        patient_column(table, Columns(patient="TCGA Barcode"), source)
    assert (
        patient_column(table, Columns(patient="TCGA Participant Barcode"), source)
        == "TCGA Participant Barcode"
    )
    with pytest.raises(DataError, match="slide file"):
        file_column(table, Columns(), source)


def test_a_slides_table_may_speak_its_own_dialect() -> None:
    study = Columns(patient="TCGA Participant Barcode")
    assert applicable(study, pd.DataFrame(columns=["PATIENT", "FILENAME"])).patient == "PATIENT"
    # A misspelt mpp column is not dropped silently: looking it up is an error.
    assert applicable(Columns(mpp="Resolution"), pd.DataFrame(columns=["PATIENT"])).mpp == "Resolution"
    assert applicable(study, pd.DataFrame(columns=["ID"])) == study
