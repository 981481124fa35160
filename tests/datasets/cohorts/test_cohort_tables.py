"""Rows merged to patients, slides named and owned by one patient."""

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.datasets.cohorts.cohort_tables import (
    RawCohort,
    SlideList,
    list_slides,
    merge_rows,
    name_slides,
    read_cohort,
    slide_stem,
)
from equipoise.datasets.errors import DataError
from equipoise.datasets.params import CohortSource, Columns, TableSource


def test_equal_rows_are_one_patient_and_gaps_are_filled() -> None:
    table = pd.DataFrame(
        [["p1", "NA", "NA"], ["p2", "1.0", "S1"], ["p1", "MSS", "NA"], ["p2", "1", "S1"]],
        columns=["PATIENT", "label", "site"],
        index=[2, 3, 4, 5],
    )
    merged, conflicts = merge_rows(table, "PATIENT", ["label"], ["site"])
    assert merged.to_dict("index") == {
        "p1": {"label": "MSS", "site": "NA"},
        "p2": {"label": "1.0", "site": "S1"},
    }
    assert conflicts == {}


def test_rows_that_contradict() -> None:
    table = pd.DataFrame(
        [["p1", "MSS", "S1"], ["p1", "MSI-H", "S1"], ["p2", "MSS", "NA"], ["p2", "MSS", "S2"]],
        columns=["PATIENT", "label", "site"],
        index=[2, 3, 4, 5],
    )
    _, conflicts = merge_rows(table, "PATIENT", ["label"], ["site"])
    assert conflicts == {
        "p1": "rows 2 and 3 contradict in 'label': 'MSS' and 'MSI-H'",
        "p2": "rows 4 and 5 contradict in 'site': 'NA' and 'S2'",
    }


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["", "NA", "x", "y"])), min_size=1, max_size=12
    )
)
def test_merging_keeps_every_patient_once_in_order(rows: list[tuple[str, str]]) -> None:
    table = pd.DataFrame(rows, columns=["PATIENT", "label"])
    merged, conflicts = merge_rows(table, "PATIENT", ["label"])
    assert list(merged.index) == list(dict.fromkeys(patient for patient, _ in rows))
    for patient in merged.index:
        known = {value for p, value in rows if p == patient and value in ("x", "y")}
        assert (patient in conflicts) == (len(known) == 2)
        if len(known) == 1:
            assert {merged.at[patient, "label"]} == known


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF-D8FB.svs", "TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF-D8FB"),
        ("TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF-D8FB", "TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF-D8FB"),
        ("batch1/S1.NDPI", "S1"),
        ("dicom/S2/level-0.dcm", "S2"),
        ("windows\\S3.tif", "S3"),
    ],
)
def test_stems(name: str, stem: str) -> None:
    assert slide_stem(name) == stem


def slides(
    rows: list[tuple[str, ...]], columns: str = "PATIENT FILENAME MPP", **options: object
) -> SlideList:
    table = pd.DataFrame(rows, columns=columns.split(), index=range(2, len(rows) + 2))
    return list_slides(
        table, TableSource(path="tables/slides.csv"), options.get("folder"), Columns(), Path("base")
    )  # type: ignore[arg-type]


def test_paths_mpp_and_repetitions() -> None:
    listed, repeated, incomplete, contradicting = slides(
        [
            ("p1", "a.svs", "0.5"),
            ("p1", "a.svs", "0.5"),
            ("p2", "/x/b.svs", ""),
            ("", "c.svs", ""),
            ("p3", "", ""),
        ]
    )
    assert listed["path"].tolist() == ["base/tables/a.svs", "/x/b.svs"]
    assert listed["mpp"].iloc[0] == 0.5
    assert pd.isna(listed["mpp"].iloc[1])
    assert repeated == [("p1", "base/tables/a.svs")]
    assert contradicting == {}
    assert incomplete == [
        "row 5 of tables/slides.csv has no patient key",
        "row 6 of tables/slides.csv has no file name (patient p3)",
    ]


def test_folders_and_addresses() -> None:
    assert slides([("p1", "a.svs", "")], folder="wsi")[0]["path"].tolist() == ["base/wsi/a.svs"]
    assert slides([("p1", "a.svs", "")], folder="s3://bucket/wsi/")[0]["path"].tolist() == [
        "s3://bucket/wsi/a.svs"
    ]
    assert slides([("p1", "s3://b/a.svs", "")], folder="wsi")[0]["path"].tolist() == ["s3://b/a.svs"]


