"""Files that a slides table names differently, and pixel sizes that cannot be true."""

from pathlib import Path

import numpy as np
import pytest

from equipoise.datasets.cohorts.pixel_sizes import likely_mpp, mpp_notes
from equipoise.datasets.cohorts.slide_files import file_notes


def test_files_that_are_there_under_another_name(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.svs", "b.svs", "C.SVS", "d\u00fc.svs", "e.tif", "sub/f.svs", "g.svs", "G.svs"):
        (tmp_path / name).touch()
    named = ["a.svs", "b", "c.svs", "du\u0308.svs", "e.tiff", "sub\\f.svs", "gone.svs", "s3://bucket/x.svs"]
    paths = [name if "://" in name else f"{tmp_path}/{name}" for name in named]
    text = "\n".join(file_notes("A", paths))
    assert (
        "2 of 8 files are in their folder only with another ending, or with one ('b' is there as 'b.svs'"
        in text
    )
    assert "'e.tiff' is there as 'e.tif'" in text
    assert "1 of 8 files are in their folder only in another case ('c.svs' is there as 'C.SVS')" in text
    assert "only in another Unicode form or without invisible characters ('du\u0308.svs' is there as" in text
    assert "only with / in place of \\ ('sub\\\\f.svs' is there as 'sub/f.svs')" in text
    assert "1 of 8 files of the slides table are not there ('gone.svs')" in text
    assert (
        file_notes("A", [paths[0], f"{tmp_path}/nowhere/x.svs"]) == []
    )  # a missing folder is said elsewhere
    assert "'G.SVS' is there as 'G.svs'" in file_notes("A", [f"{tmp_path}/G.SVS"])[0]


@pytest.mark.parametrize(
    ("value", "guess"),
    [
        (40, "a magnification: about 0.25 um/px"),
        (20, "a magnification: about 0.5 um/px"),
        (500, "nanometres: 0.5 um/px"),
        (252.7, "nanometres: 0.2527 um/px"),
        (0.0005, "millimetres: 0.5 um/px"),
        (2.5e-7, "metres: 0.25 um/px"),
        (40000, "pixels per cm: 0.25 um/px"),
        (101600, "pixels per inch: 0.25 um/px"),
        (0, ""),
        (-0.5, ""),
        (7, ""),
    ],
)
def test_what_an_impossible_pixel_size_is(value: float, guess: str) -> None:
    assert likely_mpp(value) == guess


def test_impossible_pixel_sizes_are_counted() -> None:
    notes = mpp_notes("A", [40.0, 0.5, 40.0, np.nan, 500.0, 0.1, 5.0])
    assert len(notes) == 2
    assert notes[0].startswith(
        "cohort A: 2 of 7 slides have 40 um/px in the slides table, outside 0.1-5; it looks like a"
    )
    assert notes[1].startswith("cohort A: 1 of 7 slides have 500 um/px")
