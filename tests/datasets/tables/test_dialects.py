"""Files as other programs write them: marks of encodings, sep=, remarks, decimal commas, JSON records, transposed."""

import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from equipoise.datasets.errors import DataError
from equipoise.datasets.params import Columns, TableSource
from equipoise.datasets.tables.files import read_grid
from equipoise.datasets.tables.reading import detect_dialect, patient_column, read_table

ROWS = [["PATIENT", "Größe", "score"], ["p1", "1.5", "x"], ["p2", "02", "y"]]


def text(delimiter: str = ",") -> str:
    return "".join(delimiter.join(row) + "\n" for row in ROWS)


def grid(path: Path) -> list[list[str]]:
    table = read_grid(path)
    return [list(table.columns), *table.to_numpy().tolist()]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("ending", ["csv", "csv.gz"])
def test_marks_of_encodings(tmp_path: Path, encoding: str, ending: str) -> None:
    raw = text().encode(encoding)
    (tmp_path / f"t.{ending}").write_bytes(gzip.compress(raw) if ending.endswith("gz") else raw)
    assert grid(tmp_path / f"t.{ending}") == ROWS


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_its_mark_names_the_encoding(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "t.csv").write_bytes(text().encode(encoding))
    with pytest.raises(DataError, match=f"encoding: {encoding}"):
        read_grid(tmp_path / "t.csv")
    assert read_grid(tmp_path / "t.csv", encoding=encoding).shape == (2, 3)


@pytest.mark.parametrize("first", ["sep=;\n", '"sep=;"\n', "SEP=;\r\n"])
def test_the_line_that_tells_excel_the_delimiter(tmp_path: Path, first: str) -> None:
    (tmp_path / "t.csv").write_text(first + text(";"), encoding="utf-8-sig")
    table = read_grid(tmp_path / "t.csv")
    assert [list(table.columns), *table.to_numpy().tolist()] == ROWS
    assert table.index.tolist() == [3, 4]  # lines of the file


def test_remarks_above_the_names(tmp_path: Path) -> None:
    """data_clinical_patient.txt of cBioPortal has four lines of remarks."""
    (tmp_path / "t.txt").write_text("#Patient\tSize\tScore\n#x\ty\tz\n#STRING\tNUMBER\tSTRING\n" + text("\t"))
    assert grid(tmp_path / "t.txt") == ROWS
    (tmp_path / "u.csv").write_text("#version 2.4\n" + text())
    assert grid(tmp_path / "u.csv") == ROWS
    (tmp_path / "v.csv").write_text("#" + text())  # a name that starts with #
    assert grid(tmp_path / "v.csv")[0][0] == "#PATIENT"


def read(folder: Path, content: str, **source: Any) -> pd.DataFrame:
    (folder / "t.csv").write_text(content)
    return read_table(TableSource(path="t.csv", **source), folder)


@pytest.mark.parametrize(
    ("content", "options", "score"),
    [
        ("PATIENT;score\np1;1,25\np2;0,5\np3;3\n", {}, ["1.25", "0.5", "3"]),
        ("PATIENT;score\np1;1,25\np2;NA\np3;3\n", {}, ["1.25", "NA", "3"]),
        ('PATIENT,score\np1,"1,5"\np2,"2,5"\n', {}, ["1.5", "2.5"]),
        # thousands, or three decimals: nobody knows
        ("PATIENT;score\np1;1,234\np2;12,345\n", {}, ["1,234", "12,345"]),
        ("PATIENT;score\np1;1,234\np2;12,345\n", {"decimal": ","}, ["1.234", "12.345"]),
        # the file has points elsewhere: its commas are no decimal marks
        ("PATIENT;age;score\np1;60.5;1,25\np2;61.0;0,5\n", {}, ["1,25", "0,5"]),
        # one column, two notations
        ("PATIENT;score\np1;1,25\np2;0.5\n", {}, ["1,25", "0.5"]),
        # Gleason patterns: text beside them
        ("PATIENT;score\np1;3,4\np2;4+3\n", {}, ["3,4", "4+3"]),
        ("PATIENT;score\np1;3,4\np2;4,3\n", {"decimal": "."}, ["3,4", "4,3"]),
    ],
)
def test_decimal_commas(tmp_path: Path, content: str, options: dict, score: list[str]) -> None:
    table = read(tmp_path, content, **options)
    assert table["score"].tolist() == score
    assert table.attrs.get("decimal_commas", []) == (["score"] if "." in score[0] else [])


RECORDS = [
    {
        "PATIENT": "p1",
        "age": 61,
        "stage": None,
        "demographic": {"sex": "female"},
        "diagnoses": [{"grade": "G2"}],
    },
    {"PATIENT": "p2", "age": 60.5, "stage": "II", "flag": True, "tags": ["a", "b"], "gap": float("nan")},
]
FLAT = [
    ["PATIENT", "age", "stage", "demographic.sex", "diagnoses.grade", "flag", "tags", "gap"],
    ["p1", "61", "", "female", "G2", "", "", ""],
    ["p2", "60.5", "II", "", "", "TRUE", "a; b", ""],
]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.json", json.dumps(RECORDS)),
        ("t.json", json.dumps({"data": RECORDS})),
        ("t.json.gz", json.dumps({"count": 2, "cases": RECORDS})),
        ("t.jsonl", "\n".join(map(json.dumps, RECORDS)) + "\n"),
    ],
)
def test_records(tmp_path: Path, name: str, content: str) -> None:
    raw = content.encode()
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    assert grid(tmp_path / name) == FLAT


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not readable as JSON"),
        ("[1, 2]", "no list of records"),
        ("{}", "no list of records"),
        ("[" * 100_000, "not readable as JSON"),
        (json.dumps([{"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": {"i": {"j": 1}}}}}}}}}}]), "8 deep"),
    ],
)
def test_json_that_is_no_table(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_grid(tmp_path / "t.json")


@pytest.mark.parametrize(
    ("columns", "dialect", "recognised"),
    [
        (
            ["case_id", "case_submitter_id", "slide_submitter_id"],
            "GDC",
            ("case_submitter_id", "slide_submitter_id"),
        ),
        (["case_id", "slide_id"], "CLAM/PORPOISE/SurvPath", ("case_id", "slide_id")),
        (["bcr_patient_barcode", "OS", "OS.time"], "TCGA", ("bcr_patient_barcode", None)),
        (["Study ID", "Patient ID", "FILENAME"], "cBioPortal", ("Patient ID", "FILENAME")),
        (["PATIENT_ID", "OS_STATUS"], "cBioPortal", ("PATIENT_ID", None)),
    ],
)
def test_names_of_patients(columns: list[str], dialect: str, recognised: tuple) -> None:
    found = detect_dialect(pd.DataFrame(columns=columns))
    assert found is not None
    assert (found.name, (found.columns.patient, found.columns.file)) == (dialect, recognised)


def test_patients_in_columns_are_hinted(tmp_path: Path) -> None:
    patients = [f"TCGA-AA-{3000 + i}" for i in range(8)]
    table = read(tmp_path, "attribute," + ",".join(patients) + "\nMSI" + ",x" * 8 + "\n")
    with pytest.raises(DataError, match="they stand in the columns: transpose the table"):
        patient_column(table, Columns(), TableSource(path="t.csv"))
