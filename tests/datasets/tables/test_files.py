"""Files as grids of text: formats, delimiters, codes that must stay text, rows that do not fit."""

import datetime as dt
import gzip
import lzma
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openpyxl import Workbook

from equipoise.datasets.errors import DataError
from equipoise.datasets.tables.files import cell_text, read_grid, sniff_delimiter, unique_columns

CELLS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Z"]), max_size=8)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.text("AZ09", min_size=1, max_size=4), CELLS, CELLS), min_size=1, max_size=40),
    delimiter=st.sampled_from([",", ";", "\t"]),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list, delimiter: str
) -> None:
    path = tmp_path_factory.mktemp("grid") / "t.csv"
    frame = pd.DataFrame(rows, columns=["PATIENT", "a", "b"])
    frame.to_csv(path, sep=delimiter, index=False)
    read = read_grid(path)
    assert read.to_numpy().tolist() == frame.to_numpy().tolist()
    assert list(read.columns) == ["PATIENT", "a", "b"]


def test_codes_stay_text_and_every_line_is_read(tmp_path: Path) -> None:
    path = tmp_path / "codes.csv"
    codes = ["01", "NA", "1e5", "", *(f"{i:02}" for i in range(60))]
    path.write_text("code;site\n" + "".join(f"{code};Duke, University\n" for code in codes))
    table = read_grid(path)
    assert table["code"].tolist() == codes
    assert table["site"].unique().tolist() == ["Duke, University"]
    assert table.index.tolist() == list(range(2, len(codes) + 2))


@pytest.mark.parametrize(
    ("lines", "delimiter"),
    [
        (["a,b,c", "1,2,3"], ","),
        (["a;b", "1,5;2,5", "2,5;3,0"], ";"),
        (["a\tb", "x, y; z\tw"], "\t"),
        (["PATIENT", "p1"], ","),
        (['a,"b;c;d",e', "1,2,3"], ","),
    ],
)
def test_delimiters(lines: list[str], delimiter: str) -> None:
    assert sniff_delimiter(lines) == delimiter


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zip"])
def test_compressed_text(tmp_path: Path, suffix: str) -> None:
    text = "PATIENT,x\np1,1\n"
    path = tmp_path / f"t.csv{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("./inside.csv", text)
            archive.writestr("__MACOSX/._inside.csv", "junk")
    else:
        with {".gz": gzip.open, ".xz": lzma.open}[suffix](path, "wt") as stream:
            stream.write(text)
    assert read_grid(path).to_numpy().tolist() == [["p1", "1"]]


def test_excel_cells_are_what_a_person_sees(tmp_path: Path) -> None:
    book = Workbook()
    sheet = book.active
    sheet.append(["Table S1. Title"])
    sheet.append(["PATIENT", "n", "share", "code", "day", "flag", "gap"])
    sheet.append(["p1", 5.0, 0.25, "01", dt.date(2020, 1, 31), True, None])
    book.save(tmp_path / "t.xlsx")
    table = read_grid(tmp_path / "t.xlsx", header=2)
    assert table.loc[3].tolist() == ["p1", "5", "0.25", "01", "2020-01-31", "TRUE", ""]


def test_a_number_format_of_zeros_is_kept(tmp_path: Path) -> None:
    book = Workbook()
    sheet = book.active
    sheet.append(["PATIENT", "same", "n", "share"])
    sheet.append([7, 123456, 7, 0.5])
    for cell, shown in zip(sheet[2], ("00000", "00000", "0.00", "00000"), strict=True):
        cell.number_format = shown
    book.save(tmp_path / "t.xlsx")
    assert read_grid(tmp_path / "t.xlsx").loc[2].tolist() == ["00007", "123456", "7", "0.5"]


