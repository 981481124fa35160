"""What is known about slides before the extraction is said, and refused, before the extraction."""

import logging
from pathlib import Path

import pandas as pd
import pytest

from equipoise.datasets.atomic_io import read_json
from equipoise.platform.errors import DataError, ToleranceError
from equipoise.platform.run import steps
from equipoise.platform.run.folder import RunFolder
from equipoise.platform.run.loading import load_study

STUDY = """\
version: 1
name: t
cohorts: [{name: A, role: develop, clinical: clini.csv, slides: slides.csv, slides_dir: slides}]
tasks: [{name: MSI, type: binary, column: MSI, positive: H, negative: L}]
features: {mpp: 0.5, max_fail: 0.2}
model: {kind: mean_pool}
splits: {folds: 2}
"""


def validate(root: Path, mpp: list[str], **options: bool) -> Path:
    """Validate a study of 20 slides that are no slides, with these pixel sizes."""
    (root / "slides").mkdir()
    sizes = mpp + ["0.5"] * (20 - len(mpp))
    for i in range(20):
        (root / "slides" / f"s{i}.svs").write_text("no slide")
    rows = pd.DataFrame({"PATIENT": [f"P{i}" for i in range(20)], "MSI": ["H", "L"] * 10})
    rows.to_csv(root / "clini.csv", index=False)
    named = rows.assign(FILENAME=[f"s{i}.svs" for i in range(20)], MPP=sizes)
    named[["PATIENT", "FILENAME", "MPP"]].to_csv(root / "slides.csv", index=False)
    (root / "study.yaml").write_text(STUDY)
    steps.validate(steps.RunContext(load_study(root / "study.yaml"), RunFolder(root / "run"), **options))
    return root / "run" / "manifest"


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ("40", "40 um/px is outside 0.1-5"),
        ("500", "outside 0.1-5"),
        ("0.7", "0.5 um/px would have to be made up"),
    ],
)
def test_pixel_sizes_that_an_extraction_would_refuse(tmp_path: Path, size: str, said: str) -> None:
    with pytest.raises(DataError, match=rf"5 of 20 slides cannot be used .*\(20%\): s0, s1, s2, …; .*{said}"):
        validate(tmp_path, [size] * 5)
    assert (tmp_path / "run" / "manifest" / "exclusions.csv").exists()  # written before it is refused


def test_as_many_as_may_fail_are_remarked(tmp_path: Path) -> None:
    notes = read_json(validate(tmp_path, ["40"] * 4) / "notes.json")
    assert any("4 of 20 slides have 40 um/px" in note for note in notes)


def test_opened_headers_are_held_against_max_fail(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(ToleranceError, match=r"20 of 20 .*100\.0% > 20\.0%"),
    ):
        validate(tmp_path, [], check_slides=True)
    assert "s0: not_a_slide" in caplog.text
    slides = pd.read_parquet(tmp_path / "run" / "manifest" / "slides.parquet")
    assert set(slides["status"]) == {"not_a_slide"}