def test_a_slide_of_two_patients_and_a_resolution_that_is_none() -> None:
    with pytest.raises(DataError, match=r"row 3: slide 'a\.svs' belongs to two patients, p1 and p2"):
        slides([("p1", "a.svs", ""), ("p2", "a.svs", "")])
    with pytest.raises(DataError, match=r"row 2, column 'MPP': '0,5' is no number of micrometres"):
        slides([("p1", "a.svs", "0,5")])
    with pytest.raises(DataError, match="no row has both a patient and a file"):
        slides([("p1", "", "")])


def raw(name: str, rows: list[tuple[str, str]]) -> RawCohort:
    source = CohortSource.model_validate({"name": name, "role": "develop", "clinical": "c.csv"})
    frame = pd.DataFrame([(f"{name}-{i}", path, stem, 0.5) for i, (path, stem) in enumerate(rows)])
    frame.columns = ["patient", "path", "stem", "mpp"]
    return RawCohort(source, pd.DataFrame(), [], {}, [], frame, [], (), [])


def test_names_of_slides_are_unique() -> None:
    first = raw("A", [("d/1.svs", "1"), ("d/2.svs", "2"), ("e/3.svs", "3"), ("f/3.svs", "3")])
    second = raw("B", [("g/1.svs", "1"), ("g/4.svs", "4")])
    assert name_slides([first, second]) == [["A/1", "2", "A/e/3.svs", "A/f/3.svs"], ["B/1", "4"]]


def test_lost_zeros_are_said_in_errors_and_notes(tmp_path: Path) -> None:
    def read(slides: str) -> RawCohort:
        (tmp_path / "c.csv").write_text("PATIENT,MSI\n07,1\n08,0\n")
        (tmp_path / "s.csv").write_text("PATIENT,FILENAME\n" + slides)
        source = {"name": "A", "role": "develop", "clinical": "c.csv", "slides": "s.csv"}
        return read_cohort(CohortSource.model_validate(source), ["MSI"], Columns(), tmp_path)

    with pytest.raises(
        DataError, match=r"fix: 2 keys .* zeros \('7' against '07', .*save that column as text"
    ):
        read("7,a.svs\n8,b.svs\n")
    notes = read("07,a.svs\n8,b.svs\n").notes
    assert "cohort A: of the slides table, 1 key matches the clinical table only" in notes[-1]
    assert not any("zeros" in note for note in read("07,a.svs\n08,b.svs\n").notes)


def test_markers_of_missing_keys_are_no_patient_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("PATIENT,MSI\nP1,1\nNA,0\nunknown,1\n#N/A,0\n\u200b,1\nNADIA,0\n")
    (tmp_path / "s.csv").write_text("PATIENT,FILENAME\nP1,a.svs\nNA,b.svs\nNADIA,NA\nNADIA,None\nP1,NA.svs\n")
    source = {"name": "A", "role": "develop", "clinical": "c.csv", "slides": "s.csv"}
    read = read_cohort(CohortSource.model_validate(source), ["MSI"], Columns(), tmp_path)
    assert list(read.labels.index) == ["P1", "NADIA"]
    assert read.slides is not None
    assert read.slides["stem"].tolist() == ["a", "NA"]
    assert read.keyless == [
        "row 3 of c.csv has no patient key ('NA')",
        "row 4 of c.csv has no patient key ('unknown')",
        "row 5 of c.csv has no patient key ('#N/A')",
        "row 6 of c.csv has no patient key ('\\u200b')",
        "row 3 of s.csv has no patient key ('NA')",
        "row 4 of s.csv has no file name ('NA') (patient NADIA)",
        "row 5 of s.csv has no file name ('None') (patient NADIA)",
    ]


def test_a_slide_with_several_pixel_sizes() -> None:
    listed = slides(
        [
            ("p1", "a.svs", "0.5"),
            ("p1", "a.svs", "0.25"),
            ("p2", "b.svs", ""),
            ("p2", "b.svs", "0.25"),
            ("p3", "c.svs", "0.2500"),
            ("p3", "c.svs", "0.2525"),  # 1 % apart: the same, rounded differently
        ]
    )
    assert listed.contradicting == {"base/tables/a.svs": "rows 2 and 3 contradict in mpp: 0.5 and 0.25"}
    assert listed.slides["mpp"].tolist() == [0.5, 0.25, 0.25]