@pytest.mark.parametrize(
    ("value", "shown", "text"),
    [
        (7, "00", "07"),
        (7.0, "000", "007"),
        (-7, "000", "-007"),
        (7, "0", "7"),
        (7, "General", "7"),
        (7, None, "7"),
        (True, "000", "TRUE"),
        ("7", "000", "7"),
        (None, "000", ""),
    ],
)
def test_cells_under_formats(value: object, shown: str | None, text: str) -> None:
    assert cell_text(value, shown) == text


def test_sheets_are_named(tmp_path: Path) -> None:
    book = Workbook()
    book.active.title = "Clinical data"
    book.active.append(["PATIENT"])
    book.create_sheet("Legend").append(["x"])
    book.save(tmp_path / "t.xlsx")
    with pytest.raises(
        DataError, match=r"2 sheets: 'Clinical data', 'Legend'\n  fix: .*sheet: Clinical data"
    ):
        read_grid(tmp_path / "t.xlsx")
    with pytest.raises(DataError, match="nearest: 'Clinical data'"):
        read_grid(tmp_path / "t.xlsx", sheet="clinical")
    with pytest.raises(DataError, match="a file that has none"):
        (tmp_path / "t.csv").write_text("a\n1\n")
        read_grid(tmp_path / "t.csv", sheet="x")


def test_parquet_is_text_too(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"n": [1, 2], "x": [0.5, None], "c": pd.Categorical(["01", "NA"])}, index=["p1", "p2"]
    )
    frame.rename_axis("PATIENT").to_parquet(tmp_path / "t.parquet")
    table = read_grid(tmp_path / "t.parquet")
    assert table[["PATIENT", "n", "x", "c"]].to_numpy().tolist() == [
        ["p1", "1", "0.5", "01"],
        ["p2", "2", "", "NA"],
    ]


def test_rows_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b,c\n1,2,3\n4,5\n")
    with pytest.raises(DataError, match=r"row 3 has 2 cells under 3 column names \(4, 5, …\)"):
        read_grid(path)
    path.write_text("a,b\n1,2\n3,4,5\n")
    with pytest.raises(DataError, match="row 3 has 3 cells"):
        read_grid(path)
    path.write_text("a,b,\n1,2,\n3,4,,,\n")  # what spreadsheets leave behind
    assert read_grid(path).to_numpy().tolist() == [["1", "2"], ["3", "4"]]


def test_encodings_are_said(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("PATIENT;Ort\np1;Tübingen\n".encode("cp1252"))
    with pytest.raises(DataError, match="not utf-8 text.*\n.*encoding: cp1252"):
        read_grid(path)
    assert read_grid(path, encoding="cp1252").iloc[0].tolist() == ["p1", "Tübingen"]
    path.write_bytes("PATIENT;Ort\np1;Tübingen\n".encode("utf-8-sig"))
    assert read_grid(path).columns[0] == "PATIENT"
    with pytest.raises(DataError, match="unknown encoding"):
        read_grid(path, encoding="latin-9000")


@pytest.mark.parametrize("name", ["t.xlsx", "t.parquet", "t.csv.zip", "t.csv.gz"])
def test_files_that_are_something_else(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not what the name says")
    with pytest.raises(DataError, match=name.split(".", 1)[0]):
        read_grid(tmp_path / name)


def test_other_endings_and_empty_files(tmp_path: Path) -> None:
    (tmp_path / "t.docx").touch()
    with pytest.raises(DataError, match="does not end like a table"):
        read_grid(tmp_path / "t.docx")
    (tmp_path / "t.csv").touch()
    with pytest.raises(DataError, match="the table is empty"):
        read_grid(tmp_path / "t.csv")


def test_shared_names_are_never_guessed() -> None:
    assert unique_columns(["a", "b", "a"]) == ["a (1)", "b", "a (2)"]


@pytest.mark.parametrize(
    ("value", "text"), [(None, ""), (3.0, "3"), (3.25, "3.25"), (7, "7"), (" x ", "x"), (False, "FALSE")]
)
def test_cell_text(value: object, text: str) -> None:
    assert cell_text(value) == text
